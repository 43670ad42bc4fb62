"""Training and resuming a run, from start to finish:

    config, dataset = load_recipe("quick"), load_dataset("cifar10")
    results = train(config, dataset, Path("runs/quick"), recipe="quick")

The run's folder is locked, so only one process at a time writes there. If several processes train
one run together, all call the same function and the first writes.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sprat import distributed
from sprat.budget import count_parameters
from sprat.checkpoint import RESUME_FILE
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import RunResult, read_finished
from sprat.run_folder import (
    CONFIG_FILE,
    check_empty,
    check_free,
    locked,
    read_config,
    read_data,
    read_start,
    sweep_run,
    write_config,
)
from sprat.settings.config import Config
from sprat.training.head_start import HeadStart
from sprat.training.observer import Observer
from sprat.training.outcome import finish
from sprat.training.prepare import check, check_fit, check_kernels, settle
from sprat.training.run import Origin, Run
from sprat.training.saving import check_data, identity, restore


def train(
    config: Config,
    dataset: Dataset,
    folder: Path,
    *,
    recipe: str,
    overrides: dict[str, Any] | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    besides: Collection[str] = (),
    start: HeadStart | None = None,
) -> RunResult:
    """Train into the new `folder`, from scratch or from a model's weights; return the content of
    results.json.

    Args:
        recipe: name of the recipe that `config` is, or is based on.
        overrides: settings in which `config` differs from it.
        observer: notified of the run's progress.
        should_stop: called after every step; if it returns true, the run is saved and Interrupted
            is raised.
        besides: names that `folder` may already contain, in addition to recipes.
        start: the model that `config.start_from` names, if it is loaded already.

    Raises:
        SpratError: `folder` is not empty or another process trains there, the config does not fit
            the data or the machine, the model to start from is missing or does not fit, the loss is
            no longer finite, or a file cannot be written (a WriteError; `resume` continues once
            there is space).
        Interrupted: `should_stop` returned true; `resume` continues.
    """
    if distributed.is_first():
        check_free(folder)
        check_empty(folder, besides)
    observer = _first_only(observer)
    start = start or load_start(config)
    settled = settle_for(config, dataset, observer)
    run = Run(settled, dataset, folder, Origin(recipe, overrides or {}), start)
    try:
        with _held(folder) as run.is_ours:
            if distributed.is_first():
                check_empty(folder, besides)
                parameters = count_parameters(run.step.network)
                origin, data = run.origin, identity(dataset)
                write_config(
                    folder, settled, recipe, origin.overrides, data, parameters, origin.start
                )
            return _to_the_end(run, observer, should_stop)
    finally:
        if distributed.is_first():
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is still empty


def resume(
    folder: Path,
    dataset: Dataset,
    *,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> RunResult:
    """Resume the run in `folder` from its last checkpoint, or from the beginning if it has none.

    A finished run's results are returned as they are. `dataset` may have moved since the run began,
    but must have the same images, labels and classes.

    Arguments, result and errors are those of `train`. On a CPU with the same number of threads, the
    weights are bit for bit those of an uninterrupted run.
    """
    distributed.wait()  # until the first process has written its checkpoint
    config, recipe, overrides = read_config(folder)
    with _held(folder) as is_ours:  # also if it is finished: a kill may have left the lock
        if finished := read_finished(folder):
            return finished
        if distributed.is_first():
            sweep_run(folder)
        observer = _first_only(observer)
        if "auto" in (config.device, config.precision, config.kernels) or not config.threads:
            raise SpratError(
                f"{folder / CONFIG_FILE} does not record the device, precision, kernels and "
                "threads that the run began with. Start a new run with its settings."
            )
        network = check(config, len(dataset.train.classes), dataset.channels)
        check_fit(config, network, dataset)
        if began_on := read_data(folder):
            check_data(folder, dataset, began_on)
        check_kernels(config, network, observer)
        saved = (folder / RESUME_FILE).exists()
        start = None if saved else _load_start_again(config, folder)
        run = Run(config, dataset, folder, Origin(recipe, overrides), start)
        run.is_ours = is_ours
        if saved:
            restore(run)
        if distributed.broadcast_value(run.steps_taken) != run.steps_taken:
            raise SpratError(
                f"{folder} has another checkpoint here than on the machine of the first process. "
                "Use a folder that all machines share."
            )
        return _to_the_end(run, observer, should_stop)


def _first_only(observer: Observer | None) -> Observer:
    """Return the observer in the first process; in others, one that does nothing."""
    return observer if observer and distributed.is_first() else Observer()


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[Callable[[], bool]]:
    """Lock a run's folder, as `locked` does, in the first process, which alone writes there."""
    if distributed.is_first():
        with locked(folder) as is_ours:
            yield is_ours
    else:
        yield lambda: True


def settle_for(config: Config, dataset: Dataset, observer: Observer = Observer()) -> Config:  # noqa: B008
    """Return the config settled for this machine and checked against a dataset.

    Raises:
        SpratError: as `train`.
    """
    network = check(config, len(dataset.train.classes), dataset.channels)
    pictures = dataclasses.replace(
        config.pictures,
        channels=dataset.channels,  # type: ignore[arg-type]
    )
    decided = dataclasses.replace(config, dataset=dataset.name, pictures=pictures)
    settled = settle(decided, observer, network)
    check_fit(settled, network, dataset)
    return settled


def load_start(config: Config) -> HeadStart | None:
    """Return the model that a run starts from; None if it starts from scratch.

    Raises:
        SpratError: there is no such model, or it is damaged.
    """
    return HeadStart.load(config.start_from) if config.start_from else None


def check_start(folder: Path, start: HeadStart | None) -> None:
    """Check that the run in a folder started from the same weights.

    Raises:
        SpratError: it did not.
    """
    began_from = read_start(folder)
    if start and began_from and began_from.get("sha256") != start.sha256:
        raise SpratError(
            f"{folder} started from another {start.model.name}: the file has changed since. "
            "Restore it, or start a new run."
        )


def _load_start_again(config: Config, folder: Path) -> HeadStart | None:
    """Return the model that a run starts from if it was stopped before its first checkpoint."""
    try:
        start = load_start(config)
    except SpratError as error:
        raise SpratError(
            f"{folder} was stopped before its first checkpoint, so the model that it starts from "
            f"is still needed. {error}"
        ) from error
    check_start(folder, start)
    return start


def _to_the_end(run: Run, observer: Observer, should_stop: Callable[[], bool]) -> RunResult:
    try:
        try:
            run.train(observer, should_stop)
        finally:
            run.images.batches.close()
        results = finish(run, observer) if distributed.is_first() else None
        results = distributed.broadcast_value(results)
        observer.finished(run, results)
        return results
    finally:
        observer.closed(run)
