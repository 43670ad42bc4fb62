"""sprat from Python: load a model, train one, go on with a run."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from sprat.checkpoint import load_model
from sprat.data import Dataset
from sprat.display import TrainingDisplay, load_again, load_shown, make_console
from sprat.errors import SpratError
from sprat.evaluation.records import RunResult
from sprat.figures.png import draw_curves
from sprat.files import WriteError
from sprat.predict import Classifier
from sprat.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    check_empty,
    new_run,
    read_config,
    resume_finished,
)
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides, parse_time, proportion_note
from sprat.training import start
from sprat.training.pace import fit, fitted_recipe, keep_recipe
from sprat.training.prepare import check
from sprat.zoo import best, locate


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Holds config.json, metrics.jsonl, results.json, curves.png, model.safetensors, last.pt."""
    results: RunResult
    """What results.json holds: shares from 0 to 1; what was not measured is None."""


def load(model: str | Path | None = None, device: str = "auto") -> Classifier:
    """A trained model, ready to be asked.

    Args:
        model: a model.safetensors, the folder of a finished run, or a shipped model's name; by
            default the best that ships.
        device: cpu, cuda or mps; auto takes the first there is of cuda, mps, cpu.

    Raises:
        SpratError: there is no such model or device, or the file is damaged.
    """
    return Classifier(load_model(best() if model is None else locate(str(model))), device)


def train(
    config: Config | str = "quick",
    changes: Mapping[str, Any] | None = None,
    *,
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    time: str = "",
    quiet: bool = False,
) -> Run:
    """Trains a network, as `sprat train` does.

    Args:
        config: settings, or the name or path of a recipe that has them.
        changes: settings to change, by name: {"epochs": 12, "optim.lr": 0.2}. With another number
            of epochs, what the recipe counts in epochs changes in proportion unless it is given.
        dataset: the config's unless given; a dataset in memory is taken as it is.
        output: new folder for the run; by default runs/RECIPE-seedN-DATE-TIME.
        data_dir: where the dataset lies; by default $SPRAT_DATA, the user's cache, or a download.
        time: train as many epochs as end in it, "5m" or "1h30m", say, the final judgement included;
            the recipe as it is then run is kept in the run's folder.
        quiet: whether to print nothing.

    Raises:
        SpratError: there is no such recipe or setting, the time is too short, the data cannot be
            had or does not fit, the folder holds something already or another process trains
            there, the loss is no longer finite, or a file cannot be written.
        KeyboardInterrupt: it was interrupted; `resume` goes on after the last finished epoch.
    """
    began = perf_counter()
    recipe, settings = "custom", config
    if isinstance(settings, str):
        recipe, settings = settings, load_recipe(settings)
    began_as = settings
    settings = settings.changed(changes or {})
    changed = overrides(settings, began_as)
    seconds = parse_time(time) if time else 0.0
    if time and "epochs" in changed:
        raise SpratError("time decides how many epochs there are; leave epochs out")
    if dataset is not None and not isinstance(dataset, Dataset):
        settings = settings.changed({"dataset": str(dataset)})
    check(settings)  # rather than after a download
    console = make_console(quiet=quiet)
    if note := proportion_note(settings, began_as):
        console.print(note)
    if not isinstance(dataset, Dataset):
        place = None if data_dir is None else Path(data_dir)
        dataset = load_shown(console, settings.dataset, place, settings.pictures)
    with contextlib.ExitStack() as stack:
        if output is None:
            folder = stack.enter_context(new_run(recipe, settings.seed))
        else:
            folder = Path(output)
        if time:
            check_empty(folder)
            settings = fit(settings, dataset, seconds, began)
            recipe, changed = keep_recipe(settings, fitted_recipe(folder, recipe, time)), {}
        with _resumable(folder), TrainingDisplay(console) as display:
            results = start.train(
                settings,
                dataset,
                folder,
                recipe=recipe,
                overrides=changed,
                observer=display,
            )
        return _with_curves(folder, results)


def resume(
    folder: str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    quiet: bool = False,
) -> Run:
    """Resumes an interrupted run with the settings it began with; of a finished one, gives the
    results.

    Args:
        folder: the run's.
        dataset: the place of its data, if that has moved, or the dataset itself; the images,
            labels and classes must be those it began with.
        data_dir: as of `train`.
        quiet: whether to print nothing.

    Raises:
        SpratError: it is no run's folder, another process trains there, or the data is not what
            it began with.
    """
    folder, console = Path(folder), make_console(quiet=quiet)
    config, _, _ = read_config(folder)
    if finished := resume_finished(folder):
        return _with_curves(folder, finished)
    if not isinstance(dataset, Dataset):
        moved = None if dataset is None else str(dataset)
        place = None if data_dir is None else Path(data_dir)
        dataset = load_again(console, folder, config, moved, place)
    with _resumable(folder), TrainingDisplay(console) as display:
        results = start.resume(folder, dataset, observer=display)
    return _with_curves(folder, results)


@contextlib.contextmanager
def _resumable(folder: Path) -> Iterator[None]:
    """Says how to go on where a file cannot be written."""
    try:
        yield
    except WriteError as error:
        if not (folder / CONFIG_FILE).exists():
            raise
        text = f"{error} Then go on with sprat.resume({str(folder)!r})."
        raise WriteError(text, error) from error


def _with_curves(folder: Path, results: RunResult) -> Run:
    if not (folder / CURVES_FILE).exists():
        with _resumable(folder):
            draw_curves(folder)
    return Run(folder, results)
