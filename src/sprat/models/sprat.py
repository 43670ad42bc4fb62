"""sprat's own networks: all that a small budget of parameters can buy, at the price of arithmetic.

Most pixels are kept (one halving, so that few parameters see few of them), depthwise windows of
several sizes look near and far, and wide 1x1 convolutions mix channels. BatchNorm and ReLU stand
where the compiled kernels have them, so that these too train fast on a CPU. Begun from what others
measured; what our own trials made of it is told in docs/explanation/what-helps.md.

    SpratS   widths 28, 52      SpratM   widths 48, 84      SpratL   widths 64, 120

SpratT is for microcontrollers, where arithmetic and memory are what is dear: it halves the side
twice, narrows where the maps are large, and has 3x3 windows alone, so that nothing splits or joins
channels as it runs.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.models.blocks import Block, Blueprint, Separable, in_a_row, stem_of
from sprat.models.classifier import PooledClassifier, conv_bn
from sprat.models.optimized200k import DepthwiseSeparableConv2d

# kernel of each equal share of the channels; 1 leaves them as they are
KERNELS = (1, 3, 5, 7)


class Windows(nn.Module):
    """Depthwise convolutions of several sizes, each on its share of the channels. Keeps the shape
    B x channels x H x W; channels must be divisible by the number of kernels."""

    def __init__(self, channels: int, kernels: tuple[int, ...] = KERNELS) -> None:
        super().__init__()
        share = channels // len(kernels)
        self.parts = nn.ModuleList(
            nn.Conv2d(share, share, kernel, padding=kernel // 2, groups=share, bias=False)
            if kernel > 1
            else nn.Identity()
            for kernel in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0](x)
        shares = x.chunk(len(self.parts), dim=1)
        return torch.cat([part(share) for part, share in zip(self.parts, shares, strict=True)], 1)


class SpratBlock(nn.Module):
    """Windows and a wide 1x1 convolution, ReLU, a narrow 1x1 convolution, beside the identity; ReLU
    after the sum. Keeps the shape."""

    def __init__(self, channels: int, wide: int, kernels: tuple[int, ...] = KERNELS) -> None:
        super().__init__()
        self.windows = Windows(channels, kernels)
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.bn1(self.widen(self.windows(x))))
        return F.relu(x + self.bn2(self.narrow(wide)))


class Halving(DepthwiseSeparableConv2d):
    """A strided depthwise separable convolution, then ReLU: B x in_channels x H x W to
    B x out_channels x ceil(H/2) x ceil(W/2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class SpratNet(PooledClassifier):
    """The family; a subclass names its widths.

    widths: channels of each stage, halving the side from one to the next, each divisible by the
        number of kernels. depth: blocks of a stage, or of each. widening: how many times as wide a
        block is inside, or those of each stage. kernels: of their windows.
    """

    widths: ClassVar[tuple[int, ...]]
    depth: ClassVar[int | tuple[int, ...]] = 3
    widening: ClassVar[float | tuple[float, ...]] = 1.5
    kernels: ClassVar[tuple[int, ...]] = KERNELS

    def __init__(self, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        count = len(self.widths)
        depths = self.depth if isinstance(self.depth, tuple) else (self.depth,) * count
        widenings = self.widening if isinstance(self.widening, tuple) else (self.widening,) * count
        self.stem = nn.Sequential(*conv_bn(3, self.widths[0]), nn.ReLU())
        stages: list[nn.Module] = []
        for i, width in enumerate(self.widths):
            halving = [Halving(self.widths[i - 1], width)] if i else []
            blocks = (self.block(width, round(widenings[i] * width)) for _ in range(depths[i]))
            stage = nn.Sequential(*blocks)
            stages.append(nn.Sequential(*halving, stage) if i else stage)
        self.stages = nn.Sequential(*stages)
        self.add_head(self.widths[-1], num_classes, dropout, he_init=False)

    def block(self, channels: int, wide: int) -> nn.Module:
        """One block, so wide inside."""
        return SpratBlock(channels, wide, self.kernels)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))

    def blocks(self) -> Blueprint | None:
        """Describe the network; None if a block is of another kind than the family's."""
        return self.blueprint(stem_of(self.stem), map(_described, in_a_row(self.stages)))


def _described(part: Any) -> Block | None:
    if type(part) is SpratBlock and type(part.windows) is Windows:
        windows: Any = tuple(part.windows.parts)
        widen = Separable(windows, part.widen, part.bn1)
        narrow = Separable((nn.Identity(),), part.narrow, part.bn2)
        return Block((widen, narrow), nn.Identity())
    if type(part) is Halving:
        return Block((part.described(),))
    return None


class SpratT(SpratNet):
    """Within what ResNet-8 of MLPerf Tiny takes: parameters, arithmetic, memory for activations."""

    widths = (16, 52, 80)
    depth = (2, 3, 2)
    widening = (1.0, 1.5, 1.5)
    kernels = (3,)


class SpratS(SpratNet):
    """About 40,000 parameters."""

    widths = (28, 52)


class SpratM(SpratNet):
    """About 100,000 parameters."""

    widths = (48, 84)


class SpratL(SpratNet):
    """Just under 200,000 parameters."""

    widths = (64, 120)
