"""Pictures of runs and data."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from sprat.augment.preview import Row
from sprat.budget import effective_side
from sprat.compare import Entry, pareto_front
from sprat.data.imageset import ImageSet
from sprat.evaluate import calibration_bins, expected_calibration_error, worst_mistakes
from sprat.files import write_whole
from sprat.results import CURVES_FILE, RESULTS_FILE, read_metrics, read_results
from sprat.text import escape, visible

RAW, AVERAGED, TEST = "#1f77b4", "#d95f02", "#222222"
NUMBERED_CLASSES = 20  # beyond which a matrix of numbers cannot be read
LONGEST_NAME = 48  # characters; of a longer one both ends are shown
# A drawing's text is no formula, whatever the user's matplotlibrc says.
_plain_text = rc_context({"text.parse_math": False, "text.usetex": False})


@_plain_text
def draw_curves(run: Path) -> Path:
    """Draws a run's loss, accuracy and learning rate by epoch into its curves.png.

    Raises:
        SpratError: the folder lacks metrics.jsonl or results.json.
    """
    rows, results = read_metrics(run), read_results(run / RESULTS_FILE)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 8), layout="constrained", dpi=110)
    loss, accuracy, lr = figure.subplots(3, sharex=True, height_ratios=[2, 3, 1.3])
    figure.suptitle(
        f"{_name(results['model'])} on {_name(Path(results['dataset']).name)}: "
        f"{_name(results['recipe'])}, seed {results['seed']}"
    )

    loss.plot(epochs, [row["loss"] for row in rows], ".-", color=RAW)
    loss.set_ylabel("training loss")

    judged_on = {
        "val": "held-out training images (val)",
        "probe": "training images, not augmented (probe)",
    }[rows[0]["judged_on"]]
    lines = [
        ("top1", RAW, ".-", "raw weights"),
        ("ema_top1", AVERAGED, ".-", "averaged weights (EMA)"),
    ]
    if rows[0]["judged_on"] == "val":
        lines.append(("probe_top1", TEST, ":", "kept weights, on training images (probe)"))
    for key, color, style, label in lines:
        judged = [(row["epoch"], 100 * row[key]) for row in rows if row.get(key) is not None]
        if judged:
            accuracy.plot(*zip(*judged, strict=True), style, color=color, label=label)
    if results["test"]:
        top1 = 100 * results["test"]["top1"]
        label = f"test set, read once at the end: {top1:.2f} %"
        accuracy.plot(epochs[-1:], [top1], "*", color=TEST, markersize=12, label=label)
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_title(f"on {judged_on}", fontsize="medium")
    accuracy.legend(loc="best")

    lr.plot(epochs, [row["lr"] for row in rows], ".-", color=RAW)
    lr.set_ylabel("learning rate\nat the epoch's end")
    lr.set_xlabel("epoch")
    lr.set_ylim(bottom=0)
    lr.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, accuracy, lr):
        _lighten(axes)
    return _save(figure, run / CURVES_FILE)


@_plain_text
def draw_contact_sheet(dataset: ImageSet, title: str, path: Path, columns: int = 12) -> Path:
    """Draws the first `columns` images of each class as one labelled row a class, as PNG."""
    rows = []
    side = dataset.images.shape[-1]
    for label in range(len(dataset.classes)):
        chosen = (dataset.targets == label).nonzero().flatten()[:columns]
        row = torch.full((columns, 3, side + 2, side + 2), 255, dtype=torch.uint8)
        row[: len(chosen), :, 1:-1, 1:-1] = dataset.images[chosen]
        rows.append(torch.cat(list(row), dim=2))
    sheet = torch.cat(rows, dim=1).permute(1, 2, 0).numpy()

    figure = Figure(figsize=(columns * 0.62 + 1.2, len(rows) * 0.62 + 0.5))
    axes = figure.subplots()
    axes.imshow(sheet, interpolation="nearest")
    axes.set_title(_text(title))
    axes.set_xticks([])
    centres = [(side + 2) * (row + 0.5) for row in range(len(rows))]
    axes.set_yticks(centres, labels=[_name(each) for each in dataset.classes])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _save(figure, path, dpi=130, bbox_inches="tight")


@_plain_text
def draw_preview(rows: Sequence[Row], title: str, path: Path) -> Path:
    """Draws rows of pictures, each with its label, and their captions below them, as PNG."""
    count, _, height, width = rows[0].images.shape
    gap, line = 3, 6  # pixels: between pictures, and for a line of caption
    tops, bottom = [], gap
    for row in rows:
        tops.append(bottom)
        lines = max((caption.count("\n") + 1 for caption in row.captions), default=0)
        bottom += height + gap + lines * line
    sheet = torch.full((bottom, count * (width + gap) + gap, 3), 255, dtype=torch.uint8)
    lefts = [gap + column * (width + gap) for column in range(count)]

    figure = Figure(figsize=(sheet.shape[1] / 34 + 2.2, sheet.shape[0] / 34 + 0.5))
    axes = figure.subplots()
    for row, top in zip(rows, tops, strict=True):
        for left, image in zip(lefts, row.images.permute(0, 2, 3, 1), strict=True):
            sheet[top : top + height, left : left + width] = image
        for left, caption in zip(lefts, row.captions, strict=False):
            text = "\n".join(map(_name, caption.split("\n")))
            axes.text(
                left + width / 2, top + height + 0.5, text, fontsize=6.5, ha="center", va="top"
            )
    axes.imshow(sheet.numpy(), interpolation="nearest")
    axes.set_title(_text(title))
    axes.set_xticks([])
    axes.set_yticks([top + height / 2 for top in tops], labels=[row.label for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _save(figure, path, dpi=130, bbox_inches="tight")


@_plain_text
def draw_confusion(confusion: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> Path:
    """Draws how many images of each class (row) were named what (column), as PNG; mistakes are
    darker the larger their share of the class."""
    counts = torch.tensor(confusion)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    darkest = shares.fill_diagonal_(0).max().item() or 1.0
    inches = 2 + 0.5 * len(classes)
    figure = Figure(figsize=(inches + 0.8, inches), layout="constrained", dpi=90)
    axes = figure.subplots()
    names = [_name(each) for each in classes]
    heat = axes.imshow(shares.numpy(), cmap="Oranges", vmin=0, vmax=darkest)
    figure.colorbar(heat, ax=axes, shrink=0.8, label="named wrongly, % of the class")
    axes.set_xticks(range(len(classes)), labels=names, rotation=45, ha="right")
    axes.set_yticks(range(len(classes)), labels=names)
    axes.set_xlabel("named")
    axes.set_ylabel("is")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if len(classes) <= NUMBERED_CLASSES:
        for row, column in itertools.product(range(len(classes)), repeat=2):
            hit, dark = row == column, shares[row, column].item() > 0.6 * darkest
            axes.text(
                column,
                row,
                f"{counts[row, column]:,}" if hit or counts[row, column] else "",
                ha="center",
                va="center",
                fontweight="bold" if hit else "normal",
                color="white" if dark else TEST,
            )
    return _save(figure, path)


@_plain_text
def draw_calibration(probabilities: Tensor, targets: Tensor, path: Path) -> Path:
    """Draws accuracy by confidence, and how many images have which confidence, as PNG.

    Args:
        probabilities: N x K. targets: int64, N.
    """
    counts, confidences, hits = calibration_bins(probabilities, targets)
    edges = torch.linspace(0, 100, len(counts) + 1)[:-1]
    some = counts > 0
    width = 100 / len(counts)
    left = edges[some].numpy()
    figure = Figure(figsize=(6, 6.4), layout="constrained", dpi=90)
    accuracy, number = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    right = (100 * hits / counts)[some].numpy()
    accuracy.bar(left, right, width, align="edge", color=RAW, ec="white", label="named rightly")
    accuracy.plot([0, 100], [0, 100], ":", color=TEST, label="as often as it is sure")
    accuracy.plot(
        (100 * confidences / counts)[some].numpy(),
        right,
        "o",
        color=AVERAGED,
        label="at its mean confidence",
    )
    error = 100 * expected_calibration_error(probabilities, targets)
    accuracy.set_title(f"calibration error (ECE) {error:.2f} %", fontsize="medium")
    accuracy.set_ylabel("accuracy, %")
    accuracy.legend(loc="upper left")
    number.bar(left, counts[some].numpy(), width, align="edge", color="#999999", ec="white")
    number.set_ylabel("images")
    number.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    number.set_xlabel("confidence, %")
    number.set_xlim(0, 100)
    for axes in (accuracy, number):
        _lighten(axes)
    return _save(figure, path)


def draw_mistakes(
    dataset: ImageSet,
    probabilities: Tensor,
    title: str,
    path: Path,
    columns: int = 8,
    lines: int = 3,
) -> Path:
    """Draws the wrong answers given with the most confidence, the most first, each with what it
    is, what was said and how sure that was, as PNG.

    Args:
        probabilities: N x K, of the images of `dataset`.
    """
    confidence, predictions = probabilities.max(1)
    chosen = worst_mistakes(probabilities, dataset.targets, columns * lines)
    captions = [
        f"is {visible(dataset.classes[int(dataset.targets[number])])}\n"
        f"said {visible(dataset.classes[int(predictions[number])])}\n"
        f"{100 * confidence[number]:.1f} % sure"
        for number in chosen.tolist()
    ]
    images = torch.full((columns * lines, *dataset.images.shape[1:]), 255, dtype=torch.uint8)
    images[: len(chosen)] = dataset.images[chosen]
    rows = [
        Row("", images[first : first + columns], captions[first : first + columns])
        for first in range(0, len(images), columns)
    ]
    return draw_preview(rows, title, path)


@_plain_text
def draw_effective_field(
    field: Tensor, receptive_field: int, image_side: int, title: str, path: Path
) -> Path:
    """Draws an effective receptive field, with the largest it could be and an image's size, as
    PNG.

    Args:
        field: side x side, at most 1. receptive_field, image_side: pixels.
    """
    side = len(field)
    figure = Figure(figsize=(6.6, 6), layout="constrained", dpi=110)
    axes = figure.subplots()
    heat = axes.imshow(field.sqrt().numpy(), cmap="magma", interpolation="nearest", vmin=0, vmax=1)
    figure.colorbar(heat, ax=axes, label="magnitude of the gradient, square root of its share")
    squares = [
        (receptive_field, "white", "--", f"receptive field, {receptive_field} px"),
        (image_side, "#7fd4ff", "-", f"the image, {image_side} px"),
        (effective_side(field), "#9be37f", ":", f"effective, {effective_side(field):.0f} px"),
    ]
    for size, color, style, label in squares:
        corner = side // 2 - size / 2
        axes.add_patch(
            Rectangle((corner, corner), size, size, fill=False, ec=color, ls=style, label=label)
        )
    figure.legend(loc="outside lower center", ncols=3, facecolor="#333333", labelcolor="white")
    axes.set_title(_text(title))
    axes.set_xlabel("pixels")
    return _save(figure, path)


@_plain_text
def draw_comparison(entries: Sequence[Entry], path: Path) -> Path:
    """Draws accuracy against parameters (log scale) with the Pareto front, as PNG."""
    figure = Figure(figsize=(10, 6.5), dpi=110)
    axes = figure.subplots()
    axes.set_xscale("log")
    if len(costs := {entry.parameters for entry in entries}) == 1:  # no span to take a margin of
        axes.set_xlim(0.5 * min(costs), 2 * min(costs))
    looks: dict[str, dict[str, Any]] = {
        "measured by sprat, on the test set": {"color": RAW, "marker": "o"},
        "measured by sprat, on val": {"color": RAW, "marker": "o", "markerfacecolor": "white"},
        "published": {"color": "#777777", "marker": "s"},
        "claimed": {"color": "#c33c3c", "marker": "x"},
    }
    for label, look in looks.items():
        drawn = [entry for entry in entries if _look_of(entry) == label]
        if drawn:
            reach = [_spread_of(entry) for entry in drawn]
            axes.errorbar(
                [entry.parameters for entry in drawn],
                [100 * entry.top1 for entry in drawn],
                yerr=[[100 * below for below, _ in reach], [100 * above for _, above in reach]],
                linestyle="",
                capsize=2,
                label=label,
                **look,
            )
    front = pareto_front(entries)
    axes.step(
        [entry.parameters for entry in front],
        [100 * entry.top1 for entry in front],
        where="post",
        color="#333333",
        linewidth=1,
        zorder=0,
        label="Pareto front",
    )
    axes.margins(x=0.12, y=0.08)
    axes.set_xlabel("parameters")
    axes.set_ylabel("accuracy, %")
    axes.xaxis.set_major_formatter(_Thousands())
    axes.xaxis.set_minor_formatter(_Thousands())
    axes.set_title(
        "Accuracy for parameters. Bars: standard deviation over seeds, or the 95 % interval of one "
        "run",
        fontsize="medium",
    )
    axes.legend(loc="lower right")
    _lighten(axes)
    figure.tight_layout()
    names = [(entry.parameters, 100 * entry.top1, _name(entry.name)) for entry in entries]
    _label_apart(axes, names)
    return _save(figure, path)


class _Thousands(LogFormatter):
    """Labels what matplotlib would label on a log scale, as 200,000 rather than a formula."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        return f"{x:,.0f}" if super().__call__(x, pos) else ""


