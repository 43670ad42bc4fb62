"""Labels that are probably wrong, according to models that were trained without them.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
dataset labels" (https://arxiv.org/abs/1911.00068).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspect:
    """A picture that seems to show another class than its label.

    place: index of the image. label, suggested: indices into the classes. label_probability,
    suggested_probability: their probabilities by a model that was trained without the picture.
    confident: whether confident learning counts the label as wrong.
    """

    place: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float
    confident: bool


@dataclass(frozen=True)
class LabelCheck:
    """Result of checking the labels of a dataset by cross-validation.

    recipe, epochs, folds: how the models were trained. top1: fraction of the pictures whose label
    is predicted by the model that was trained without them. suspects: all others, the worst first.
    """

    recipe: str
    epochs: int
    folds: int
    top1: float
    suspects: list[Suspect]

    @property
    def confident(self) -> int:
        """Number of labels that confident learning counts as wrong."""
        return sum(each.confident for each in self.suspects)


def find_suspects(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> list[Suspect]:
    """Return the labels that are not their picture's most probable class, ordered by normalised
    margin (probability of the label minus that of the most probable class), the worst first.

    Confident learning counts a label as wrong if another class reaches its threshold: its mean
    probability over the pictures with that label. Of several such classes it takes the most
    probable.

    Args:
        probabilities: N x K, out of fold: each row by a model trained without that picture.
        labels: N, each below K.
    """
    values, places = probabilities.astype(np.float64), np.arange(len(labels))
    of_label, most, suggested = values[places, labels], values.max(1), values.argmax(1)
    counts = np.bincount(labels, minlength=values.shape[1])
    sums = np.bincount(labels, of_label, values.shape[1])
    thresholds = np.where(counts, sums / counts.clip(1), np.inf)  # none without labels
    sure = np.where(values >= thresholds, values, 0)
    confident = sure.any(1) & (sure.argmax(1) != labels)
    ranked = np.argsort(of_label - most, kind="stable")
    return [
        Suspect(
            place,
            int(labels[place]),
            int(suggested[place]),
            float(of_label[place]),
            float(most[place]),
            bool(confident[place]),
        )
        for place in ranked[(of_label < most)[ranked]].tolist()
    ]
