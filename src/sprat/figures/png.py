"""Figures as PNG, drawn with matplotlib."""

import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps, rc_context, rcParams
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogFormatter, StrMethodFormatter
from matplotlib.transforms import Bbox
from torch import Tensor

from sprat.augment.preview import Row
from sprat.budget import effective_side
from sprat.data.imageset import ImageSet, to_channels
from sprat.evaluation.compare import Entry, pareto_front
from sprat.evaluation.explain import Explanation
from sprat.figures.data import (
    NUMBERED_CLASSES,
    Calibration,
    Confusion,
    CurveKey,
    Mistake,
    read_curves,
)
from sprat.figures.overlay import blended, overlay
from sprat.files import write_whole
from sprat.run_folder import CURVES_FILE
from sprat.text import escape, visible

RAW, AVERAGED, TEST = "#1f77b4", "#d95f02", "#222222"
LOOKS: dict[CurveKey, tuple[str, str]] = {  # colour and line style of the curves of accuracy
    "top1": (RAW, ".-"),
    "ema_top1": (AVERAGED, ".-"),
    "probe_top1": (TEST, ":"),
}
ON = {
    "val": "held-out training images (val)",
    "probe": "training images, not augmented (probe)",
}
LONGEST_NAME = 48  # characters; only the ends of a longer name are shown
# Text is never parsed as a formula, whatever the user's matplotlibrc says.
_plain_text = rc_context({"text.parse_math": False, "text.usetex": False})


@_plain_text
def draw_curves(run: Path) -> Path:
    """Draw loss, accuracy and learning rate of a run by epoch into its curves.png.

    Raises:
        SpratError: metrics.jsonl or results.json is missing or damaged.
    """
    curves = read_curves(run)
    figure = Figure(figsize=(8, 8), layout="constrained", dpi=110)
    loss, accuracy, lr = figure.subplots(3, sharex=True, height_ratios=[2, 3, 1.3])
    figure.suptitle(
        f"{_name(curves.model)} on {_name(curves.dataset)}: {_name(curves.recipe)}, "
        f"seed {curves.seed}"
    )

    loss.plot(*zip(*curves.loss.points, strict=True), ".-", color=RAW)
    loss.set_ylabel("training loss")

    for curve in curves.accuracy:
        color, style = LOOKS[curve.key]
        epochs, shares = zip(*curve.points, strict=True)
        percent = [100 * share for share in shares]
        accuracy.plot(epochs, percent, style, color=color, label=curve.name)
    if curves.test_top1 is not None:
        top1 = 100 * curves.test_top1
        label = f"test set, read once at the end: {top1:.2f} %"
        accuracy.plot(curves.epochs[1:], [top1], "*", color=TEST, markersize=12, label=label)
    accuracy.set_ylabel("accuracy, %")
    accuracy.set_title(f"on {ON[curves.on]}", fontsize="medium")
    accuracy.legend(loc="best")

    lr.plot(*zip(*curves.learning_rate.points, strict=True), ".-", color=RAW)
    lr.set_ylabel(f"learning rate\n{curves.learning_rate.name}")
    lr.set_xlabel("epoch")
    lr.set_ylim(bottom=0)
    lr.xaxis.get_major_locator().set_params(integer=True)
    for axes in (loss, accuracy, lr):
        _lighten(axes)
    return _save(figure, run / CURVES_FILE)


@_plain_text
def draw_contact_sheet(dataset: ImageSet, title: str, path: Path, columns: int = 12) -> Path:
    """Draw the first `columns` images of each class as PNG, one labelled row per class."""
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
    """Draw labelled rows of pictures with captions below them, as PNG."""
    count, _, height, width = rows[0].images.shape
    gap, line = 3, 6  # pixels between pictures, and per line of caption
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
def draw_confusion(confusion: Confusion, path: Path) -> Path:
    """Draw a confusion matrix as PNG; mistakes are darker the larger their share of the class."""
    count = len(confusion.classes)
    darkest = confusion.largest_share
    inches = 2 + 0.5 * count
    figure = Figure(figsize=(inches + 0.8, inches), layout="constrained", dpi=90)
    axes = figure.subplots()
    names = [_name(each) for each in confusion.classes]
    percent = [[100 * share for share in row] for row in confusion.shares]
    heat = axes.imshow(percent, cmap="Oranges", vmin=0, vmax=100 * darkest)
    figure.colorbar(heat, ax=axes, shrink=0.8, label="mistakes, % of the class")
    axes.set_xticks(range(count), labels=names, rotation=45, ha="right")
    axes.set_yticks(range(count), labels=names)
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if count <= NUMBERED_CLASSES:
        for row, column in itertools.product(range(count), repeat=2):
            hit, dark = row == column, confusion.shares[row][column] > 0.6 * darkest
            number = confusion.counts[row][column]
            axes.text(
                column,
                row,
                f"{number:,}" if hit or number else "",
                ha="center",
                va="center",
                fontweight="bold" if hit else "normal",
                color="white" if dark else TEST,
            )
    return _save(figure, path)


