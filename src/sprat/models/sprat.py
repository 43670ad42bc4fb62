"""sprat's own networks: as much accuracy as few parameters can give, at the cost of more
arithmetic.

Most of the resolution is kept (the side is halved only once), depthwise windows of several
sizes see near and far, and wide 1x1 convolutions mix channels. BatchNorm and ReLU are where the
compiled kernels have them, so these networks also train fast on a CPU. The design starts from what
others measured; docs/explanation/what-helps.md reports what our own trials found.

    SpratS   widths 28, 52      SpratM   widths 48, 80      SpratL   widths 64, 120

SpratT is for microcontrollers, where arithmetic and memory are scarce: it halves the side twice, is
narrow where maps are large, and has only 3x3 windows, so that channels are never split or joined at
run time.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.models.blocks import Block, Blueprint, Separable, in_a_row, stem_of
from sprat.models.classifier import PooledClassifier, check_windows, conv_bn, each_stage
from sprat.models.optimized200k import DepthwiseSeparableConv2d


class Windows(nn.Module):
    """Depthwise convolutions of several sizes, each on an equal share of the channels. Keeps the
    shape B x channels x H x W; channels must be divisible by the number of kernels."""

    def __init__(self, channels: int, kernels: Sequence[int]) -> None:
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
    """Depthwise windows, a widening 1x1 convolution, ReLU, a narrowing 1x1 convolution, the sum
    with the input unless `shortcut` is False, ReLU. Keeps the shape."""

    shortcut = True

    def __init__(self, channels: int, wide: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.windows = Windows(channels, kernels)
        self.widen = nn.Conv2d(channels, wide, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.narrow = nn.Conv2d(wide, channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu(self.bn1(self.widen(self.windows(x))))
        out = self.bn2(self.narrow(wide))
        return F.relu(x + out if self.shortcut else out)


class Halving(DepthwiseSeparableConv2d):
    """A strided depthwise separable convolution, then ReLU: from B x in_channels x H x W to B x
    out_channels x ceil(H/stride) x ceil(W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 2) -> None:
        super().__init__(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


class SpratNet(PooledClassifier):
    """The family of sprat's own networks, with any widths, depths and windows.

    Args:
        num_classes: number of logits.
        dropout: probability of zeroing a pooled feature in training.
        widths: channels of each stage, each divisible by the number of kernels.
        depth: number of blocks: one value for all stages, or one for each.
        strides: stride of each stage; by default 1, then 2, so that each later stage halves the
            side.
        widening: width inside a block, relative to its outer width; for all stages or for each.
        kernels: sizes of the depthwise windows, odd; 1 leaves its share of the channels unchanged.
        shortcut: 1 to add a block's input to its output, 0 not to; for all stages or for each.
        in_channels: channels of the images, 3 or 1.

    Raises:
        SpratError: the settings contradict each other.
    """

    widths: ClassVar[Sequence[int]] = (48, 84)
    depth: ClassVar[Sequence[int]] = (3,)
    widening: ClassVar[Sequence[float]] = (1.5,)
    kernels: ClassVar[Sequence[int]] = (1, 3, 5, 7)
    shortcut: ClassVar[Sequence[int]] = (1,)

    def __init__(
        self,
        num_classes: int = 10,
        dropout: float = 0.0,
        *,
        widths: Sequence[int] = (),
        depth: Sequence[int] = (),
        strides: Sequence[int] = (),
        widening: Sequence[float] = (),
        kernels: Sequence[int] = (),
        shortcut: Sequence[int] = (),
        in_channels: int = 3,
    ) -> None:
        super().__init__(in_channels)
        widths, kernels = widths or self.widths, kernels or self.kernels
        check_windows(widths, kernels)
        strides = each_stage("strides", strides or (1, *(2 for _ in widths[1:])), widths)
        depth = each_stage("depth", depth or self.depth, widths)
        widening = each_stage("widening", widening or self.widening, widths)
        shortcut = each_stage("shortcut", shortcut or self.shortcut, widths)
        self.stem = nn.Sequential(*conv_bn(in_channels, widths[0], stride=strides[0]), nn.ReLU())
        stages: list[nn.Module] = []
        for i, width in enumerate(widths):
            wide = max(1, round(widening[i] * width))
            stage = nn.Sequential(*(self.block(width, wide, kernels) for _ in range(depth[i])))
            for block in stage if not shortcut[i] else ():
                block.shortcut = False  # type: ignore[assignment]
            halving = [Halving(widths[i - 1], width, strides[i])] if i else []
            stages.append(nn.Sequential(*halving, stage) if i else stage)
        self.stages = nn.Sequential(*stages)
        self.add_head(widths[-1], num_classes, dropout, he_init=False)

    def block(self, channels: int, wide: int, kernels: Sequence[int]) -> nn.Module:
        """Return one block, `wide` channels wide inside."""
        return SpratBlock(channels, wide, kernels)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))

    def blocks(self) -> Blueprint | None:
        """Describe the network; None if a block is of another class than the family's."""
        return self.blueprint(stem_of(self.stem), map(_described, in_a_row(self.stages)))


def _described(part: Any) -> Block | None:
    if type(part) is SpratBlock and type(part.windows) is Windows:
        windows: Any = tuple(part.windows.parts)
        widen = Separable(windows, part.widen, part.bn1)
        narrow = Separable((nn.Identity(),), part.narrow, part.bn2)
        return Block((widen, narrow), nn.Identity() if part.shortcut else None)
    if type(part) is Halving:
        return Block((part.described(),))
    return None


class SpratT(SpratNet):
    """A SpratNet with no more parameters, arithmetic or activation memory than MLPerf Tiny's
    ResNet-8."""

    widths = (16, 52, 80)
    depth = (2, 3, 2)
    widening = (1.0, 1.5, 1.5)
    kernels = (3,)


class SpratS(SpratNet):
    """A SpratNet of about 40,000 parameters."""

    widths = (28, 52)


class SpratM(SpratNet):
    """A SpratNet of just under 95,000 parameters."""

    widths = (48, 80)


class SpratL(SpratNet):
    """A SpratNet of just under 200,000 parameters."""

    widths = (64, 120)
