"""The fastest way from normalised images to logits, chosen in one place."""

from typing import Any

import torch
from torch import Tensor, nn

from sprat.kernels import Inference, NoKernels, is_built

WORTH_COMPILING = 1_000  # images; fewer are done before the compiler is


class FrozenNetwork:
    """A network with its weights and statistics as they are now, to be asked for logits.

    On a CPU they come from compiled kernels where these support the network and a compiler is
    available, alike within 1e-5; everywhere else from the network itself. The kernels are used at
    once if they have been compiled, and are compiled when there are many images.

    Args:
        network: in evaluation mode whenever this is called; its weights must not change.

    Calling it takes normalised float32 images B x 3 x H x W on the network's device and returns
    logits B x num_classes. It can be pickled.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.device: torch.device = next(network.parameters()).device
        self._expected = 0
        self._compiled: Inference | None = None
        self._prepare(compiling=False)

    def expect(self, images: int) -> None:
        """Compile the kernels if that pays for so many more images. Optional."""
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
