"""Exponential moving average of weights, evaluated with BatchNorm statistics that fit them.

The statistics of averaged weights are not the average of the statistics: the activations of the
averaged network have another distribution. So its BatchNorm buffers are estimated again from
training images before it is evaluated (as in stochastic weight averaging, arXiv 1803.05407).
benchmarks/ema_batchnorm.py measures the gain.
"""

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class EMA:
    """Moving average of a network's parameters, as a network.

    Args:
        network: the network to follow; never changed.
        decay: fraction of the average that is kept at each step, in (0, 1).

    The decay warms up as min(decay, (1 + step) / (10 + step)), so that the random initial weights
    are forgotten within a few steps instead of a few times 1 / (1 - decay).
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # not the BatchNorm buffers, which are estimated again before they are used
        self._averages: list[Tensor] = list(self.network.parameters())
        self._followed: list[Tensor] = list(network.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the network, whose optimizer has just taken step `step`."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._followed, 1 - decay)


@torch.no_grad()
def reestimate_batchnorm(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running statistics of every BatchNorm with those of `batches`, in place.

    All batches (normalised images, B x C x H x W) have the same weight. Nothing else changes: not
    the weights, dropout or the mode of other modules, nor a network without BatchNorm.
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
