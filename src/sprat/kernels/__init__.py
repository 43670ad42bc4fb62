"""Compiled kernels for the training step on a CPU; optional, built at first use.

fast = compiled_forward(network, bf16=True, threads=2)
logits = fast(images)  # as network(images) would, autograd included
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sprat.kernels.build import NoKernels, load
from sprat.kernels.trunk import LANES, Trunk
from sprat.models import OptimizedCIFAR10Net200K

__all__ = ["NoKernels", "compiled_forward", "why_not"]


def why_not(
    model: type[nn.Module], device: torch.device, batch_size: int, bf16: bool
) -> str | None:
    """Why the kernels cannot do a training step here, in words; None where they can."""
    if device.type != "cpu":
        return f"they are for CPUs, not {device.type}"
    if model is not OptimizedCIFAR10Net200K:
        return f"they do not know {model.__name__}"
    if batch_size % LANES:
        return f"batch_size is {batch_size}, not a multiple of {LANES}"
    try:
        load(bf16)
    except NoKernels as reason:
        return str(reason)
    return None


def compiled_forward(network: nn.Module, *, bf16: bool, threads: int) -> Callable[[Tensor], Tensor]:
    """What `network(images)` does in training, through the kernels.

    Raises:
        NoKernels: they cannot be built here, or do not know the network.
    """
    trunk = Trunk(network, bf16=bf16, threads=threads)

    def forward(images: Tensor) -> Tensor:
        return network.classify(trunk(images))  # type: ignore[operator]

    return forward
