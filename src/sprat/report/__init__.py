"""One HTML page about a finished run, which needs no network, no script and no other file."""

import base64
import io
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError
from PIL import Image
from torch import Tensor

from sprat import __version__
from sprat.budget import Summary, summarize
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.evaluate import (
    calibration_bins,
    expected_calibration_error,
    top1,
    wilson_interval,
    worst_mistakes,
)
from sprat.files import write_whole
from sprat.models import draft_network
from sprat.report.charts import Box, Frame, Line, box, frame, line
from sprat.results import CONFIG_FILE, RESULTS_FILE, read_config, read_metrics, read_results
from sprat.settings.config import IN_EPOCHS, RUN_FIELDS, Config, flatten
from sprat.settings.recipes import recipe_names
from sprat.text import command, visible

REPORT_FILE = "report.html"
MISTAKES = 24  # pictures at most
MISTAKES_BYTES = 400_000  # of their pixels at most, so that a page stays under 1 MB
MATRIX_CLASSES = 20  # beyond which a matrix of numbers cannot be read
CONFUSED = 10  # pairs of classes that are listed


@dataclass(frozen=True)
class Run:
    """What the folder of a finished run says of it."""

    folder: Path
    config: Config
    recipe: str
    overrides: dict[str, Any]
    metrics: list[dict[str, Any]]
    results: dict[str, Any]

    @property
    def split(self) -> str:
        """What it was judged on, "test" or "val"."""
        return "test" if self.results["final"] else "val"

    @property
    def judged(self) -> dict[str, Any]:
        """The judgement on it."""
        return {"tta_views": self.config.tta} | self.results[self.split]


@dataclass(frozen=True)
class Answers:
    """What a run's model says of the images that it was judged on: N x K, float32."""

    images: ImageSet
    probabilities: Tensor


@dataclass(frozen=True)
class Chart:
    """Lines over epochs. `text`: what they show, in words."""

    title: str
    frame: Frame
    lines: tuple[Line, ...]
    text: str


@dataclass(frozen=True)
class Calibration:
    """Accuracy by confidence, bin by bin. marks: at the mean confidence."""

    accuracy: Frame
    hits: tuple[Box, ...]
    marks: tuple[Box, ...]
    histogram: Frame
    counts: tuple[Box, ...]
    top1: float
    ece: float
    rows: tuple[tuple[str, int, float, float], ...]


@dataclass(frozen=True)
class Mistake:
    """A picture that was named wrongly. number: its place among those judged, from 0."""

    number: int
    png: str  # base64
    truth: str
    answer: str
    probability: float


def read_run(folder: Path) -> Run:
    """What a finished run's folder holds.

    Raises:
        SpratError: it is none, is not finished, holds several seeds, or a file is damaged.
    """
    if not folder.is_dir():
        raise SpratError(f"there is no folder {folder}; name the folder of a finished run")
    if not (folder / RESULTS_FILE).exists():
        seeds = sorted(path.parent.name for path in folder.glob(f"seed-*/{RESULTS_FILE}"))
        if seeds:
            raise SpratError(
                f"{folder} holds several seeds; name one of them: {folder / seeds[0]} "
                f"({', '.join(seeds)})"
            )
        if (folder / CONFIG_FILE).exists():
            raise SpratError(
                f"{folder} has no {RESULTS_FILE}, so the run is not finished; go on with "
                f"{command('sprat', 'train', '--resume', folder)}"
            )
    results = read_results(folder / RESULTS_FILE)
    config, recipe, overrides = read_config(folder)
    return Run(folder, config, recipe, overrides, read_metrics(folder), results)


def check_output(run: Run, output: Path | None, overwrite: bool) -> Path:
    """Where the page goes: into the run's folder, where it is written anew each time, or to
    `output`.

    Raises:
        SpratError: `output` is no name of a page, or another file that may not be replaced.
    """
    own = run.folder / REPORT_FILE
    path = own if output is None else output
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpratError(f"--output is {path}, expected a name that ends in .html")
    if path.exists() and not overwrite and path.resolve() != own.resolve():
        raise SpratError(
            f"{path} exists already and is not overwritten; give another --output, or --overwrite"
        )
    return path


