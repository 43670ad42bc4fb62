"""The folder of a run: its lock, its configuration (config.json), and leftovers of killed
processes."""

import contextlib
import itertools
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from sprat.errors import SpratError
from sprat.evaluation.records import (
    Count,
    Overrides,
    RunResult,
    StartRecord,
    read_finished,
    read_json,
    write_json,
)
from sprat.files import holder, lock, sweep, writing
from sprat.names import check_one_run
from sprat.settings.config import Config
from sprat.shapes import mismatch, shape_of
from sprat.text import command

CONFIG_FILE, CURVES_FILE = "config.json", "curves.png"
LOCK_FILE = ".lock"  # exists while a process trains; names the process
# leftovers of killed processes of older versions; files.py removes those of newer ones
_OLDER = (
    *(".config-*.json", ".metrics-*.jsonl", ".results-*.json", ".curves-*.png"),
    *(".model-*.safetensors", ".last-*.pt"),
)


class DataIdentity(TypedDict):
    """Identity of a dataset, independent of its location."""

    md5: str
    classes: list[str]


class Beginning(TypedDict):
    """Contents of config.json: everything that was decided before the first step."""

    recipe: str
    overrides: Overrides
    config: dict[str, Any]
    data: NotRequired[DataIdentity | None]
    start: NotRequired[StartRecord | None]
    parameters: NotRequired[Count]


BEGINNING = shape_of(Beginning)


@contextlib.contextmanager
def new_run(recipe: str, seed: int) -> Iterator[Path]:
    """Create runs/RECIPE-seedN-DATE-TIME for a run without --output; remove it at the end of the
    block if it is empty.

    Runs that begin in the same second get numbered folders.
    """
    name = f"{Path(recipe).stem}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = next(folder for name in names if _make_new(folder := Path("runs") / name))
    try:
        yield folder
    finally:
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _make_new(folder: Path) -> bool:
    """Create a folder; return False if it exists already."""
    with writing(folder):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.exists():  # a parent of the folder is a file
                raise
            return False
        return True


@contextlib.contextmanager
def locked(run: Path) -> Iterator[Callable[[], bool]]:
    """Lock a run's folder for this process, creating it if necessary; yield a function that returns
    whether this process still has the lock.

    Raises:
        SpratError: another process trains there.
    """

    def refuse(holder: str) -> None:
        raise _in_use(run, holder)

    with contextlib.ExitStack() as stack:
        with writing(run / LOCK_FILE):
            run.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(run / LOCK_FILE, refuse))
        yield held


def check_free(run: Path) -> None:
    """Check that no other process trains in a folder.

    Raises:
        SpratError: another process does.
    """
    if found := holder(run / LOCK_FILE):
        raise _in_use(run, found)


def _in_use(run: Path, holder: str) -> SpratError:
    return SpratError(
        f"{run} is in use: {holder} is training there. Wait until it has finished, or stop it "
        "first."
    )


def check_empty(run: Path, besides: Collection[str] = ()) -> None:
    """Check that a run can begin in a folder: it does not exist, or contains only a recipe.

    Args:
        besides: further names that it may contain.

    Raises:
        SpratError: the folder contains something else.
    """
    sweep_run(run)
    if run.exists() and (
        not run.is_dir()
        or any(_of_a_run(path) and path.name not in besides for path in run.iterdir())
    ):
        begun = (run / CONFIG_FILE).exists()
        hint = f", or resume it: {command('sprat', 'train', '--resume', run)}" if begun else "."
        raise SpratError(
            f"{run} exists already and is not overwritten. Give another --output{hint}"
        )


def _of_a_run(path: Path) -> bool:
    return path.name != LOCK_FILE and path.suffix != ".toml"


def sweep_run(run: Path) -> None:
    """Remove leftovers of killed processes from a run's folder."""
    sweep(run)
    for pattern in _OLDER:
        sweep(run, pattern)


def resume_finished(run: Path) -> RunResult | None:
    """Return the results of a finished run, after removing leftovers of a kill at its end; return
    None if the run is not finished.

    Raises:
        SpratError: results.json is damaged.
    """
    results = read_finished(run)
    if results is not None:
        sweep_run(run)
        sweep(run, LOCK_FILE)
    return results


def write_config(
    run: Path,
    config: Config,
    recipe: str,
    overrides: dict[str, Any],
    data: DataIdentity,
    parameters: int,
    start: StartRecord | None = None,
) -> None:
    """Write config.json: the recipe's name, settings that differ from it, the whole config, the
    data's identity, the number of parameters, and the model that the run starts from.

    Raises:
        SpratError: the folder contains such a file already, or it cannot be written.
    """
    values: Beginning = {
        "recipe": recipe,
        "overrides": overrides,
        "config": config.to_dict(),
        "data": data,
        "start": start,
        "parameters": parameters,
    }
    write_json(run / CONFIG_FILE, values, new=True)


def read_config(run: Path) -> tuple[Config, str, dict[str, Any]]:
    """Return a run's config, its recipe's name and its overrides.

    Raises:
        SpratError: config.json is missing or damaged.
    """
    values = read_beginning(run)
    config = Config.recorded(values["config"], source=str(run / CONFIG_FILE))
    return config, values["recipe"], values["overrides"]


def read_beginning(run: Path) -> Beginning:
    """Return the contents of a run's config.json.

    Raises:
        SpratError: it is missing or damaged.
    """
    path = run / CONFIG_FILE
    if run.is_dir() and all(found.name.startswith(".") for found in run.iterdir()):
        raise SpratError(
            f"{run} contains no run yet, because training was stopped before the first step. Start "
            f"it again in the same folder: {command('sprat', 'train', '--output', run)}, with its "
            "recipe and settings."
        )
    if not path.exists():
        check_one_run(run)
    values: Beginning = read_json(path)
    if wrong := mismatch(values, BEGINNING):
        raise SpratError(
            f"{path} is not a file that a run of sprat writes: {wrong}. Name the folder of a run."
        )
    return values


def read_data(run: Path) -> DataIdentity | None:
    """Return the identity of the data that a run began with; None for a run of an older version."""
    found: DataIdentity | None = read_json(run / CONFIG_FILE).get("data")
    return found


def read_start(run: Path) -> StartRecord | None:
    """Return the model that a run started from; None for a run from scratch."""
    found: StartRecord | None = read_json(run / CONFIG_FILE).get("start")
    return found
