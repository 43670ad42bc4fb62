"""Saving the state of a run, so that it can be resumed bit for bit, and restoring it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat import distributed
from sprat.checkpoint import RESUME_FILE, load_resume, save_resume
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import write_metrics
from sprat.run_folder import DataIdentity
from sprat.settings.config import Config
from sprat.text import visible, warn

if TYPE_CHECKING:
    from sprat.training.run import Run


def save(run: "Run") -> None:
    """Write the state needed to resume a run from its current step, in its first process.

    Raises:
        SpratError: the folder is no longer the run's, or the file cannot be written.
    """
    if not distributed.is_first():
        return
    check_folder(run)
    progress = {f.name: getattr(run.progress, f.name) for f in dataclasses.fields(run.progress)}
    state = progress | dataclasses.asdict(run.origin) | run.step.state()
    state |= {
        "config": run.config.to_dict(),
        "dataset_md5": run.dataset.md5,
        "classes": list(run.dataset.train.classes),
        "teacher": _taught_by(run),
        "processes": distributed.count(),
    }
    save_resume(run.folder / RESUME_FILE, state)


def restore(run: "Run") -> None:
    """Restore the state of a run at its last `save`.

    Raises:
        SpratError: there is no such file, it is damaged, or it is of another config, dataset or
            teacher.
    """
    path = run.folder / RESUME_FILE
    state = load_resume(path)
    try:
        # via Config: settings that are newer than the file default to the old behaviour
        if Config.recorded(state["config"], source=str(path)) != run.config:
            raise SpratError(
                f"{run.folder}/config.json was changed after the run began. Restore it, or start a "
                "new run with the new settings."
            )
        # older versions wrote no classes
        began_on = {"md5": state["dataset_md5"], "classes": state.get("classes")}
        check_data(run.folder, run.dataset, began_on)
        if run.teachers and state["teacher"] != _taught_by(run):
            names = ", ".join(map(visible, run.config.distill.teacher))
            raise SpratError(
                f"{run.folder} was taught by another model than {names} is now. Restore that "
                "model, or start a new run."
            )
        _check_place(run, state)
        if state["best"]:  # to find a misfit now rather than at the end; replaced below
            run.kept_network().load_state_dict(state["best"]["weights"])
        run.step.restore(state)
        run.progress.losses.copy_(state["losses"])
        for name in ("epoch", "batch", "epoch_seconds", "seconds", "history", "best"):
            setattr(run.progress, name, state[name])
        origin = run.origin
        origin.recipe = state.get("recipe", origin.recipe)
        origin.overrides = state.get("overrides", origin.overrides)
        origin.start = state.get("start")  # older versions had no head start
        if origin.git != state["git"]:  # trained with more than one state of the code
            origin.git = state["git"] and state["git"] | {"dirty": True}
    except SpratError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SpratError(
            f"{path} does not fit its config.json: {error}. Restore both files, or start a new run."
        ) from error
    if distributed.is_first():
        _note_processes(run.folder, state)
        write_metrics(run.folder, run.progress.history)


def _note_processes(folder: Path, state: dict[str, Any]) -> None:
    before, now = state.get("processes", 1), distributed.count()  # older versions wrote none
    if before != now:
        warn(
            f"{visible(folder)} was trained by {before} "
            f"{'process' if before == 1 else 'processes'} and is resumed by {now}, so its weights "
            "will differ from those of an uninterrupted run."
        )


def check_folder(run: "Run") -> None:
    """Check before each write that a run's folder is still there and still this process's.

    Raises:
        SpratError: it was removed or moved, and may be another run's by now.
    """
    if not run.is_ours():
        raise SpratError(
            f"{run.folder} was removed or moved while the run was training, so nothing more is "
            "written there. Resume the run in its new place, or start it again."
        )


def identity(dataset: Dataset) -> DataIdentity:
    """Return what identifies a dataset wherever it is: its md5 and its classes."""
    return {"md5": dataset.md5, "classes": list(dataset.train.classes)}


def check_data(folder: Path, dataset: Dataset, began_on: Mapping[str, Any]) -> None:
    """Check that a dataset, wherever it is now, is the one that a run began with.

    Raises:
        SpratError: its images, labels or classes differ.
    """
    known = {key: value for key, value in began_on.items() if value is not None}
    if not known.items() <= identity(dataset).items():
        raise SpratError(
            f"{folder} was trained on other images than this {dataset.name}. Resume it with its "
            "original data."
        )


def _taught_by(run: "Run") -> str | None:
    """Return the sha256s of the teachers, in order."""
    return "+".join(teacher.sha256 for teacher in run.teachers) or None


def _check_place(run: "Run", state: dict[str, Any]) -> None:
    """Check that a run of this config and data can have reached `state`.

    Raises:
        ValueError: it cannot.
    """
    place = f"epoch {state['epoch']}, batch {state['batch']}"
    if state["epoch"] > run.config.epochs or state["batch"] > len(run.images.batches):
        raise ValueError(f"it is at {place}")
    losses = run.progress.losses
    if len(state["history"]) != state["epoch"] or state["losses"].shape != losses.shape:
        raise ValueError(f"it is at {place}, but its history has another length")
    best = state["best"]
    if best and (not run.chooses or best["epoch"] > state["epoch"]):
        raise ValueError(f"it is at {place}, but was best at epoch {best['epoch']}")
