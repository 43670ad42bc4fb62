"""Labels that are probably wrong, by what models answer that were trained without them.

Confident learning: Northcutt, Jiang and Chuang 2021, "Confident learning: estimating uncertainty in
dataset labels" (https://arxiv.org/abs/1911.00068).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Suspect:
    """A picture that probably shows another class than its label says.

    place: in the images. label, suggested: indices into the classes. label_probability,
    suggested_probability: what a model that was trained without the picture gives them.
    """

    place: int
    label: int
    suggested: int
    label_probability: float
    suggested_probability: float


@dataclass(frozen=True)
class LabelCheck:
    """What cross-validation says of the labels of a dataset.

    recipe, epochs, folds: how it was trained. top1: share of the pictures whose label is the answer
    of the model that was trained without them. suspects: the worst first.
    """

    recipe: str
    epochs: int
    folds: int
    top1: float
    suspects: list[Suspect]


def find_suspects(probabilities: NDArray[np.floating], labels: NDArray[np.int64]) -> list[Suspect]:
    """Return the labels that are probably wrong, the worst first.

    A class is confident of a picture from the probability on that it gives, in the mean, to those
    that are labelled so; the most probable of a picture's confident classes is taken for its true
    one. Where that is not its label, and its label is not the most probable class either, the label
    is suspect, the more so the less probable it is compared with the most probable class.

    Args:
        probabilities: N x K, out of fold: of each picture, by a model trained without it.
        labels: N, each below K.
    """
    values, places = probabilities.astype(np.float64), np.arange(len(labels))
    of_label, most = values[places, labels], values.max(1)
    counts = np.bincount(labels, minlength=values.shape[1])
    sums = np.bincount(labels, of_label, values.shape[1])
    thresholds = np.where(counts, sums / counts.clip(1), np.inf)  # a class without labels has none
    confident = np.where(values >= thresholds, values, 0)
    suggested = confident.argmax(1)
    suspect = confident.any(1) & (suggested != labels) & (of_label < most)
    ranked = np.argsort(of_label - most, kind="stable")
    return [
        Suspect(
            place,
            int(labels[place]),
            int(suggested[place]),
            float(of_label[place]),
            float(values[place, suggested[place]]),
        )
        for place in ranked[suspect[ranked]].tolist()
    ]
