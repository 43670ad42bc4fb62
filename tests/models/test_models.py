"""Tests of all networks: parameter counts, shapes, names and gradients."""

import pytest
import torch

from sprat import names
from sprat.augment.views import VIEWS
from sprat.budget import count_parameters
from sprat.errors import SpratError
from sprat.models import NETWORKS, build_network, check_outputs, find_name
from sprat.models.optimized200k import EfficientBlock, OptimizedCIFAR10Net200K


def test_optimized200k_has_expected_parameters() -> None:
    network = OptimizedCIFAR10Net200K()
    assert count_parameters(network) == 150_690
    parts = [count_parameters(part) for part in network.children()]
    assert parts == [580, 2_480, 8_060, 28_920, 109_040, 0, 1_610]
    assert all(not name.endswith("bias") or "bn" in name or "1.bias" in name or "classifier" in name
               for name, _ in network.named_parameters())  # fmt: skip


# name -> parameters with ten classes: as published, or as counted for sprat's own networks
PUBLISHED = {
    "OptimizedCIFAR10Net200K": 150_690,
    "SpratNet": 101_311,
    "SpratT": 75_742,
    "SpratS": 40_726,
    "SpratM": 94_858,
    "SpratL": 192_240,
    "ResNet8": 78_186,  # Keras counts 78,666, with 480 running statistics
    "ResNet20": 272_474,
    "ResNet20A": 269_722,
    "WRN16x1": 175_066,
    "Tiniest": 97_530,
    "DenseNetBC40": 176_122,
    "ShuffleNetV2x05": 352_042,
    "MobileNetV2": 2_236_682,
    "ResNet18": 11_173_962,
}


def test_every_network_has_a_published_count() -> None:
    assert PUBLISHED.keys() == NETWORKS.keys()


def test_resnet8_with_statistics_matches_keras_count() -> None:
    network = build_network("ResNet8")
    statistics = [b for name, b in network.named_buffers() if "running" in name]
    assert count_parameters(network) + sum(b.numel() for b in statistics) == 78_666


def test_view_names_without_torch_match_views() -> None:
    assert list(names.VIEWS) == list(VIEWS)


@pytest.mark.parametrize("name", NETWORKS)
class TestEveryNetwork:
    def test_has_its_published_parameters(self, name: str) -> None:
        assert count_parameters(build_network(name)) == PUBLISHED[name]

    def test_every_parameter_gets_a_gradient(self, name: str) -> None:
        torch.manual_seed(0)
        network = build_network(name).train()
        network(torch.randn(8, 3, 32, 32)).square().mean().backward()
        without = [n for n, p in network.named_parameters()
                   if p.grad is None or not p.grad.abs().sum() > 0]  # fmt: skip
        assert without == []

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 31), (32, 32), (96, 64)])
    def test_accepts_any_image_size_and_class_count(
        self, name: str, height: int, width: int
    ) -> None:
        network = build_network(name, num_classes=7).eval()
        assert network(torch.randn(2, 3, height, width)).shape == (2, 7)

    def test_invalid_batches_are_refused(self, name: str) -> None:
        network = build_network(name)
        for shape in [(3, 32, 32), (2, 1, 32, 32), (2, 3, 8, 32)]:
            with pytest.raises(ValueError, match=r"expected B x 3 x H x W.*at least 16"):
                network(torch.zeros(shape))

    def test_name_ignores_case_and_separators(self, name: str) -> None:
        for spelled in (name, name.lower(), name.upper(), "-".join(name), "_".join(name)):
            assert find_name(spelled) == name

    def test_batching_does_not_change_logits(self, name: str) -> None:
        torch.manual_seed(0)
        network = build_network(name).eval()
        images = torch.randn(5, 3, 32, 32)
        alone = torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network(images), alone, atol=1e-5, rtol=1e-4)


def test_unknown_network_suggests_nearest_name() -> None:
    with pytest.raises(SpratError, match="did you mean 'OptimizedCIFAR10Net200K'"):
        build_network("optimized-cifar10-net-20k")


def test_shortcut_is_a_projection_only_if_shape_changes() -> None:
    assert isinstance(EfficientBlock(20, 20).shortcut, torch.nn.Identity)
    assert count_parameters(EfficientBlock(20, 40, 2).shortcut) == 20 * 40 + 2 * 40
    assert EfficientBlock(20, 40, 2)(torch.zeros(1, 20, 9, 8)).shape == (1, 40, 5, 4)


def test_dropout_acts_only_in_training() -> None:
    torch.manual_seed(0)
    network = build_network("OptimizedCIFAR10Net200K", dropout=0.5).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(network(images), network(images))
    network.dropout.train()
    assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (
            torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 7)),
            r"returns \(1, 7\) for one image",
        ),
        (torch.nn.Identity(), r"returns \(1, 3, 32, 32\) for one image, expected .*\(1, 10\)"),
        (torch.nn.LSTM(32, 10), "cannot process an image of 3 x 32 x 32"),
        (torch.nn.Linear(5, 10), "cannot process an image of 3 x 32 x 32: RuntimeError"),
    ],
)
def test_outputs_other_than_one_logit_per_class_are_refused(
    network: torch.nn.Module, message: str
) -> None:
    with pytest.raises(SpratError, match=message):
        check_outputs(network, 10, 32)
    assert network.training
