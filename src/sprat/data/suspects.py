"""Labels that are probably wrong, by what models answer that were trained without them.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
dataset labels" (https://arxiv.org/abs/1911.00068).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspect:
    """A picture that seems to show another class than its label says.

    place: in the images. label, suggested: indices into the classes. label_probability,
    suggested_probability: what a model that was trained without the picture gives them.
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
    """Findings of cross-validation of the labels of a dataset.

    recipe, epochs, folds: how it was trained. top1: share of the pictures whose label is the answer
    of the model that was trained without them. suspects: all others, the worst first.
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
    """Return the labels that are not the most probable class of their picture, the worst first:
    those that are the least probable compared with that class (the normalised margin).

    Confident learning counts a label as wrong if another class is confident of the picture: if it
    is as probable as it is, in the mean, for the pictures that are labelled so. Of several such
    classes it takes the most probable.

    Args:
        probabilities: N x K, out of fold: of each picture, by a model trained without it.
        labels: N, each below K.
    """
    values, places = probabilities.astype(np.float64), np.arange(len(labels))
    of_label, most, suggested = values[places, labels], values.max(1), values.argmax(1)
    counts = np.bincount(labels, minlength=values.shape[1])
    sums = np.bincount(labels, of_label, values.shape[1])
    thresholds = np.where(counts, sums / counts.clip(1), np.inf)  # a class without labels has none
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