def _look_of(entry: Entry) -> str:
    if entry.standing != "measured":
        return entry.standing
    return f"measured by sprat, on {'the test set' if entry.split == 'test' else 'val'}"


def _spread_of(entry: Entry) -> tuple[float, float]:
    if entry.std is not None:
        return entry.std, entry.std
    if entry.ci95 is not None:
        below, above = entry.top1 - entry.ci95[0], entry.ci95[1] - entry.top1
        return max(below, 0), max(above, 0)  # rounding may put 0 % below its interval
    return 0, 0


def _label_apart(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Writes each point's label beside it, where it covers no other label or point."""
    assert isinstance(axes.figure, Figure)
    renderer = FigureCanvasAgg(axes.figure).get_renderer()  # type: ignore[no-untyped-call]
    pixel = axes.figure.dpi / 72
    taken = [
        Bbox.from_bounds(x - 4, y - 4, 8, 8)
        for x, y in axes.transData.transform([(x, y) for x, y, _ in points])
    ]
    for x, y, text in points:
        label = axes.annotate(
            text,
            (x, y),
            (7, 0),
            textcoords="offset points",
            fontsize=7.5,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.8},
        )
        own = label.get_window_extent(renderer)
        rises = sorted((step * 9 for step in range(-7, 8)), key=abs)
        for rise, side in itertools.product(rises, (7, -7 - own.width / pixel)):
            box = own.translated((side - 7) * pixel, rise * pixel)
            if not any(box.overlaps(other) for other in taken):
                break
        label.set_position((side, rise))
        taken.append(box)


def _name(text: object) -> str:
    """A name or a path in one line that leaves place for the drawing."""
    line = _text(text)
    half = LONGEST_NAME // 2
    return line if len(line) <= LONGEST_NAME else f"{line[: half - 1]}…{line[-half:]}"


def _text(text: object) -> str:
    """Text in one line, with escapes for what the user's fonts lack too: boxes say nothing."""
    families = rcParams["font.family"]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return "".join(
        each if any(font.get_char_index(ord(each)) for font in fonts) else escape(each)
        for each in visible(text)
    )


def _lighten(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, **how: Any) -> Path:
    """Writes a figure as PNG, whole or not at all."""
    png = io.BytesIO()
    figure.savefig(png, format="png", **how)
    write_whole(path, png.getvalue())
    return path
