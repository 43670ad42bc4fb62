"""Effective receptive field (Luo et al. 2016, arXiv 1701.04128): which pixels of its field a value
actually depends on, and how strongly."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from sprat.budget.graph import export, in_channels, list_ops
from sprat.budget.reach import place_before_global_pooling, reaches
from sprat.errors import SpratError

DRAWS = 32  # images of noise
SHARE_OF_PEAK = 1 - 0.9545  # below this fraction of the largest gradient, a pixel is outside


def effective_field(
    network: nn.Module, side: int, progress: Callable[[int], None] = lambda done: None
) -> Tensor:
    """Return how strongly the middle value before global pooling depends on each pixel.

    This is the magnitude of the gradient of that value (summed over its channels) with respect to
    each pixel, averaged over colours and `DRAWS` images of normal noise, in eval mode with the
    current weights. An untrained network shows what its structure and initial weights favour.

    Args:
        side: side of the images in pixels. progress: called with the number of images done.

    Returns:
        float32, side x side, at most 1.

    Raises:
        SpratError: the network cannot be traced, or its field is the whole image.
    """
    program = export(network, side)
    ops = list_ops(program)
    place = place_before_global_pooling(ops, reaches(ops))
    if place is None:
        raise SpratError(
            f"Every value of {type(network).__name__} depends on the whole image, so the network "
            "has no effective receptive field. Choose another network."
        )
    run_until = _RunUntil(program.module(), place)
    generator = torch.Generator().manual_seed(0)
    gradients, channels = torch.zeros(side, side), in_channels(network)
    for _ in range(DRAWS):
        image = torch.randn(1, channels, side, side, generator=generator).requires_grad_()
        features = run_until(image)  # 1 x C x H x W
        middle = features[0, :, features.shape[2] // 2, features.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle.sum(), image)
        gradients += gradient.abs().mean((0, 1))
        progress(1)
    return gradients / gradients.max().clamp_min(torch.finfo(torch.float32).tiny)


def effective_side(field: Tensor) -> float:
    """Return the side, in pixels, of a square with as many pixels as the effective field."""
    return float((field > SHARE_OF_PEAK).sum()) ** 0.5


class _RunUntil(fx.Interpreter):
    """Run a traced network and return the result of its `place`-th call."""

    def __init__(self, module: nn.Module, place: int) -> None:
        super().__init__(module)
        self.place = place

    def __call__(self, image: Tensor) -> Tensor:
        self.calls, self.found = 0, image
        self.run(image)
        return self.found

    def run_node(self, node: fx.Node) -> Any:
        result = super().run_node(node)
        self.calls += node.op == "call_function"
        if self.calls == self.place:
            self.found = result
            self.calls += 1  # so that no other call matches
        return result
