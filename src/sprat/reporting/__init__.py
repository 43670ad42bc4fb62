"""Report of a finished run: one HTML page that needs no network, no script and no other file."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from sprat import __version__
from sprat.budget import Summary, summarize
from sprat.data import caution_for
from sprat.data.imageset import ImageSet, to_channels
from sprat.errors import SpratError
from sprat.evaluation.evaluate import wilson_interval
from sprat.evaluation.explain import in_words
from sprat.evaluation.records import (
    RESULTS_FILE,
    EpochRow,
    Evaluation,
    RunResult,
    Split,
    evaluation_of,
    read_metrics,
    read_results,
)
from sprat.figures.data import (
    NUMBERED_CLASSES,
    Mistake,
    calibration,
    confusion,
    curves,
    worst_mistakes,
)
from sprat.figures.overlay import overlay
from sprat.figures.svg import curve_charts, reliability_diagram
from sprat.files import write_whole
from sprat.models import draft_network
from sprat.names import check_one_run, check_page
from sprat.run_folder import CONFIG_FILE, read_config
from sprat.settings.config import IN_EPOCHS, RUN_FIELDS, Config, flatten
from sprat.settings.recipes import recipe_names
from sprat.text import command, visible

REPORT_FILE = "report.html"
MISTAKES = 24  # pictures at most
MISTAKES_BYTES = 400_000  # of their pixels at most, so that a page stays under 1 MB
MAP_SIDE = 64  # pixels at most; a mistake's map is shown small
PAIRS = 10  # of confused classes, listed at most


@dataclass(frozen=True)
class Run:
    """The records in the folder of a finished run."""

    folder: Path
    config: Config
    recipe: str
    overrides: dict[str, Any]
    metrics: list[EpochRow]
    results: RunResult

    @property
    def split(self) -> Split:
        """The part that the run was evaluated on at its end."""
        return evaluation_of(self.results)[0]

    @property
    def evaluation(self) -> Evaluation:
        """The final evaluation, with the number of views, which older runs did not record."""
        _, evaluation = evaluation_of(self.results)
        return {"tta_views": self.config.tta, **evaluation}


@dataclass(frozen=True)
class Answers:
    """Predictions of a run's model for the images that the run was evaluated on."""

    images: ImageSet
    probabilities: Tensor
    """N x K, float32."""
    maps: Callable[[Tensor, Sequence[int]], tuple[Tensor, Tensor]] | str
    """The `ActivationMaps` of the model, or why it has none."""


@dataclass(frozen=True)
class Shown:
    """A mistake on the page."""

    mistake: Mistake
    map: Tensor | None = None
    """The picture in grey, overlaid with the map of the predicted class: uint8, 3 x H x W."""
    where: str = ""
    """The map in words."""


def read_run(folder: Path) -> Run:
    """Return the records in a finished run's folder.

    Raises:
        SpratError: the folder is missing, is not that of one finished run, or a file in it is
            damaged.
    """
    if not folder.is_dir():
        raise SpratError(f"There is no folder {folder}. Name the folder of a finished run.")
    if not (folder / CONFIG_FILE).exists():
        check_one_run(folder)
    elif not (folder / RESULTS_FILE).exists():
        raise SpratError(
            f"{folder} has no {RESULTS_FILE}, so the run is not finished. Resume it with "
            f"{command('sprat', 'train', '--resume', folder)}"
        )
    results = read_results(folder / RESULTS_FILE)
    config, recipe, overrides = read_config(folder)
    return Run(folder, config, recipe, overrides, read_metrics(folder), results)


def check_output(run: Run, output: Path | None, overwrite: bool) -> Path:
    """Return the path of the page: `output`, or the one in the run's folder, which is replaced.

    Raises:
        SpratError: `output` does not end in .html, or is another file that may not be replaced.
    """
    own = run.folder / REPORT_FILE
    return check_page(own if output is None else output, overwrite, may_replace=own)


def write_report(run: Run, path: Path, answers: Answers | str) -> None:
    """Write the page.

    Args:
        answers: predictions of the run's model, or why there are none.

    Raises:
        SpratError: a file of the run is damaged, or the page cannot be written.
    """
    environment = make_environment()
    environment.filters |= {
        "points": lambda share: f"{100 * share:.2f}",
        "kib": lambda size: f"{size / 1024:,.1f}\N{NO-BREAK SPACE}KiB",
        "duration": _duration,
    }
    try:
        page = environment.get_template("page.html").render(_contents(run, answers))
    except SpratError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise SpratError(
            f"{run.folder} is not a run of sprat, or a file in it is damaged: {error}. Name the "
            "folder of a finished run."
        ) from error
    write_whole(path, page)


