"""sprat from Python: load a model, train one, go on with a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sprat import training
from sprat.checkpoint import load_model
from sprat.config import Config, load_recipe, overrides
from sprat.data import Dataset
from sprat.display import TrainingDisplay, load_shown, make_console
from sprat.plots import draw_curves
from sprat.predict import Classifier
from sprat.results import new_run, read_config
from sprat.zoo import best, locate


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Holds config.json, metrics.jsonl, results.json, curves.png, model.safetensors, last.pt."""
    results: dict[str, Any]
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
    quiet: bool = False,
) -> Run:
    """Trains a network, as `sprat train` does.

    Args:
        config: settings, or the name or path of a recipe that has them.
        changes: what is to be otherwise, by name: {"epochs": 12, "optim.lr": 0.2}.
        dataset: the config's unless given; a dataset in memory is taken as it is.
        output: new folder for the run; by default runs/RECIPE-seedN-DATE-TIME.
        data_dir: where the dataset lies; by default $SPRAT_DATA, the user's cache, or a download.
        quiet: whether to print nothing.

    Raises:
        SpratError: there is no such recipe or setting, the data cannot be had or does not fit, the
            folder holds something already, or the loss is no longer finite.
        KeyboardInterrupt: it was interrupted; `resume` goes on after the last finished epoch.
    """
    recipe, settings = "custom", config
    if isinstance(settings, str):
        recipe, settings = settings, load_recipe(settings)
    began_as = settings
    settings = settings.changed(changes or {})
    if dataset is not None and not isinstance(dataset, Dataset):
        settings = settings.changed({"dataset": str(dataset)})
    training.check(settings)  # rather than after a download
    console = make_console(quiet)
    if not isinstance(dataset, Dataset):
        place = None if data_dir is None else Path(data_dir)
        dataset = load_shown(console, settings.dataset, place, settings.pictures)
    folder = new_run(recipe, settings.seed) if output is None else Path(output)
    with TrainingDisplay(console) as display:
        results = training.train(
            settings,
            dataset,
            folder,
            recipe=recipe,
            overrides=overrides(settings, began_as),
            observer=display,
        )
    draw_curves(folder)
    return Run(folder, results)


def resume(
    folder: str | Path,
    *,
    dataset: Dataset | None = None,
    data_dir: str | Path | None = None,
    quiet: bool = False,
) -> Run:
    """Goes on with an interrupted run exactly as it began; of a finished one, gives the results.

    Args:
        folder: the run's.
        Others as of `train`; a dataset in memory must be the one it began with.

    Raises:
        SpratError: it is no run's folder, or the data is not what it began with.
    """
    folder, console = Path(folder), make_console(quiet)
    config, _, _ = read_config(folder)
    if dataset is None:
        place = None if data_dir is None else Path(data_dir)
        dataset = load_shown(console, config.dataset, place, config.pictures)
    with TrainingDisplay(console) as display:
        results = training.resume(folder, dataset, observer=display)
    draw_curves(folder)
    return Run(folder, results)
