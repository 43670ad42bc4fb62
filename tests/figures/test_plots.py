"""Tests of figures: their data, and the PNGs and SVGs drawn from it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sprat.data.imageset import ImageSet
from sprat.evaluation.records import read_metrics
from sprat.figures.data import (
    Confusion,
    calibration,
    confusion,
    read_curves,
    worst_mistakes,
)
from sprat.figures.png import draw_calibration, draw_confusion, draw_mistakes
from sprat.figures.svg import curve_charts

COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def pixels(path: Path) -> np.ndarray:
    """Return a PNG's pixels, H x W x 3."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def darkness(path: Path) -> int:
    return int((255 - pixels(path)).sum())


def confused(counts: list[list[int]], names: Sequence[str]) -> Confusion:
    return confusion({"per_class": dict.fromkeys(names), "confusion": counts})  # type: ignore


@pytest.fixture
def plain() -> ImageSet:
    """Red, green and blue pictures of 8 x 8 pixels, each a class of its own."""
    images = torch.tensor(COLOURS, dtype=torch.uint8).view(3, 3, 1, 1).expand(3, 3, 8, 8)
    return ImageSet(images.contiguous(), torch.arange(3), ("red", "green", "blue"))


@pytest.mark.parametrize("wrong", [[], [0], [1, 2]])
def test_only_mistakes_are_drawn(plain: ImageSet, tmp_path: Path, wrong: list[int]) -> None:
    probabilities = torch.eye(3)
    probabilities[wrong] = probabilities[wrong].roll(1, 1)
    mistakes = worst_mistakes(plain, probabilities, most=3)
    drawn = pixels(draw_mistakes(mistakes, "wrong", tmp_path / "a.png", columns=2))
    for number, colour in enumerate(COLOURS):
        assert (drawn == colour).all(2).any() == (number in wrong)


def test_the_surest_mistakes_come_first(plain: ImageSet, tmp_path: Path) -> None:
    surest = torch.tensor([[0.1, 0.9, 0.0], [0.2, 0.0, 0.8], [0.7, 0.3, 0.0]])
    mistakes = worst_mistakes(plain, surest, most=2)
    drawn = pixels(draw_mistakes(mistakes, "", tmp_path / "a.png", columns=2))
    assert [(drawn == colour).all(2).any() for colour in COLOURS] == [True, True, False]


def test_larger_confusions_are_drawn_darker(tmp_path: Path) -> None:
    names = ("cat", "dog", "none")
    drawn = [
        darkness(
            draw_confusion(confused([[100 - n, n, 0], [m, 100 - m, 0], [0, 0, 0]], names), path)
        )
        for n, m, path in (
            (0, 0, tmp_path / "none.png"),
            (10, 80, tmp_path / "some.png"),
            (80, 80, tmp_path / "more.png"),
        )
    ]
    assert drawn == sorted(drawn)
    assert len(set(drawn)) == 3


def test_large_confusion_matrix_has_no_numbers(tmp_path: Path) -> None:
    names = [str(number) for number in range(30)]
    few = confused(torch.eye(30).int().tolist(), names)
    many = confused((9_000 * torch.eye(30)).int().tolist(), names)
    few, many = (
        draw_confusion(each, tmp_path / f"{number}.png") for number, each in enumerate((few, many))
    )
    assert (pixels(few) == pixels(many)).all()


def test_calibration_bars_grow_with_accuracy(tmp_path: Path) -> None:
    """Put all images into one bin, so that drawings differ only in the height of its bar."""
    sure = torch.tensor([[0.9, 0.1]]).expand(10, 2)
    blue = []
    for right in (2, 4, 8):
        targets = (torch.arange(10) >= right).long()
        drawn = pixels(draw_calibration(calibration(sure, targets), tmp_path / f"{right}.png"))
        blue.append((drawn == (0x1F, 0x77, 0xB4)).all(2).sum())
    assert blue == sorted(blue)
    assert len(set(blue)) == 3


RUNS = sorted((Path(__file__).parents[2] / "results").glob("*/seed-0/metrics.jsonl"))


@pytest.mark.parametrize("run", [path.parent for path in RUNS], ids=lambda run: run.parent.name)
def test_curves_and_charts_show_the_measurements(run: Path) -> None:
    rows, curves = read_metrics(run), read_curves(run)
    for curve in (curves.loss, *curves.accuracy, curves.learning_rate):
        measured = [(row["epoch"], row.get(curve.key)) for row in rows]
        assert list(curve.points) == [point for point in measured if point[1] is not None]
    roles = [curve.role for curve in curves.accuracy]
    assert roles.count("kept") == 1
    assert ("probe" in roles) <= (curves.on == "val")
    loss, accuracy, lr = curve_charts(curves)
    assert [len(chart.lines) for chart in (loss, accuracy, lr)] == [1, len(roles), 1]
    assert loss.lines[0].last == f"{rows[-1]['loss']:.4f}"
    for line, curve in zip(accuracy.lines, curves.accuracy, strict=True):
        assert line.last == f"{100 * curve.points[-1][1]:.2f} %"
        _, largest = max(zip((value for _, value in curve.points), line.points, strict=True))
        assert largest[1] == min(y for _, y in line.points), "y counts downwards"
