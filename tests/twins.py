"""Networks that the compiled kernels support, and the distance of their results from PyTorch's."""

import copy

import pytest
import torch
from torch import Tensor, nn

from sprat.kernels import NoKernels, prepare
from sprat.kernels.wiring import Trunk
from sprat.models import NetworkConfig, build_network

SUPPORTED = ("OptimizedCIFAR10Net200K", "SpratNet", "SpratT", "SpratS", "SpratM", "SpratL")
SPECS = [
    NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,)),
    NetworkConfig(name="SpratNet", widths=(9, 15, 21), kernels=(1, 3, 5), widening=(1.3,)),
    NetworkConfig(name="SpratNet", widths=(8, 8), depth=(0, 2), strides=(2, 1)),
    NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,), shortcut=(0, 1)),
    NetworkConfig(name="SpratNet", widths=(5, 10), depth=(1,), strides=(3, 2),
                  kernels=(1, 3, 5, 7, 3)),
    NetworkConfig(name="SpratNet", widths=(7, 5), depth=(1,), strides=(4, 3), widening=(0.1, 0.5),
                  kernels=(3,)),
    NetworkConfig(name="SpratNet", widths=(1, 3), depth=(1,), kernels=(1,), widening=(3.0,)),
    NetworkConfig(name="SpratNet", widths=(6, 9), depth=(0,), strides=(1, 4), kernels=(1,)),
    NetworkConfig(name="SpratNet", widths=(7,), depth=(0,), strides=(3,), kernels=(1,)),
    NetworkConfig(name="SpratS", depth=(1, 2), widening=(1.0, 2.0)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", widths=(6, 10, 14), depth=(1, 2, 1)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", strides=(2, 2, 1, 2)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", widths=(5, 5, 9), depth=(1,), strides=(3, 4, 1)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", widths=(5, 9), depth=(0, 1), strides=(1,)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", widths=(9, 5), depth=(0,)),
]  # fmt: skip


def reason_here() -> str | None:
    """Return why there are no kernels on this machine, or None if there are."""
    try:
        prepare(torch.device("cpu"), bf16=False)
    except NoKernels as reason:
        return str(reason)
    return None


REASON = reason_here()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels: {REASON}")


@pytest.fixture(params=["OptimizedCIFAR10Net200K", "SpratS", "SpratT"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    return built(request.param)


def built(spec: str | NetworkConfig, in_channels: int = 3) -> nn.Module:
    """Return a network in training mode whose BatchNorms have random weights and biases."""
    torch.manual_seed(3)
    network = build_network(spec, in_channels=in_channels)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.train()


def distance(ours: Tensor, theirs: Tensor, least: float = 0.0) -> float:
    """Return the norm of the difference relative to that of `theirs`, or to `least` if larger."""
    return ((ours - theirs).norm() / max(theirs.norm().item(), least)).item()


def gradients(network: nn.Module, pooled: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    (pooled * torch.randn(pooled.shape, generator=generator)).sum().backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def features(network: nn.Module, images: Tensor) -> Tensor:
    return network.features(images).mean(dim=(2, 3))  # type: ignore[operator]


def far_from_twin(
    network: nn.Module, fast: Trunk, images: Tensor, least: float = 0.0
) -> dict[str, float]:
    """Return the distances of one step's output, gradients and running statistics from those of
    plain PyTorch. A gradient shorter than `least` times the longest counts as that long."""
    twin = copy.deepcopy(network)
    ours, theirs = fast(images), features(twin, images)
    found = {"pooled": distance(ours, theirs)}
    plain = gradients(twin, theirs)
    fused = gradients(network, ours)
    assert fused.keys() == plain.keys()
    least *= max(gradient.norm().item() for gradient in plain.values())
    found |= {name: distance(fused[name], plain[name], least) for name in plain}
    for (name, ours), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
        found[name] = distance(ours.float(), theirs.float())
    return found


def trained(spec: str | NetworkConfig) -> nn.Module:
    """Return a network in evaluation mode whose BatchNorms have random weights and statistics."""
    torch.manual_seed(7)
    network = build_network(spec).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.5, 0.5)  # type: ignore[union-attr]
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    return network.requires_grad_(False)


def far(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of a probability, or the relative difference of the logits if
    that is more: saturated probabilities of 0 and 1 hide differences."""
    probabilities = (ours.softmax(1) - theirs.softmax(1)).abs().max()
    return max(probabilities.item(), ((ours - theirs).norm() / theirs.norm()).item())
