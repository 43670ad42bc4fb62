"""Agreement of an exported file with PyTorch, and the time of each for one image."""

import math
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.data import shapes10
from sprat.data.imageset import Images, ImageSet, Normalization, stratified_split, to_channels
from sprat.deploy.graph import Run, graph_input
from sprat.errors import SpratError, shown
from sprat.evaluation.evaluate import BATCH, top1

COMPARED = 1_000  # images
TOLERANCE = 1e-4  # between probabilities in fp32
ALIKE = 0.5  # share of drawings; shipped models in int8 are far above, chance is at 1 / classes
CHANCE = 0.05  # a loss at least this likely under the permitted drop is attributed to chance
TIMED_SECONDS = 1.0  # of all contenders together


@dataclass(frozen=True)
class Contender:
    """One form of a model, measured."""

    name: str
    bytes: int
    """Size of the file; for PyTorch, of the weights in memory."""
    ms_for_one_image: float | None
    """Median on one thread, in ms; None for formats that run on other devices."""
    top1: float | None
    """Accuracy on the compared images, 0 to 1; None for drawings."""


@dataclass(frozen=True)
class ClassDrop:
    """Number of a class's compared images, and how many of them PyTorch and an exported file
    classify correctly."""

    name: str
    n: int
    before: int
    after: int

    @property
    def points(self) -> float:
        """Loss of accuracy in percentage points; negative for a gain."""
        return 100 * (self.before - self.after) / self.n


def compared_images(side: int, channels: int, labelled: ImageSet | None) -> ImageSet:
    """Return the images to compare on: up to 1,000 of `labelled`, stratified by class; or as many
    drawings of shapes10, resized to `side`, grey for one channel."""
    if labelled is None:
        return drawings(COMPARED, side, channels)
    _, chosen = stratified_split(labelled.targets, min(COMPARED, len(labelled)), seed=0)
    return labelled.subset(chosen)


def drawings(count: int, side: int, channels: int = 3) -> ImageSet:
    """Return drawings of shapes10, always the same, resized to `side`, grey for one channel."""
    drawn, _ = shapes10.load(train_images=count, test_images=len(shapes10.CLASSES))
    resized = F.interpolate(
        drawn.images[:].float(), size=(side, side), mode="bilinear", antialias=True
    )
    pixels = to_channels(resized.round().clamp(0, 255).byte(), channels)
    return ImageSet(pixels, drawn.targets, drawn.classes)


@torch.inference_mode()
def answers(run: Run, images: Images, normalization: Normalization, raw: bool) -> Tensor:
    """Return the probabilities (N x K) of uint8 images by an exported file."""
    parts = [run(graph_input(batch, normalization, raw)) for batch in images.split(BATCH)]
    return torch.cat(parts).softmax(1) if raw else torch.cat(parts)


def agreement(given: Tensor, expected: Tensor) -> tuple[float, float]:
    """Return the share of images that get the same class, and the largest difference between
    probabilities."""
    difference = (given - expected).abs().max().item()
    return top1(given, expected.argmax(1)), difference


def check_same(name: str, given: Tensor, expected: Tensor) -> None:
    """Check that a format agrees with PyTorch on the class of every image, and on probabilities to
    1e-4.

    Raises:
        SpratError: it does not.
    """
    same, difference = agreement(given, expected)
    if same < 1 or not difference < TOLERANCE:  # nan is not below it either
        others = round((1 - same) * len(expected))
        raise SpratError(
            f"The model as {name} does not agree with PyTorch: {others:,} of {len(expected):,} "
            f"images get another class, and probabilities differ by up to {difference:.2g} "
            f"(expected: none, and less than {TOLERANCE:.0e}). Nothing was written. Choose another "
            "format."
        )


def check_alike(name: str, given: Tensor, expected: Tensor) -> None:
    """Check that a format of lower precision agrees with PyTorch on most drawings, which have no
    labels to measure accuracy by.

    Raises:
        SpratError: it does not.
    """
    same, _ = agreement(given, expected)
    if same < ALIKE:
        raise SpratError(
            f"The model as {name} predicts the class that PyTorch predicts for {100 * same:.1f} % "
            f"of {len(given):,} drawings, expected at least {100 * ALIKE:g} %. Nothing was "
            "written. Measure the ranges of activations again with --calibrate DATASET."
        )


def check_drop(name: str, given: float, expected: float, max_drop: float, n: int) -> None:
    """Check that accuracy drops by at most `max_drop` percentage points.

    Args:
        given: accuracy of the format, 0 to 1, on n images.
        expected: accuracy of PyTorch.

    Raises:
        SpratError: it drops by more.
    """
    drop = 100 * (expected - given)
    if drop > max_drop:
        raise SpratError(
            f"The accuracy of the model as {name} is {100 * given:.2f} % on {n:,} images, and "
            f"{100 * expected:.2f} % in fp32: a drop of {drop:.2f} points, expected at most "
            f"{max_drop:g} (--max-drop). Nothing was written. Choose the format onnx, or allow a "
            "larger drop."
        )


def check_class_drop(
    name: str, given: Tensor, expected: Tensor, seen: ImageSet, max_class_drop: float
) -> ClassDrop:
    """Check that the accuracy of no class drops by more than `max_class_drop` percentage points
    plus chance.

    Args:
        given: probabilities N x K by the format; N is at most 1,000.
        expected: probabilities N x K by PyTorch.
        seen: the N images.

    Returns:
        The class whose accuracy drops most.

    Raises:
        SpratError: a class loses more images than `lost_by_chance`; the message names the worst.
    """
    drops, broken = [], []
    before, after = (each.argmax(1) == seen.targets for each in (expected, given))
    for number, class_name in enumerate(seen.classes):
        of_class = seen.targets == number
        if n := int(of_class.sum()):
            hits = (int(each[of_class].sum()) for each in (before, after))
            drop = ClassDrop(class_name, n, *hits)
            drops.append(drop)
            if drop.before - drop.after > lost_by_chance(n, max_class_drop / 100):
                broken.append(drop)
    worst = max(broken or drops, key=lambda drop: drop.points)
    if broken:
        most = lost_by_chance(worst.n, max_class_drop / 100)
        raise SpratError(
            f"For the class {shown(worst.name)}, the model as {name} classifies {worst.after:,} of "
            f"{worst.n:,} images correctly, and {worst.before:,} in fp32: a drop of "
            f"{worst.points:.2f} points, expected at most {max_class_drop:g} (--max-class-drop) "
            f"plus chance, or {most:,} images. Nothing was written. Choose the format onnx, or "
            "allow a larger drop."
        )
    return worst


def lost_by_chance(n: int, share: float) -> int:
    """Return the largest number of n images (up to 1,000) that are lost with a probability of at
    least 5 % if each is lost with the probability `share`: 9 of 100 and 2 of 10 at 0.05."""
    tail = 0.0
    for lost in range(n, 0, -1):
        tail += math.comb(n, lost) * share**lost * (1 - share) ** (n - lost)
        if tail >= CHANCE:
            return lost
    return 0


@torch.inference_mode()
def latencies(runs: Mapping[str, Run], image: Tensor) -> dict[str, float]:
    """Return each contender's median time for one image on one thread, in ms, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs.values():
            run(image)
        ends = time.perf_counter() + TIMED_SECONDS
        while time.perf_counter() < ends or not seconds["torch"]:
            for name, run in runs.items():
                began = time.perf_counter()
                run(image)
                seconds[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * statistics.median(turns) for name, turns in seconds.items()}
