"""List of the runs in a folder, in any state: finished, training, interrupted or damaged."""

import dataclasses
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

from sprat.errors import SpratError
from sprat.evaluation.records import (
    METRICS_FILE,
    RESULTS_FILE,
    EpochRow,
    read_finished,
    read_metrics,
)
from sprat.files import holder
from sprat.run_folder import CONFIG_FILE, LOCK_FILE, read_beginning, read_config

DEEPEST = 6  # levels of nested folders that are searched

State = Literal["finished", "training", "interrupted", "damaged"]
Order = Literal["name", "val", "test", "parameters", "epochs", "time"]


@dataclass(frozen=True)
class ListedRun:
    """A run as listed by `sprat runs`. Values that are not available are None."""

    folder: Path
    """Folder of the run."""
    name: str
    """Path within the folder that was searched, with slashes."""
    group: str
    """Folder that the run shares with others, such as the seeds of a recipe; empty for none."""
    state: State
    """training: a process holds its lock. interrupted: it can be resumed."""
    recipe: str | None = None
    """Name or path of its recipe."""
    network: str | None = None
    """Name of its network."""
    dataset: str | None = None
    """Name or path of its dataset."""
    seed: int | None = None
    """Its seed."""
    final: bool | None = None
    """True if the run trains on all training images and reads the test set at the end."""
    parameters: int | None = None
    """Parameters of its network; None for unfinished runs of an older version of sprat."""
    epochs: int | None = None
    """Finished epochs."""
    epochs_in_all: int | None = None
    """Planned number of epochs."""
    val: float | None = None
    """Accuracy on val, 0 to 1; for an unfinished run, the best so far."""
    test: float | None = None
    """Accuracy on the test set, 0 to 1, for a finished run with `final`."""
    seconds: float | None = None
    """Duration in seconds; for an unfinished run, the training time of its finished epochs."""
    seconds_left: float | None = None
    """Training time left in seconds, while the run is training and after its first epoch."""
    error: str | None = None
    """Reason why a damaged run cannot be read."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as --json prints them."""
        return dataclasses.asdict(self) | {"folder": str(self.folder)}


def list_runs(
    folder: Path,
    *,
    sort: Order = "name",
    reverse: bool = False,
    recipe: str = "",
    network: str = "",
    dataset: str = "",
    state: State | None = None,
) -> list[ListedRun]:
    """Return the runs in `folder` and its subfolders; or `folder` itself, if it is a run.

    Args:
        sort: val and test: best first; otherwise ascending. Runs of one group stay together,
            ordered by their mean; runs without the figure come last.
        reverse: whether to reverse the order.
        recipe, network, dataset: list only runs with these names; upper and lower case make no
            difference, and * matches any characters.
        state: list only runs in this state.

    Raises:
        SpratError: there is no such folder, or it cannot be read.
    """
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise SpratError(f"{folder} {what}. Name a folder that contains runs, such as runs.")
    found = [_read(each, folder) for each in _run_folders(folder)]
    wanted = {"recipe": recipe, "network": network, "dataset": dataset}
    chosen = [
        run
        for run in found
        if run and state in (None, run.state) and all(_is(run, *each) for each in wanted.items())
    ]
    return arranged(chosen, sort, reverse)


def groups(runs: Sequence[ListedRun]) -> list[list[ListedRun]]:
    """Return the runs in their order, those of a group in one list, others in lists of one."""
    found: dict[str, list[ListedRun]] = {}
    for run in runs:
        found.setdefault(f"{run.group}/" if run.group else run.name, []).append(run)
    return list(found.values())


