"""Pictures of runs and data."""

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sprat.augment.preview import Row
from sprat.data.imageset import ImageSet
from sprat.results import CURVES_FILE, RESULTS_FILE, read_json, read_metrics
from sprat.runtime import replacing

RAW, AVERAGED, TEST = "#1f77b4", "#d95f02", "#222222"


def draw_curves(run: Path) -> Path:
    """Draws a run's loss, accuracy and learning rate by epoch into its curves.png.

    Raises:
        SpratError: the folder lacks metrics.jsonl or results.json.
    """
    rows, results = read_metrics(run), read_json(run / RESULTS_FILE)
    epochs = [row["epoch"] for row in rows]
    figure = Figure(figsize=(8, 8), layout="constrained", dpi=110)
    loss, accuracy, lr = figure.subplots(3, sharex=True, height_ratios=[2, 3, 1.3])
    figure.suptitle(
        f"{results['model']} on {results['dataset']}: {results['recipe']}, seed {results['seed']}"
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
    with replacing(run / CURVES_FILE) as beside:
        figure.savefig(beside)
    return run / CURVES_FILE


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
    axes.set_title(title)
    axes.set_xticks([])
    centres = [(side + 2) * (row + 0.5) for row in range(len(rows))]
    axes.set_yticks(centres, labels=list(dataset.classes))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, bbox_inches="tight")
    return path


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
            axes.text(
                left + width / 2, top + height + 0.5, caption, fontsize=7, ha="center", va="top"
            )
    axes.imshow(sheet.numpy(), interpolation="nearest")
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([top + height / 2 for top in tops], labels=[row.label for row in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130, bbox_inches="tight")
    return path


def _lighten(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