@_plain_text
def draw_calibration(calibration: Calibration, path: Path) -> Path:
    """Draw accuracy and the number of images by confidence, as PNG."""
    bins = calibration.bins
    left, widths = [100 * b.low for b in bins], [100 * (b.high - b.low) for b in bins]
    shares = [100 * b.accuracy for b in bins]
    figure = Figure(figsize=(6, 6.4), layout="constrained", dpi=90)
    accuracy, number = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    accuracy.bar(left, shares, widths, align="edge", color=RAW, ec="white", label="accuracy")
    accuracy.plot([0, 100], [0, 100], ":", color=TEST, label="perfect calibration")
    accuracy.plot(
        [100 * b.confidence for b in bins],
        shares,
        "o",
        color=AVERAGED,
        label="at the bin's mean confidence",
    )
    accuracy.set_title(f"calibration error (ECE) {100 * calibration.ece:.2f} %", fontsize="medium")
    accuracy.set_ylabel("accuracy, %")
    accuracy.legend(loc="upper left")
    number.bar(left, [b.n for b in bins], widths, align="edge", color="#999999", ec="white")
    number.set_ylabel("images")
    number.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    number.set_xlabel("confidence, %")
    number.set_xlim(0, 100)
    for axes in (accuracy, number):
        _lighten(axes)
    return _save(figure, path)


def draw_mistakes(mistakes: Sequence[Mistake], title: str, path: Path, columns: int = 8) -> Path:
    """Draw mistakes as PNG, in rows of `columns`, each with true class, predicted class and
    confidence."""
    captions = [
        f"true: {visible(mistake.truth)}\n"
        f"predicted: {visible(mistake.answer)}\n"
        f"confidence {100 * mistake.confidence:.1f} %"
        for mistake in mistakes
    ]
    shape = mistakes[0].image.shape if mistakes else (3, 32, 32)
    count = columns * max(1, math.ceil(len(mistakes) / columns))
    images = torch.full((count, *shape), 255, dtype=torch.uint8)
    for place, mistake in enumerate(mistakes):
        images[place] = mistake.image
    rows = [
        Row("", images[first : first + columns], captions[first : first + columns])
        for first in range(0, count, columns)
    ]
    return draw_preview(rows, title, path)


