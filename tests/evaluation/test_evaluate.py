"""Tests of evaluation, compared with plain twins and published values."""

import pytest
import torch
from torch import nn

from sprat.augment.views import VIEWS, flipped, identity
from sprat.data.imageset import ImageSet, Normalization
from sprat.errors import SpratError
from sprat.evaluation.evaluate import (
    calibration_bins,
    evaluate,
    expected_calibration_error,
    mcnemar,
    predict_probabilities,
    top1,
    wilson_interval,
)

PLAIN = Normalization((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


class LeftRight(nn.Module):
    """Network whose logits are the brightness of an image's left and right half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        width = images.shape[3] // 2
        halves = [images[..., :width], images[..., width:]]
        return self.scale * torch.stack([half.mean((1, 2, 3)) for half in halves], 1)


def _halves(n: int = 600) -> ImageSet:
    images = torch.zeros(n, 3, 4, 4, dtype=torch.uint8)
    images[::3, ..., :2] = 200
    images[1::3, ..., 2:] = 200
    images[2::3, ..., 2:] = 200
    return ImageSet(images, torch.arange(n) % 3 // 2, ("left", "right"))


def test_non_finite_outputs_are_refused() -> None:
    for value in (float("nan"), float("inf"), 1e38):
        network = LeftRight()
        network.scale.data.fill_(value)
        with pytest.raises(SpratError, match="infinite or not a number"):
            predict_probabilities(network, _halves(4).images, Normalization((0,) * 3, (0.01,) * 3))


def test_wilson_interval_agrees_with_published_values() -> None:
    # Newcombe 1998, table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29
    for hits, n, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


def test_calibration_error_agrees_with_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.randn(500, 10, generator=generator).mul(3).softmax(1)
    targets = torch.randint(10, (500,), generator=generator)
    expected = 0.0
    for b in range(15):
        inside = [
            (p.max().item(), float(p.argmax() == t))
            for p, t in zip(probabilities.double(), targets, strict=True)
            if b / 15 < p.max().item() <= (b + 1) / 15
        ]
        if inside:
            gap = sum(c for c, _ in inside) / len(inside) - sum(h for _, h in inside) / len(inside)
            expected += abs(gap) * len(inside) / 500
    assert expected_calibration_error(probabilities, targets) == pytest.approx(expected)


def test_calibrated_predictions_have_no_calibration_error() -> None:
    probabilities = torch.tensor([[0.75, 0.25]]).expand(400, 2)
    targets = (torch.arange(400) % 4 == 0).long()
    assert expected_calibration_error(probabilities, targets) == pytest.approx(0, abs=1e-6)


def test_confidence_bins_include_their_upper_end() -> None:
    sure = torch.tensor([0.5, 0.75, 0.8125, 1.0])
    probabilities = torch.stack([sure, 1 - sure], 1)
    counts, sums, hits = calibration_bins(probabilities, torch.tensor([0, 1, 1, 0]), bins=4)
    assert counts.tolist() == [0, 1, 1, 2]
    assert sums.tolist() == [0, 0.5, 0.75, 1.8125]
    assert hits.tolist() == [0, 1, 0, 1]


def test_views_are_averaged_as_probabilities() -> None:
    images = _halves(7).images
    network = LeftRight()
    both = predict_probabilities(network, images, PLAIN, VIEWS[2])
    alone = [
        predict_probabilities(network, images, PLAIN, ((v, 1.0),)) for v in (identity, flipped)
    ]
    torch.testing.assert_close(both, (alone[0] + alone[1]) / 2)
    torch.testing.assert_close(both, torch.full_like(both, 0.5))


def test_evaluation_matches_known_counts() -> None:
    dataset = _halves()
    done: list[int] = []
    evaluation = evaluate(LeftRight(), dataset, PLAIN, progress=done.append)
    # the first third is "left" and bright there; the second is "left" but bright on the right
    assert evaluation["top1"] == pytest.approx(2 / 3)
    assert evaluation["per_class"] == {"left": pytest.approx(0.5), "right": pytest.approx(1.0)}
    assert evaluation["confusion"] == [[200, 200], [0, 200]]
    assert evaluation["n"] == 600
    assert evaluation["top1_ci95"][0] < 2 / 3 < evaluation["top1_ci95"][1]
    assert sum(done) == 2 * 600
    probabilities = predict_probabilities(LeftRight(), dataset.images, PLAIN)
    assert evaluation["ece"] == expected_calibration_error(probabilities, dataset.targets)
    assert top1(probabilities, dataset.targets) == evaluation["top1"]


def test_evaluating_leaves_the_networks_mode_as_it_was() -> None:
    network = LeftRight()
    for mode in (True, False):
        network.train(mode)
        predict_probabilities(network, _halves(4).images, PLAIN)
        assert network.training is mode


@pytest.mark.parametrize("tta", [1, 2, 6])
def test_views_are_weighted_as_their_set_says(tta: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (400, 3, 8, 8), generator=generator).to(torch.uint8)
    dataset = ImageSet(images, torch.arange(400) % 5, tuple("abcde"))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5)).eval()
    evaluation = evaluate(network, dataset, PLAIN, tta)
    with torch.no_grad():
        answers = [network((view(images).float() / 255 - 0.5) / 0.25) for view, _ in VIEWS[tta]]
    single = answers[0].softmax(1)
    averaged = sum(w * a.softmax(1) for (_, w), a in zip(VIEWS[tta], answers, strict=True))
    assert isinstance(averaged, torch.Tensor)
    assert evaluation["top1"] == pytest.approx(top1(single, dataset.targets))
    assert evaluation["tta_top1"] == pytest.approx(top1(averaged, dataset.targets))
    assert (evaluation["tta_top1"] != evaluation["top1"]) == (tta > 1)
    assert evaluation["tta_views"] == tta
    hits = [p.argmax(1) == dataset.targets for p in (single, averaged)]
    assert evaluation["tta_p"] == pytest.approx(mcnemar(*hits))


def test_mcnemar_agrees_with_published_values() -> None:
    """Check the exact test, a sign test, against Siegel 1956, table D, for few pairs."""
    for differing, only, p in [(5, 0, 0.062), (8, 1, 0.070), (10, 2, 0.109), (14, 3, 0.057)]:
        first = torch.zeros(100, dtype=torch.bool)
        second = first.clone()
        first[:only] = True
        second[only:differing] = True
        first[50:] = second[50:] = True  # images that both get right do not count
        assert mcnemar(first, second) == pytest.approx(p, abs=1.1e-3)
        assert mcnemar(second, first) == mcnemar(first, second)


def test_mcnemar_handles_many_and_no_differences() -> None:
    hits = torch.ones(10_000, dtype=torch.bool)
    assert mcnemar(hits, hits) == 1
    other = hits.clone()
    other[:2_000] = False
    assert mcnemar(hits, other) < 1e-300