def write_report(run: Run, path: Path, answers: Answers | str) -> None:
    """Writes the page.

    Args:
        answers: or why there are none.

    Raises:
        SpratError: a file of the run lacks what the page says.
    """
    environment = Environment(
        loader=PackageLoader("sprat", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda share: f"{100 * share:.2f}\N{NO-BREAK SPACE}%",
        "points": lambda share: f"{100 * share:.2f}",
        "number": lambda count: f"{count:,}",
        "kib": lambda size: f"{size / 1024:,.1f}\N{NO-BREAK SPACE}KiB",
        "duration": _duration,
    }
    try:
        page = environment.get_template("page.html").render(_contents(run, answers))
    except SpratError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, UndefinedError) as error:
        raise SpratError(
            f"{run.folder} is no run of sprat's, or a file in it is damaged: {error}"
        ) from error
    write_whole(path, page)


def _contents(run: Run, answers: Answers | str) -> dict[str, Any]:
    """Everything that the template names."""
    judged = run.judged
    seen = None if isinstance(answers, str) else answers
    return {
        "run": run,
        "results": run.results,
        "judged": judged,
        "split": run.split,
        "cost": _cost(run),
        "charts": _charts(run),
        "classes": _classes(judged),
        "matrix": _matrix(judged) if len(judged["per_class"]) <= MATRIX_CLASSES else None,
        "confused": _confused(judged),
        "calibration": _calibration(seen) if seen else None,
        "mistakes": _mistakes(seen) if seen else None,
        "missing": None if seen else " ".join(str(answers).split("\n")),
        "settings": _settings(run.config.to_dict()),
        "command": _command(run),
        "folder": ascii(str(run.folder)),
        "dataset": Path(run.results["dataset"]).name,  # own pictures are named by their path
        "version": __version__,
    }


def _cost(run: Run) -> Summary:
    network = draft_network(run.results["model"], len(run.judged["per_class"]))
    return summarize(network, run.results.get("side", 32))


def _charts(run: Run) -> tuple[Chart, ...]:
    """Loss, accuracy and learning rate by epoch."""
    kept_average = run.config.weights == "ema"
    raw = ("raw weights", "other" if kept_average else "kept")
    averaged = ("averaged weights (EMA)", "kept" if kept_average else "other")
    on = "val" if run.metrics[0]["judged_on"] == "val" else "training images"
    accuracies = {"top1": raw, "ema_top1": averaged}
    if on == "val":
        accuracies["probe_top1"] = ("kept weights, on training images", "probe")
    return (
        _chart(run, "Training loss", {"loss": ("loss", "kept")}, "{:.4f}"),
        _chart(run, f"Accuracy on {on}, %", accuracies, "{:.2f} %", factor=100),
        _chart(run, "Learning rate", {"lr": ("at the epoch's end", "kept")}, "{:.4g}", low=0),
    )


def _chart(
    run: Run,
    title: str,
    series: dict[str, tuple[str, str]],
    form: str,
    factor: float = 1,
    low: float | None = None,
) -> Chart:
    """One chart of metrics: of each key its name and look, where there is any value of it.

    form: how values are told. low: where their axis begins; by default about at their least.
    """
    found = {
        named: [
            (float(row["epoch"]), factor * row[key])
            for row in run.metrics
            if row.get(key) is not None
        ]
        for key, named in series.items()
    }
    found = {named: points for named, points in found.items() if points}
    values = [value for points in found.values() for _, value in points]
    first, last = run.metrics[0]["epoch"], run.metrics[-1]["epoch"]
    axes = frame((first, last), (min(values) if low is None else low, max(values)), x_whole=True)
    lines = tuple(line(axes, *named, points, form) for named, points in found.items())
    said = "; ".join(
        f"{name} from {form.format(points[0][1])} to {form.format(points[-1][1])}"
        for (name, _), points in found.items()
    )
    return Chart(title, axes, lines, f"{title}, by epoch, {first} to {last}: {said}")


