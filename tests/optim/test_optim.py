"""Tests of optimizers: weight decay, orthogonal steps, and resuming from a saved state."""

import copy
import math

import pytest
import torch
from torch import nn

from sprat.models import NETWORKS, build_network
from sprat.optim import OPTIMIZERS, build_optimizer, restore_state
from sprat.optim.muon import (
    Muon,
    orthogonalized,
    orthogonalized_by_shape,
    orthogonalized_together,
)
from sprat.settings.config import OptimConfig


def _with_gradients(network: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    return network


@pytest.mark.parametrize("model", NETWORKS)
@pytest.mark.parametrize("name", OPTIMIZERS)
class TestEveryNetwork:
    def test_every_parameter_is_in_one_group(self, model: str, name: str) -> None:
        network = build_network(model)
        optimizer = build_optimizer(network, OptimConfig(name=name))
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert len(held) == len(set(held))
        assert set(held) == set(network.parameters())

    @pytest.mark.parametrize("decay_all", [False, True])
    def test_norms_and_biases_are_decayed_only_on_request(
        self, model: str, name: str, decay_all: bool
    ) -> None:
        config = OptimConfig(name=name, weight_decay=0.01, decay_norm_and_bias=decay_all)
        for group in build_optimizer(build_network(model), config).param_groups:
            for parameter in group["params"]:
                if parameter.ndim <= 1:
                    assert group["weight_decay"] == 0.01 * decay_all

    def test_restored_optimizer_continues_exactly(self, model: str, name: str) -> None:
        config = OptimConfig(name=name)
        network = _with_gradients(build_network(model))
        optimizer = build_optimizer(network, config)
        optimizer.step()
        copied = _with_gradients(copy.deepcopy(network))
        resumed = build_optimizer(copied, config)
        restore_state(resumed, copy.deepcopy(optimizer.state_dict()["state"]))
        for trained, stepper in ((network, optimizer), (copied, resumed)):
            _with_gradients(trained)
            stepper.step()
        pairs = zip(network.parameters(), copied.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_mismatched_optimizer_state_is_refused(name: str) -> None:
    network = _with_gradients(nn.Conv2d(3, 4, 1))
    optimizer = build_optimizer(network, OptimConfig(name=name))
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    number, kept = next(iter(saved.items()))
    for spoilt in (
        saved | {number: {}},
        saved | {number: kept | {"another": torch.zeros(())}},
        saved | {number: {key: value[:1] for key, value in kept.items() if value.ndim}},
        saved | {99: kept},
    ):
        with pytest.raises(ValueError, match="the optimizer's state"):
            restore_state(optimizer, spoilt)
    restore_state(optimizer, {})  # saved before the first step


class TestMuon:
    def test_steps_along_the_orthogonalized_nesterov_average(self) -> None:
        """Compare two steps with the singular value decomposition of each matrix."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(6, 10, 1, bias=False), nn.Conv2d(10, 6, 1, bias=False))
        optimizer = build_optimizer(network, OptimConfig(name="muon", muon_lr=0.1, momentum=0.8))
        assert isinstance(optimizer, Muon)
        averages = [torch.zeros_like(p) for p in network.parameters()]
        for _ in range(2):
            _with_gradients(network)
            expected = []
            for parameter, average in zip(network.parameters(), averages, strict=True):
                assert parameter.grad is not None
                average.mul_(0.8).add_(parameter.grad)
                ahead = (parameter.grad + 0.8 * average).flatten(1)
                u, _, v = torch.linalg.svd(ahead, full_matrices=False)
                scale = math.sqrt(max(1, len(parameter) / parameter.shape[1]))
                expected.append((parameter.detach().clone().flatten(1), scale * u @ v))
            optimizer.step()
            for parameter, (before, direction) in zip(network.parameters(), expected, strict=True):
                step = (before - parameter.detach().flatten(1)) / 0.1
                cosine = (step * direction).sum() / step.norm() / direction.norm()
                assert cosine > 0.97
                assert 0.7 < step.norm() / direction.norm() < 1.2

    @pytest.mark.parametrize("shape", [(3, 8, 8), (2, 20, 40), (2, 160, 80)])
    def test_singular_values_are_near_1(self, shape: tuple[int, ...]) -> None:
        torch.manual_seed(0)
        matrices = torch.randn(shape) * torch.tensor([1e-4, 1.0, 50.0])[: shape[0], None, None]
        values = torch.linalg.svdvals(orthogonalized(matrices))
        assert orthogonalized(matrices).shape == shape
        assert values.max() < 1.35
        assert values.median() > 0.6

    def test_updates_only_pointwise_convolutions(self) -> None:
        network = build_network("OptimizedCIFAR10Net200K")
        optimizer = build_optimizer(network, OptimConfig(name="muon"))
        its = [g for g in optimizer.param_groups if "muon_momentum" in g]
        assert len(its) == 1
        assert all(p.ndim == 4 and p.shape[2:] == (1, 1) for p in its[0]["params"])
        assert len(its[0]["params"]) == 19


def test_orthogonalizing_together_matches_each_shape_alone() -> None:
    shapes = [(20, 20), (40, 20), (20, 40), (96, 24), (20, 20)]
    matrices = [torch.randn(shape) for shape in shapes]
    together = orthogonalized_together(matrices)
    for ours, theirs in zip(together, orthogonalized_by_shape(matrices), strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).norm() < 0.03 * theirs.norm()  # bf16 if the largest matrix is large