def arranged(runs: Sequence[ListedRun], sort: Order, reverse: bool) -> list[ListedRun]:
    """Return the runs sorted, keeping groups together."""
    by_name = sorted(runs, key=lambda run: _natural(run.name), reverse=reverse and sort == "name")
    if sort == "name":
        return [run for group in groups(by_name) for run in group]

    def by_value(items: list[Any], values: Callable[[Any], list[float]]) -> list[Any]:
        last = [item for item in items if not values(item)]
        first = [item for item in items if values(item)]
        descending = (sort in ("val", "test")) != reverse
        first.sort(key=lambda item: statistics.fmean(values(item)), reverse=descending)
        return first + last

    def value(run: ListedRun) -> list[float]:
        found = getattr(run, "seconds" if sort == "time" else sort)
        return [] if found is None else [found]

    def values(group: list[ListedRun]) -> list[float]:
        return [each for run in group for each in value(run)]

    return [run for group in by_value(groups(by_name), values) for run in by_value(group, value)]


def _run_folders(folder: Path, depth: int = 0) -> Iterator[Path]:
    """Return the folders of runs in a folder, including those within runs, such as trials."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except OSError as error:
        if depth == 0:
            raise SpratError(
                f"{folder} cannot be read: {error.strerror}. Check its permissions."
            ) from error
        return
    if any(entry.name in (CONFIG_FILE, RESULTS_FILE, METRICS_FILE) for entry in found):
        yield folder
    if depth < DEEPEST:
        for entry in found:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from _run_folders(folder / entry.name, depth + 1)


def _read(run: Path, root: Path) -> ListedRun | None:
    """Return a run's entry; None if the run has been removed since it was found."""
    within = run.relative_to(root)
    group = "" if within.parent == Path() else within.parent.as_posix()
    name = within.as_posix() if within.parts else run.resolve().name
    listed = ListedRun(run, name, group, "training" if holder(run / LOCK_FILE) else "interrupted")
    try:
        return _filled(listed)
    except (SpratError, OSError) as error:
        if not run.is_dir():
            return None
        return dataclasses.replace(listed, state="damaged", error=str(error))


def _filled(listed: ListedRun) -> ListedRun:
    """Return a run's entry completed from its files.

    Raises:
        SpratError: a file of the run is missing or damaged.
    """
    run = listed.folder
    config, recipe, _ = read_config(run)
    listed = dataclasses.replace(
        listed,
        recipe=recipe,
        network=config.model,
        dataset=config.dataset,
        seed=config.seed,
        final=config.final,
        epochs_in_all=config.epochs,
        parameters=read_beginning(run).get("parameters"),
    )
    if results := read_finished(run):
        val, test = results["val"], results["test"]
        return dataclasses.replace(
            listed,
            state="finished",
            network=results["model"],
            parameters=results["parameters"],
            epochs=results["epochs"],
            val=val and val["top1"],
            test=test and test["top1"],
            seconds=results["seconds"],
        )
    metrics = run / METRICS_FILE
    rows = read_metrics(run) if metrics.exists() else []
    seconds = sum(row["seconds"] for row in rows)
    left = None
    if rows and listed.state == "training":
        since = max(0.0, time.time() - metrics.stat().st_mtime)
        left = max(0.0, (config.epochs - len(rows)) * seconds / len(rows) - since)
    return dataclasses.replace(
        listed,
        epochs=len(rows),
        val=_best(rows, "ema_top1" if config.weights == "ema" and config.ema.decay else "top1"),
        seconds=seconds,
        seconds_left=left,
    )


def _best(rows: Sequence[EpochRow], score: Literal["top1", "ema_top1"]) -> float | None:
    """Return the best accuracy on val so far, of the kind of weights that the run keeps."""
    scores = (row[score] for row in rows if row["evaluated_on"] == "val")
    return max((each for each in scores if each is not None), default=None)


def _is(run: ListedRun, field: str, pattern: str) -> bool:
    """Return whether a field matches a pattern; an empty pattern matches every field."""
    value = getattr(run, field)
    if not pattern or value is None:
        return not pattern
    return fnmatchcase(value.lower(), pattern.lower())


def _natural(name: str) -> list[tuple[str, int]]:
    """Return a sort key that puts seed-2 before seed-10."""
    return [(text, int(digits or 0)) for text, digits in re.findall(r"(\D*)(\d{0,18})", name)]