def make_environment() -> Environment:
    """Return the Jinja environment of all pages, which escapes every value."""
    environment = Environment(
        loader=PackageLoader("sprat", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "png": _png,
        "percent": lambda share: f"{100 * share:.2f}\N{NO-BREAK SPACE}%",
        "number": lambda count: f"{count:,}",
    }
    return environment


def _contents(run: Run, answers: Answers | str) -> dict[str, Any]:
    """Return the variables of the template."""
    evaluation, confused = run.evaluation, confusion(run.evaluation)
    calibrated = diagram = mistakes = unexplained = None
    if isinstance(answers, Answers):
        calibrated = calibration(answers.probabilities, answers.images.targets)
        diagram = reliability_diagram(calibrated)
        mistakes = _mistakes(answers)
        unexplained = answers.maps if isinstance(answers.maps, str) else None
    return {
        "run": run,
        "results": run.results,
        "caution": caution_for(run.results["dataset"]),
        "evaluation": evaluation,
        "split": run.split,
        "cost": _cost(run),
        "charts": curve_charts(curves(run.metrics, run.results)),
        "classes": _classes(evaluation),
        "confusion": confused,
        "with_matrix": len(confused.classes) <= NUMBERED_CLASSES,
        "pairs": confused.pairs[:PAIRS],
        "calibration": calibrated,
        "diagram": diagram,
        "mistakes": mistakes,
        "unexplained": unexplained,
        "missing": " ".join(answers.split("\n")) if isinstance(answers, str) else None,
        "settings": _settings(run.config.to_dict()),
        "command": _command(run),
        "config_file": ascii(str(run.folder / CONFIG_FILE)),
        "dataset": Path(run.results["dataset"]).name,  # own pictures are named by their path
        "version": __version__,
    }


def _mistakes(answers: Answers) -> list[Shown]:
    """Return the worst mistakes, as many as the page has room for, each with its map if there is
    one."""
    shape = answers.images.images.shape[1:]
    side = min(shape[-1], MAP_SIDE)
    room = shape.numel() + (0 if isinstance(answers.maps, str) else 3 * side**2)
    most = min(MISTAKES, MISTAKES_BYTES // room)
    mistakes = worst_mistakes(answers.images, answers.probabilities, most)
    if isinstance(answers.maps, str) or not mistakes:
        return [Shown(mistake) for mistake in mistakes]
    numbers = [mistake.number for mistake in mistakes]
    images = torch.stack([mistake.image for mistake in mistakes])
    _, maps = answers.maps(images, answers.probabilities[numbers].argmax(1).tolist())
    small = interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    return [
        Shown(mistake, overlay(picture, each), in_words(each))
        for mistake, picture, each in zip(mistakes, small, maps, strict=True)
    ]


def _cost(run: Run) -> Summary:
    classes, channels = len(run.evaluation["per_class"]), run.results.get("channels", 3)
    network = draft_network(run.config.network, classes, channels)
    return summarize(network, run.results.get("side", 32))


def _classes(evaluation: Evaluation) -> list[dict[str, Any]]:
    """Return each class's accuracy with its 95 % interval, None if there is no image of it."""
    rows = []
    for label, ((name, share), counts) in enumerate(
        zip(evaluation["per_class"].items(), evaluation["confusion"], strict=True)
    ):
        n = sum(counts)
        interval = wilson_interval(counts[label], n) if n else None
        rows.append({"name": name, "top1": share, "interval": interval, "n": n})
    return rows


def _png(image: Tensor) -> str:
    """Return an image (uint8, C x H x W) as PNG in base64."""
    file = io.BytesIO()
    Image.fromarray(to_channels(image, 3).permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _settings(values: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return settings by table and full name, those outside any table first."""
    tables: dict[str, dict[str, str]] = {"": {}}
    for name, value in values.items():
        if isinstance(value, dict):
            tables[name] = {f"{name}.{key}": _text(inner) for key, inner in value.items()}
        else:
            tables[""][name] = _text(value)
    return tables


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _command(run: Run) -> str | None:
    """Return the command that repeats the run, or None if its settings came from Python."""
    if run.recipe not in recipe_names() and not run.recipe.endswith(".toml"):
        return None
    settings = {name: getattr(run.config, name) for name in sorted(RUN_FIELDS | {"precision"})}
    if not run.config.folds:
        del settings["fold"], settings["folds"]
    if "epochs" in run.overrides:  # older versions recorded the recipe's values
        settings |= {name: flatten(run.config.to_dict())[name] for name in IN_EPOCHS}
    words = ["sprat", "train", "--recipe", run.recipe]
    for name, value in (settings | run.overrides).items():
        words += _option(name, value)
    return command(*words)


def _option(name: str, value: Any) -> list[str]:
    """Return a setting as an option: --optim.lr 0.4, --final, --optim.no-nesterov."""
    *tables, key = name.replace("_", "-").split(".")
    if value is False:
        key = f"no-{key}"
    words = ["--" + ".".join([*tables, key])]
    if not isinstance(value, bool):
        words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _shown(value: Any) -> Any:
    """Return a value as the page shows it: text with escapes for invisible characters."""
    return visible(value) if type(value) is str else value


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
