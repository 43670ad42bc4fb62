"""Tests of the moving average and the BatchNorm statistics, compared with plain computations."""

import pytest
import torch
from torch import nn

from sprat.models import build_network
from sprat.training.ema import EMA, reestimate_batchnorm


def _walk(network: nn.Module) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_average_agrees_with_the_plain_recurrence() -> None:
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    ema = EMA(network, decay=0.8)
    expected = network.weight.detach().double().clone()
    for step in range(60):
        _walk(network)
        ema.update(step)
        decay = min(0.8, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * network.weight.detach().double()
    torch.testing.assert_close(ema.network.weight.double(), expected, rtol=1e-5, atol=1e-5)


def test_the_warm_up_forgets_the_initial_weights() -> None:
    network = nn.Linear(1, 1)
    nn.init.constant_(network.weight, 1000.0)
    ema = EMA(network, decay=0.999)
    nn.init.constant_(network.weight, 0.0)
    for step in range(100):
        ema.update(step)
    # without a warm-up, 0.999 ** 100 would leave 905 of the 1000
    assert abs(ema.network.weight.item()) < 1e-6


def test_update_does_not_change_the_network() -> None:
    torch.manual_seed(0)
    network = build_network("OptimizedCIFAR10Net200K")
    ema = EMA(network, decay=0.9)
    _walk(network)  # else the average equals the network, and copying it changes nothing
    before = {k: v.clone() for k, v in network.state_dict().items()}
    ema.update(0)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert network.training
    assert not any(p.requires_grad for p in ema.network.parameters())


def test_reestimated_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.9), nn.ReLU()).eval()
    network[0].running_mean.fill_(5)
    network[0].num_batches_tracked.fill_(7)  # as after training
    images = torch.randn(40, 3, 4, 4) * 2 + 1
    reestimate_batchnorm(network, images.split(10))
    torch.testing.assert_close(network[0].running_mean, images.mean((0, 2, 3)))
    variances = torch.stack([part.var((0, 2, 3)) for part in images.split(10)])
    torch.testing.assert_close(network[0].running_var, variances.mean(0))
    assert not any(module.training for module in network.modules())
    assert network[0].momentum == pytest.approx(0.1)


def test_reestimating_changes_only_batchnorm_statistics() -> None:
    torch.manual_seed(0)
    network = build_network("OptimizedCIFAR10Net200K")
    before = [p.clone() for p in network.parameters()]
    reestimate_batchnorm(network, [torch.randn(4, 3, 32, 32)])
    assert all(torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))
    batches = iter([torch.randn(4, 2)])
    reestimate_batchnorm(nn.Linear(2, 2), batches)
    assert next(batches, None) is not None, "without BatchNorm, no batch is read"
