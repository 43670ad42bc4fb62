"""Fastest way from normalised images to logits, chosen in one place."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sprat.kernels import Inference, NoKernels, is_built

WORTH_COMPILING = 1_000  # images; fewer are finished sooner without compiling


class FrozenNetwork:
    """A network with its current weights and statistics, ready to classify images.

    On a CPU, compiled kernels compute the logits if they support the network and a compiler is
    available; probabilities then agree within 1e-5. Otherwise the network itself does. The kernels
    are used at once if they are cached, and are compiled only for many images.

    Args:
        network: must be in evaluation mode whenever this is called; its weights must not change.

    Takes normalised float32 images B x C x H x W on the network's device and returns logits B x
    num_classes. It can be pickled.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.device: torch.device = next(network.parameters()).device
        self._expected = 0
        self._compiled: Inference | None = None
        self._prepare(compiling=False)

    def expect(self, images: int) -> None:
        """Compile the kernels if that pays off for this many more images. Optional to call."""
        before = self._expected
        self._expected += images
        if before < WORTH_COMPILING <= self._expected and self._compiled is None:
            self._prepare(compiling=True)

    def __call__(self, images: Tensor) -> Tensor:
        return (self._compiled or self.network)(images)

    def __reduce__(self) -> tuple[Any, ...]:
        return FrozenNetwork, (self.network,)

    def _prepare(self, compiling: bool) -> None:
        if self.device.type != "cpu":
            return
        try:
            if compiling or is_built("inference"):
                self._compiled = Inference(self.network)
        except NoKernels:
            self._compiled = None


@contextmanager
def frozen(network: nn.Module | FrozenNetwork) -> Iterator[FrozenNetwork]:
    """Freeze a network and put it into evaluation mode for the block; its mode is restored at the
    end. A network that is already frozen is yielded unchanged."""
    if isinstance(network, FrozenNetwork):
        yield network
        return
    training = network.training
    network.eval()
    try:
        yield FrozenNetwork(network)
    finally:
        network.train(training)
