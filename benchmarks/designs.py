"""Networks that lost to SpratS, for proxy.py: SpratS with one part of its blocks replaced."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sprat.models.sprat import SpratBlock, SpratS
from sprat.models.tiniest import ChannelNorm


class GatedBlock(SpratBlock):
    """Block in which one wide 1x1 convolution gates another by SiLU, in place of one with ReLU.

    As in SwiGLU (Shazeer 2020, arXiv 2002.05202).
    """

    def __init__(self, channels: int, kernels: Sequence[int]) -> None:
        super().__init__(channels, 2 * channels, kernels)
        self.narrow = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, values = self.bn1(self.widen(self.windows(x))).chunk(2, dim=1)
        return F.relu(x + self.bn2(self.narrow(F.silu(gate) * values)))


class UnbentBlock(SpratBlock):
    """Block without ReLU after the sum."""

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.narrow(F.relu(self.bn1(self.widen(self.windows(x))))))


class Gated(SpratS):
    """SpratS with a gate instead of ReLU."""

    def block(self, channels: int, wide: int, kernels: Sequence[int]) -> nn.Module:
        return GatedBlock(channels, kernels)


class Unbent(SpratS):
    """SpratS without ReLU after the sums."""

    def block(self, channels: int, wide: int, kernels: Sequence[int]) -> nn.Module:
        return UnbentBlock(channels, wide, kernels)


class LayerNormed(SpratS):
    """SpratS with LayerNorm over channels instead of BatchNorm in the blocks."""

    def block(self, channels: int, wide: int, kernels: Sequence[int]) -> nn.Module:
        block = SpratBlock(channels, wide, kernels)
        block.bn1, block.bn2 = ChannelNorm(wide), ChannelNorm(channels)  # type: ignore[assignment]
        return block