def _classes(judged: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each class its accuracy with the 95 % interval, None if there is no image of it."""
    rows = []
    for label, (name, counts) in enumerate(
        zip(judged["per_class"], judged["confusion"], strict=True)
    ):
        n = sum(counts)
        interval = wilson_interval(counts[label], n) if n else None
        share = judged["per_class"][name]
        rows.append({"name": name, "top1": share, "interval": interval, "n": n})
    return rows


def _matrix(judged: dict[str, Any]) -> list[dict[str, Any]]:
    """The confusion matrix: of each truth the counts by answer, with how dark each is drawn, 0 to
    1: mistakes by their share of the class beside the greatest such share, hits not at all."""
    confusion = judged["confusion"]
    shares = [[count / max(sum(row), 1) for count in row] for row in confusion]
    for label, row in enumerate(shares):
        row[label] = 0.0
    most = max(map(max, shares)) or 1.0
    return [
        {
            "name": name,
            "cells": [
                {"count": count, "hit": answer == truth, "heat": round(share / most, 3)}
                for answer, (count, share) in enumerate(zip(counts, row, strict=True))
            ],
        }
        for truth, (name, counts, row) in enumerate(
            zip(judged["per_class"], confusion, shares, strict=True)
        )
    ]


def _confused(judged: dict[str, Any]) -> list[dict[str, Any]]:
    """The most frequent confusions, the most frequent first."""
    names, confusion = list(judged["per_class"]), judged["confusion"]
    pairs = [
        {"truth": names[i], "answer": names[j], "count": confusion[i][j], "n": sum(confusion[i])}
        for i, j in itertools.permutations(range(len(names)), 2)
        if confusion[i][j]
    ]
    return sorted(pairs, key=lambda pair: -pair["count"])[:CONFUSED]


def _calibration(answers: Answers) -> Calibration:
    targets = answers.images.targets
    counts, confidences, hits = (
        values.tolist() for values in calibration_bins(answers.probabilities, targets)
    )
    width = 100 / len(counts)
    square = frame((0, 100), (0, 100), height=320)
    low = frame((0, 100), (0, max(counts)), height=130, y_parts=3)
    right, marks, many, rows = [], [], [], []
    for place, (n, sum_confidence, hit) in enumerate(zip(counts, confidences, hits, strict=True)):
        if not n:
            continue
        span = (place * width, (place + 1) * width)
        name = f"{span[0]:.0f} to {span[1]:.0f} %"
        accuracy, confidence = 100 * hit / n, 100 * sum_confidence / n
        said = f"{name}: {n:,.0f} images, confidence {confidence:.1f} %, accuracy {accuracy:.1f} %"
        right.append(box(square, span, (0, accuracy), said))
        marks.append(box(square, span, (confidence, confidence), said))
        many.append(box(low, span, (0, n), said))
        rows.append((name, int(n), confidence, accuracy))
    return Calibration(
        accuracy=square,
        hits=tuple(right),
        marks=tuple(marks),
        histogram=low,
        counts=tuple(many),
        top1=top1(answers.probabilities, targets),
        ece=expected_calibration_error(answers.probabilities, targets),
        rows=tuple(rows),
    )


def _mistakes(answers: Answers) -> list[Mistake]:
    """The wrong answers given with the most confidence, the most first."""
    images = answers.images
    confidence, predictions = answers.probabilities.max(1)
    pixels = images.images.shape[1:].numel()
    most = min(MISTAKES, MISTAKES_BYTES // pixels)
    chosen = worst_mistakes(answers.probabilities, images.targets, most)
    return [
        Mistake(
            number=number,
            png=_png(image),
            truth=images.classes[int(images.targets[number])],
            answer=images.classes[int(predictions[number])],
            probability=confidence[number].item(),
        )
        for number, image in zip(chosen.tolist(), images.images[chosen], strict=True)
    ]


def _png(image: Tensor) -> str:
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _settings(values: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Tables of settings by their full names; those outside any table first."""
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
    """What trains such a run again; None if its settings came from no recipe's file."""
    if run.recipe not in recipe_names() and not run.recipe.endswith(".toml"):
        return None
    settings = {name: getattr(run.config, name) for name in sorted(RUN_FIELDS | {"precision"})}
    if "epochs" in run.overrides:  # an older sprat kept them as the recipe has them
        settings |= {name: flatten(run.config.to_dict())[name] for name in IN_EPOCHS}
    words = ["sprat", "train", "--recipe", run.recipe]
    for name, value in (settings | run.overrides).items():
        words += _option(name, value)
    return command(*words)


def _option(name: str, value: Any) -> list[str]:
    """A setting as it is typed: --optim.lr 0.4, --final, --optim.no-nesterov."""
    *tables, key = name.replace("_", "-").split(".")
    if value is False:
        key = f"no-{key}"
    words = ["--" + ".".join([*tables, key])]
    if not isinstance(value, bool):
        words += map(str, value) if isinstance(value, list) else [str(value)]
    return words


def _shown(value: Any) -> Any:
    """What the page says for a value: text as it is, and what would not be seen as escapes."""
    return visible(value) if type(value) is str else value


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} seconds"
    return f"{seconds / 60:.1f} minutes" if seconds < 3600 else f"{seconds / 3600:.1f} hours"
