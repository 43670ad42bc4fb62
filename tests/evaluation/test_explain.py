"""Tests of class activation maps: exact, put into words, and refused for unfit networks."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sprat import SpratError
from sprat.data.imageset import Normalization
from sprat.evaluation.explain import NOWHERE, SPREAD, ActivationMaps, enlarged, in_words
from sprat.models import NETWORKS, draft_network
from sprat.models.classifier import PooledClassifier

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.mark.parametrize("name", NETWORKS)
def test_map_mean_plus_bias_is_the_logit(name: str) -> None:
    torch.manual_seed(0)
    network: Any = draft_network(name, num_classes=7).eval()
    with torch.no_grad():
        network.classifier.bias.normal_()
    images = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        logits = network(images / 255)
    explain = ActivationMaps(network, PLAIN, side=32)
    predicted, maps = explain(images)
    assert torch.equal(predicted, logits.argmax(1))
    for labels, found in ((predicted.tolist(), maps), ([6, 0, 3], explain(images, [6, 0, 3])[1])):
        rebuilt = found.mean((1, 2)) + network.classifier.bias[labels]
        assert torch.allclose(rebuilt, logits[range(3), labels], atol=1e-4)
    assert enlarged(maps[0], 32).shape == (32, 32)
    assert network.training is False


def test_a_map_as_large_as_the_picture_keeps_its_mean() -> None:
    small = torch.randn(4, 4)
    assert enlarged(small, 32).mean().item() == pytest.approx(small.mean().item(), abs=1e-5)


def blob(rows: slice, columns: slice, size: int = 8, background: float = 0.0) -> Tensor:
    """Return a map that is 1 in one part and `background` elsewhere."""
    activation = torch.full((size, size), background)
    activation[rows, columns] = 1
    return activation


FIRST, LAST, MIDDLE, ALL = slice(0, 3), slice(5, 8), slice(3, 5), slice(0, 8)


@pytest.mark.parametrize(
    ("activation", "words"),
    [
        (blob(FIRST, FIRST), "the upper left"),
        (blob(FIRST, LAST), "the upper right"),
        (blob(LAST, FIRST), "the lower left"),
        (blob(LAST, LAST), "the lower right"),
        (blob(FIRST, ALL), "the upper half"),
        (blob(LAST, MIDDLE), "the lower half"),
        (blob(ALL, FIRST), "the left half"),
        (blob(MIDDLE, LAST), "the right half"),
        (blob(MIDDLE, MIDDLE), "the middle"),
        (blob(slice(2, 4), slice(2, 4)), "the middle"),  # rather than the upper left
        (blob(MIDDLE, MIDDLE, background=0.03), "mostly the middle"),
        (blob(LAST, FIRST, background=0.04), "mostly the lower left"),
        (blob(LAST, ALL, background=0.1), "mostly the lower half"),
        (blob(FIRST, FIRST) + blob(LAST, LAST), SPREAD),
        (blob(FIRST, FIRST, background=-5.0), "the upper left"),  # negative values are no evidence
        (torch.ones(8, 8), SPREAD),
        (torch.ones(1, 1), SPREAD),
        (torch.full((1, 1), 1e-30), SPREAD),
        (torch.zeros(8, 8), NOWHERE),
        (-torch.ones(8, 8), NOWHERE),
        (torch.eye(2)[:1], "the left half"),
        (torch.ones(3, 5), SPREAD),  # not divisible into quarters
        (blob(slice(1, 2), slice(1, 2), size=3), "the middle"),
    ],
)
def test_words_name_the_part_that_holds_the_evidence(activation: Tensor, words: str) -> None:
    assert in_words(activation) == words
    assert in_words(1_000 * activation) == words, "whatever the scale"


@pytest.mark.parametrize("size", [2, 3, 4, 5, 7, 8, 16])
def test_words_follow_a_flipped_map(size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    swaps = {"upper": "lower", "lower": "upper"}
    for _ in range(50):
        activation = torch.rand(size, size, generator=generator) ** 12
        turned = " ".join(swaps.get(word, word) for word in in_words(activation).split())
        assert in_words(activation.flip(0)) == turned


class Own(nn.Module):
    """Network of a user's own that ends as maps need."""

    def __init__(self) -> None:
        super().__init__()
        self.features: Any = nn.Conv2d(3, 4, 3)
        self.classifier: Any = nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean((2, 3)))


class NoFeatures(Own):
    def __init__(self) -> None:
        super().__init__()
        self.last = self.features
        del self.features

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.last(images).mean((2, 3)))


class TwoLayers(Own):
    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))


class MaxPool(Own):
    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).amax((2, 3)))


class Flat(Own):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 16), nn.Flatten())

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images))


class Scaled(PooledClassifier):
    """Subclass of sprat's classifier that ends differently."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.add_head(4, 2, 0.0)

    def features(self, images: Tensor) -> Tensor:
        return self.conv(images)

    def classify(self, pooled: Tensor) -> Tensor:
        return super().classify(pooled.sigmoid())


def test_custom_network_with_linear_head_is_explained() -> None:
    network = Own().train()
    ActivationMaps(network, PLAIN, side=16)
    assert network.training, "its mode is unchanged"


@pytest.mark.parametrize(
    ("kind", "lacks"),
    [
        (NoFeatures, "no method features"),
        (TwoLayers, "no linear layer named classifier"),
        (MaxPool, "its logits are not those of"),
        (Scaled, "its logits are not those of"),
        (Flat, "computing its features failed .IndexError"),
    ],
)
def test_network_with_another_head_is_refused(kind: type[nn.Module], lacks: str) -> None:
    with pytest.raises(SpratError, match=f"^{kind.__name__} does not end in .*{lacks}") as refused:
        ActivationMaps(kind(), PLAIN, side=16)
    assert str(refused.value).endswith("classifier(features(images).mean((2, 3))).")


def test_non_finite_logit_is_refused() -> None:
    network = Own()
    explain = ActivationMaps(network, PLAIN, side=16)
    network.classifier.bias.data[0] = float("nan")
    with pytest.raises(SpratError, match="infinite or not a number"):
        explain(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
