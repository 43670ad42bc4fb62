"""Runs of one recipe that belong together: each trained, resumed, or left as it is if finished."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import RunResult
from sprat.run_folder import CONFIG_FILE, read_config, read_data
from sprat.settings.config import Config
from sprat.training.head_start import HeadStart
from sprat.training.observer import Observer
from sprat.training.saving import check_data
from sprat.training.start import check_start, load_start, resume, settle_for, train

Ended = Callable[[Path, RunResult], None]


class How(TypedDict, total=False):
    """Arguments of `train` besides config, data and folder."""

    recipe: Required[str]
    overrides: dict[str, Any] | None
    observer: Observer | None
    should_stop: Callable[[], bool]
    start: HeadStart | None


def train_each(
    members: Mapping[Path, Config],
    dataset: Dataset,
    ended: Ended | None = None,
    **how: Unpack[How],
) -> None:
    """Train each run into its folder, one after another.

    Args:
        members: settings of each run, by its folder.
        ended: called with each run's folder and results, of one that was finished before too.

    Raises:
        SpratError: as `train`, or a folder holds a run of other settings or data.
        Interrupted: `should_stop` said so; the same call resumes.
    """
    # once, so that all start from the same weights
    how["start"] = load_start(next(iter(members.values())))
    for folder, config in members.items():
        results = train_member(config, dataset, folder, **how)
        if ended:
            ended(folder, results)


def train_member(config: Config, dataset: Dataset, folder: Path, **how: Unpack[How]) -> RunResult:
    """Train one run, or resume it if it has begun; return the results, of a finished one too.

    Raises:
        SpratError, Interrupted: as `train_each`.
    """
    observer = how.get("observer") or Observer()
    should_stop = how.get("should_stop", lambda: False)
    if (folder / CONFIG_FILE).exists():
        check_same(folder, settle_for(config, dataset, observer), dataset)
        check_start(folder, how.get("start"))
        return resume(folder, dataset, observer=observer, should_stop=should_stop)
    return train(config, dataset, folder, **how)


def check_same(run: Path, wanted: Config, dataset: Dataset) -> None:
    """Check that a run began with the settings and data that are wanted.

    Args:
        wanted: settled for this machine.

    Raises:
        SpratError: it began with others.
    """
    began_as, settings = read_config(run)[0].to_dict(), wanted.to_dict()
    if began_on := read_data(run):
        check_data(run, dataset, began_on)
        del settings["dataset"]  # it is the same wherever it is
    differs = [key for key, value in settings.items() if began_as[key] != value]
    if differs:
        raise SpratError(
            f"{run} is a run with other settings (it differs in {', '.join(differs)}). Give "
            "another --output, or the settings it began with."
        )
