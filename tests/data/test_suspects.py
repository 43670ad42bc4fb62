"""Suspect labels: found and ranked as cleanlab does it."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from numpy.typing import NDArray

from sprat.data.suspects import find_suspects


def _answers(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Probabilities of a model of any skill, and labels of uneven classes, some of them wrong."""
    rng = np.random.default_rng(seed)
    classes, images = rng.integers(2, 12), rng.integers(50, 800)
    shares = rng.dirichlet(np.full(classes, 3.0))
    truth = np.r_[np.arange(classes), rng.choice(classes, images - classes, p=shares)]
    logits = rng.normal(size=(images, classes)) + rng.uniform(0.5, 4) * np.eye(classes)[truth]
    wrong = rng.random(images) < 0.1
    wrong[:classes] = False  # a class without labels is another matter
    labels = np.where(wrong, rng.integers(0, classes, images), truth)
    exponents = np.exp(logits)
    return (exponents / exponents.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(40))
def test_suspects_are_those_of_cleanlab_in_its_order(seed: int) -> None:
    probabilities, labels = _answers(seed)
    theirs = find_label_issues(
        labels,
        probabilities.astype(np.float64),
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    ).tolist()
    found = find_suspects(probabilities, labels)
    # where two classes or more are confident of a picture, cleanlab asks for the most probable of
    # all, the paper for the most probable of those
    thresholds = [probabilities[labels == k, k].mean() for k in range(probabilities.shape[1])]
    confident = probabilities >= thresholds
    both = confident[np.arange(len(labels)), probabilities.argmax(1)] | (confident.sum(1) < 2)
    assert [each.place for each in found if both[each.place]] == [n for n in theirs if both[n]]
    assert len(found) > 0
    assert sum(both[theirs]) > 0.9 * len(theirs)


def test_each_suspect_is_told_with_both_classes_and_their_probabilities() -> None:
    probabilities = np.array(
        [[0.9, 0.1, 0], [0.8, 0.2, 0], [0.05, 0.95, 0], [0.3, 0.7, 0], [0.95, 0.05, 0]], np.float32
    )
    found = find_suspects(probabilities, np.array([0, 0, 0, 1, 1]))
    assert [(s.place, s.label, s.suggested) for s in found] == [(2, 0, 1), (4, 1, 0)]
    assert [s.label_probability for s in found] == pytest.approx([0.05, 0.05])
    assert [s.suggested_probability for s in found] == pytest.approx([0.95, 0.95])


def test_a_class_without_labels_is_never_suggested() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]], np.float32)
    assert find_suspects(probabilities, np.array([0, 0, 1])) == []


def test_labels_that_are_the_most_probable_class_are_not_suspect() -> None:
    """Even where a rare class, of which little is asked, is confident of the picture too."""
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.7, 0.3], [0.95, 0.05]], np.float32)
    assert [s.place for s in find_suspects(probabilities, np.array([0, 0, 0, 1]))] == [3]
