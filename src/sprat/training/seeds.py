"""One recipe under several seeds, one after another, and what they come to."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import RunResult, SeedSummary
from sprat.evaluation.summary import write_summary
from sprat.run_folder import CONFIG_FILE, read_config, read_data
from sprat.settings.config import Config
from sprat.training.observer import Observer
from sprat.training.saving import check_data
from sprat.training.start import check_start, load_start, resume, settle_for, train


def train_seeds(
    config: Config,
    dataset: Dataset,
    folder: Path,
    count: int,
    *,
    recipe: str,
    overrides: dict[str, Any] | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    ended: Callable[[Path, RunResult], None] = lambda run, results: None,
) -> SeedSummary:
    """Trains under `count` seeds from config.seed on, each into folder/seed-N; returns what
    folder/summary.json then holds, over all finished seeds there.

    Seeds that are finished are left as they are, and one that was interrupted is resumed.

    Args:
        ended: called with each seed's folder and results, of a finished one too.
        Others as of `train`.

    Raises:
        SpratError: as `train`, or a seed's folder holds a run of other settings or data.
        Interrupted: `should_stop` said so; the same call resumes.
    """
    start = load_start(config)  # once, so that all seeds start from the same weights
    for seed in range(config.seed, config.seed + count):
        run, seeded = folder / f"seed-{seed}", dataclasses.replace(config, seed=seed)
        if (run / CONFIG_FILE).exists():
            _check_same(run, settle_for(seeded, dataset, observer or Observer()), dataset)
            check_start(run, start)
            results = resume(run, dataset, observer=observer, should_stop=should_stop)
        else:
            results = train(
                seeded,
                dataset,
                run,
                recipe=recipe,
                overrides=overrides,
                observer=observer,
                should_stop=should_stop,
                start=start,
            )
        ended(run, results)
    return write_summary(folder)


def _check_same(run: Path, wanted: Config, dataset: Dataset) -> None:
    began_as, settings = read_config(run)[0].to_dict(), wanted.to_dict()
    if began_on := read_data(run):
        check_data(run, dataset, began_on)
        del settings["dataset"]  # it is the same wherever it is
    differs = [key for key, value in settings.items() if began_as[key] != value]
    if differs:
        raise SpratError(
            f"{run} is a run of other settings (it differs in {', '.join(differs)}); give another "
            "--output, or the settings it began with"
        )
