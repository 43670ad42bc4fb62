"""Tests of suspect labels, compared with cleanlab."""

import numpy as np
import pytest
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from numpy.typing import NDArray

from sprat.data.suspects import find_suspects


def _answers(seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return a model's probabilities, of any skill, and imbalanced labels, some of them wrong."""
    rng = np.random.default_rng(seed)
    classes, images = rng.integers(2, 12), rng.integers(50, 800)
    shares = rng.dirichlet(np.full(classes, 3.0))
    truth = np.r_[np.arange(classes), rng.choice(classes, images - classes, p=shares)]
    logits = rng.normal(size=(images, classes)) + rng.uniform(0.5, 4) * np.eye(classes)[truth]
    wrong = rng.random(images) < 0.1
    wrong[:classes] = False  # leaves no class without labels
    labels = np.where(wrong, rng.integers(0, classes, images), truth)
    exponents = np.exp(logits)
    return (exponents / exponents.sum(1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("seed", range(40))
def test_ranking_and_counts_match_cleanlab(seed: int) -> None:
    probabilities, labels = _answers(seed)
    values = probabilities.astype(np.float64)
    found = find_suspects(probabilities, labels)
    scores = get_label_quality_scores(labels, values, method="normalized_margin")
    places = [each.place for each in found]
    assert np.array_equal(np.sort(scores)[: len(found)], scores[places])
    assert set(places) == set(np.flatnonzero(labels != values.argmax(1)))

    theirs = find_label_issues(
        labels,
        values,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    ).tolist()
    # if several classes reach their threshold, cleanlab takes the most probable class of all, the
    # paper the most probable of those that do
    thresholds = [values[labels == k, k].mean() for k in range(values.shape[1])]
    sure = values >= thresholds
    same = sure[np.arange(len(labels)), values.argmax(1)] | (sure.sum(1) < 2)
    ours = [each.place for each in found if each.confident]
    assert [n for n in ours if same[n]] == [n for n in theirs if same[n]]
    assert sum(same[theirs]) > 0.9 * len(theirs) > 0


def test_each_suspect_has_both_classes_and_their_probabilities() -> None:
    probabilities = np.array(
        [[0.9, 0.1], [0.8, 0.2], [0.05, 0.95], [0.3, 0.7], [0.5, 0.5], [0.58, 0.42]], np.float32
    )
    found = find_suspects(probabilities, np.array([0, 0, 0, 1, 1, 1]))
    assert [(s.place, s.label, s.suggested) for s in found] == [(2, 0, 1), (5, 1, 0)]
    assert [s.label_probability for s in found] == pytest.approx([0.05, 0.42])
    assert [s.suggested_probability for s in found] == pytest.approx([0.95, 0.58])
    assert [s.confident for s in found] == [True, False]  # class 0's threshold is 0.583


def test_suggestion_of_unlabelled_class_is_not_confident() -> None:
    probabilities = np.array([[0.2, 0.1, 0.7], [0.6, 0.3, 0.1], [0.3, 0.6, 0.1]], np.float32)
    found = find_suspects(probabilities, np.array([0, 0, 1]))
    assert [(s.place, s.suggested, s.confident) for s in found] == [(0, 2, False)]