@_plain_text
def draw_explanation(picture: Tensor, explanation: Explanation, title: str, path: Path) -> Path:
    """Draw a picture and, next to it, the same picture in grey with its map and a legend, as PNG.

    Args:
        picture: uint8, C x side x side: the part that the network saw.

    Raises:
        WriteError: the file exists, or cannot be written.
    """
    figure = Figure(figsize=(9, 4.6), layout="constrained", dpi=100)
    plain, covered = figure.subplots(1, 2)
    for axes, pixels in (
        (plain, to_channels(picture, 3)),
        (covered, overlay(picture, explanation.map)),
    ):
        axes.imshow(pixels.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_axis_off()
    steps = blended(torch.linspace(0, 1, 256), torch.full((256,), 127.5)) / 255
    scale = Normalize(0, max(explanation.map.max().item(), 1e-6))
    legend = ScalarMappable(scale, ListedColormap(steps.numpy()))
    label = f"evidence for {_name(explanation.label)}"
    figure.colorbar(legend, ax=covered, shrink=0.9, label=label)
    figure.suptitle(f"{_name(title)}\nwhere: {explanation.where}", fontsize="medium")
    return _save(figure, path, new=True)


@_plain_text
def draw_effective_field(
    field: Tensor, receptive_field: int, image_side: int, title: str, path: Path
) -> Path:
    """Draw an effective receptive field with outlines of the theoretical one and the image, as PNG.

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
    """Draw accuracy against parameters (log scale) with the Pareto front, as PNG."""
    figure = Figure(figsize=(10, 6.5), dpi=110)
    axes = figure.subplots()
    axes.set_xscale("log")
    if len(costs := {entry.parameters for entry in entries}) == 1:  # no range to take a margin from
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
        "Accuracy against parameters. Bars: standard deviation over seeds, or the 95 % interval "
        "of a single run",
        fontsize="medium",
    )
    axes.legend(loc="lower right")
    _lighten(axes)
    figure.tight_layout()
    names = [(entry.parameters, 100 * entry.top1, _name(entry.name)) for entry in entries]
    _label_apart(axes, names)
    return _save(figure, path)


@_plain_text
def draw_pareto(
    trials: Sequence[Mapping[str, Any]], winner: int, limits: Mapping[str, int], path: Path
) -> Path:
    """Draw accuracy on val against each cost that a search or the budget limits, as PNG.

    Args:
        trials: the trials that were trained, as in trials.json.
        winner: number of the winning trial.
        limits: by name, such as {"max_macs": 20_000_000}; if empty, parameters and MACs are shown.
    """
    shown = [name for name in COSTS if name in limits] or ["max_parameters", "max_macs"]
    figure = Figure(figsize=(max(7.5, 5 * len(shown)), 5.5), layout="constrained", dpi=110)
    rungs = sorted({max(map(int, trial["rungs"])) for trial in trials if trial["rungs"]})
    colours = colormaps["viridis_r"]
    for axes, limit in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        cost, label = COSTS[limit]
        points = [
            (trial["cost"][cost], 100 * trial["rungs"][str(rung)], rung, trial["number"])
            for trial in trials
            if trial["cost"][cost] is not None and trial["rungs"]
            for rung in [max(map(int, trial["rungs"]))]
        ]
        for place, rung in enumerate(rungs):
            epochs = "epoch" if rung == 1 else "epochs"
            axes.plot(
                [x for x, _, at, _ in points if at == rung],
                [y for _, y, at, _ in points if at == rung],
                "o",
                color=colours(0.15 + 0.8 * place / max(1, len(rungs) - 1)),
                label=f"trained for {rung} {epochs}",
            )
        front, best = [], -1.0
        for x, y, *_ in sorted(point for point in points if point[2] == rungs[-1]):
            if y > best:
                front.append((x, y))
                best = y
        if len(front) > 1:
            axes.step(*zip(*front, strict=True), where="post", color="#333333", linewidth=1,
                      zorder=0, label="Pareto front")  # fmt: skip
        won = [(x, y) for x, y, _, number in points if number == winner]
        axes.plot([x for x, _ in won], [y for _, y in won], "*", color="#c33c3c", markersize=14,
                  label="winner")  # fmt: skip
        if limit in limits:
            axes.axvline(limits[limit], color="#c33c3c", linestyle="--", linewidth=1,
                         label=f"limit: {limits[limit]:,}")  # fmt: skip
        axes.set_xlabel(label)
        axes.set_ylabel("accuracy on val, %")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.tick_params(axis="x", labelrotation=20)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), ncols=2, fontsize="small")
        _lighten(axes)
    figure.suptitle("Networks that the search tried, by length of training", fontsize="medium")
    return _save(figure, path)


COSTS = {
    "max_parameters": ("parameters", "parameters"),
    "max_macs": ("macs", "multiply-accumulates"),
    "min_receptive_field": ("receptive_field", "receptive field, px"),
    "max_flash": ("flash", "flash, bytes"),
    "max_ram": ("ram", "RAM, bytes"),
}


class _Thousands(LogFormatter):
    """Labels of a log scale as 200,000 rather than powers of ten, at matplotlib's ticks."""

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
        return max(below, 0), max(above, 0)  # through rounding, 0 % may be outside its interval
    return 0, 0


def _label_apart(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each point's label next to it, where it covers no other label or point."""
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
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
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
    """Return a name or path in one line that leaves space for the drawing."""
    line = _text(text)
    half = LONGEST_NAME // 2
    return line if len(line) <= LONGEST_NAME else f"{line[: half - 1]}…{line[-half:]}"


def _text(text: object) -> str:
    """Return text in one line, with escapes for characters that the user's fonts lack."""
    families = rcParams["font.family"]
    fonts = [get_font(findfont(FontProperties(family=[family]))) for family in families]
    return "".join(
        each if any(font.get_char_index(ord(each)) for font in fonts) else escape(each)
        for each in visible(text)
    )


def _lighten(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, *, new: bool = False, **how: Any) -> Path:
    """Write a figure as PNG, completely or not at all; `new` refuses a file that exists."""
    png = io.BytesIO()
    figure.savefig(png, format="png", **how)
    write_whole(path, png.getvalue(), new=new)
    return path
