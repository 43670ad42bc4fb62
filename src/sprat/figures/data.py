"""Contents of figures as plain records: curves, confusion, calibration, mistakes."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from sprat.data.imageset import ImageSet
from sprat.evaluation.evaluate import calibration_bins, expected_calibration_error, top1
from sprat.evaluation.records import (
    RESULTS_FILE,
    EpochRow,
    Evaluation,
    RunResult,
    read_metrics,
    read_results,
)

NUMBERED_CLASSES = 20  # above which a matrix of numbers is unreadable

CurveKey = Literal["loss", "top1", "ema_top1", "probe_top1", "lr"]
NAMES: dict[CurveKey, str] = {
    "loss": "loss",
    "top1": "raw weights",
    "ema_top1": "averaged weights (EMA)",
    "probe_top1": "kept weights, on training images (probe)",
    "lr": "at the epoch's end",
}


@dataclass(frozen=True)
class Curve:
    """One figure by epoch.

    key: its name in metrics.jsonl. role: whether it is of the weights that the run keeps, of the
    others, or of the kept ones on the probe. points: epochs and values, as in metrics.jsonl.
    """

    key: CurveKey
    role: Literal["kept", "other", "probe"]
    points: tuple[tuple[int, float], ...]

    @property
    def name(self) -> str:
        """Name for a legend."""
        return NAMES[self.key]


@dataclass(frozen=True)
class Curves:
    """Curves of a run by epoch.

    epochs: the first and the last. on: what accuracy is measured on. accuracy: at least one curve.
    test_top1: of a final run.
    """

    model: str
    dataset: str
    recipe: str
    seed: int
    epochs: tuple[int, int]
    on: Literal["val", "probe"]
    loss: Curve
    accuracy: tuple[Curve, ...]
    learning_rate: Curve
    test_top1: float | None


@dataclass(frozen=True)
class Pair:
    """One class predicted as another `count` times, of its `n` images."""

    truth: str
    answer: str
    count: int
    n: int


@dataclass(frozen=True)
class Confusion:
    """Numbers of images of each class (row) by predicted class (column).

    shares: mistakes as a fraction of their row's images, 0 to 1; 0 for correct predictions.
    """

    classes: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    shares: tuple[tuple[float, ...], ...]

    @property
    def largest_share(self) -> float:
        """The largest of the shares; 1 if there are no mistakes."""
        return max(map(max, self.shares)) or 1.0

    @property
    def pairs(self) -> list[Pair]:
        """All mistakes by true and predicted class, the most frequent first."""
        pairs = [
            Pair(self.classes[i], self.classes[j], self.counts[i][j], sum(self.counts[i]))
            for i, j in itertools.permutations(range(len(self.classes)), 2)
            if self.counts[i][j]
        ]
        return sorted(pairs, key=lambda pair: -pair.count)


@dataclass(frozen=True)
class Bin:
    """The `n` images with a confidence above `low` and up to `high`, as fractions.

    confidence: their mean confidence.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Accuracy by confidence. bins: those with at least one image."""

    bins: tuple[Bin, ...]
    top1: float
    ece: float


@dataclass(frozen=True)
class Mistake:
    """An image that was classified wrongly.

    number: its index in the dataset, from 0. image: uint8, C x H x W. confidence: probability of
    the predicted class.
    """

    number: int
    image: Tensor
    truth: str
    answer: str
    confidence: float


def read_curves(run: Path) -> Curves:
    """Read the curves of a finished run from its folder.

    Raises:
        SpratError: metrics.jsonl or results.json is missing or damaged.
    """
    return curves(read_metrics(run), read_results(run / RESULTS_FILE))


def curves(rows: Sequence[EpochRow], results: RunResult) -> Curves:
    """Return the curves of a run from its epochs."""
    keeps_average = results["weights"] == "ema"
    found = [
        _curve(rows, "top1", "other" if keeps_average else "kept"),
        _curve(rows, "ema_top1", "kept" if keeps_average else "other"),
    ]
    on = rows[0]["evaluated_on"]
    if on == "val":  # otherwise the others are measured on the probe
        found.append(_curve(rows, "probe_top1", "probe"))
    return Curves(
        model=results["model"],
        dataset=Path(results["dataset"]).name,  # your own pictures go by their path
        recipe=results["recipe"],
        seed=results["seed"],
        epochs=(rows[0]["epoch"], rows[-1]["epoch"]),
        on=on,
        loss=_curve(rows, "loss", "kept"),
        accuracy=tuple(curve for curve in found if curve.points),
        learning_rate=_curve(rows, "lr", "kept"),
        test_top1=results["test"]["top1"] if results["test"] else None,
    )


def _curve(
    rows: Sequence[EpochRow], key: CurveKey, role: Literal["kept", "other", "probe"]
) -> Curve:
    values = ((row["epoch"], row.get(key)) for row in rows)
    return Curve(key, role, tuple((epoch, value) for epoch, value in values if value is not None))


def confusion(evaluation: Evaluation) -> Confusion:
    """Return the confusion of an evaluation."""
    counts = tuple(map(tuple, evaluation["confusion"]))
    shares = tuple(
        tuple(
            0.0 if answer == truth else count / max(sum(row), 1) for answer, count in enumerate(row)
        )
        for truth, row in enumerate(counts)
    )
    return Confusion(tuple(evaluation["per_class"]), counts, shares)


def calibration(probabilities: Tensor, targets: Tensor) -> Calibration:
    """Return accuracy by confidence.

    Args:
        probabilities: N x K. targets: int64, N.
    """
    counts, confidences, hits = (
        values.tolist() for values in calibration_bins(probabilities, targets)
    )
    return Calibration(
        bins=tuple(
            Bin(place / len(counts), (place + 1) / len(counts), int(n), confidence / n, hit / n)
            for place, (n, confidence, hit) in enumerate(
                zip(counts, confidences, hits, strict=True)
            )
            if n
        ),
        top1=top1(probabilities, targets),
        ece=expected_calibration_error(probabilities, targets),
    )


def worst_mistakes(images: ImageSet, probabilities: Tensor, most: int) -> list[Mistake]:
    """Return the mistakes with the highest confidence, the highest first.

    Args:
        probabilities: N x K, of `images`.
        most: largest number of mistakes to return.
    """
    confidence, predictions = probabilities.max(1)
    wrong = (predictions != images.targets).nonzero().flatten()
    chosen = wrong[confidence[wrong].argsort(descending=True, stable=True)[:most]]
    return [
        Mistake(
            number=number,
            image=image,
            truth=images.classes[int(images.targets[number])],
            answer=images.classes[int(predictions[number])],
            confidence=confidence[number].item(),
        )
        for number, image in zip(chosen.tolist(), images.images[chosen], strict=True)
    ]
