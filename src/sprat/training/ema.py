"""Exponential moving average of weights, evaluated with BatchNorm statistics that fit them.

The statistics of averaged weights are not the average of the statistics: activations of the
averaged network are another distribution, so its BatchNorm buffers are estimated again from
training images before it is evaluated (as in stochastic weight averaging, arXiv 1803.05407).
benchmarks/ema_batchnorm.py measures what that is worth.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EMA:
    """A network whose parameters are the moving average of another's.

    Args:
        network: the network to follow; never changed.
        decay: share of the average that one step keeps, in (0, 1).

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the random initial
    weights are forgotten within a few steps instead of a few times 1 / (1 - decay).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # not the BatchNorm buffers, which are estimated again before they are used
        self._averages: list[Tensor] = list(self.network.parameters())
        self._followed: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the network, whose optimizer has just taken step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._followed, 1 - decay)


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replaces every BatchNorm's running statistics by those of `batches`, in place.

    Each batch (normalised images, B x C x H x W) counts the same. Everything else (weights,
    dropout, the mode of other modules) stays as it is. A network without BatchNorm is left
    alone.
    """
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative mean
        norm.train()
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
