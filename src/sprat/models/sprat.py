"""sprat's own networks: all that a small budget of parameters can buy, at the price of arithmetic.

Most pixels are kept (one halving, so that few parameters see few of them), depthwise windows of
several sizes look near and far, and wide 1x1 convolutions mix channels. BatchNorm alone normalises,
so that at inference it folds into the convolution before it. Begun from what others measured; what
our own trials made of it is told in docs/explanation/what-helps.md.

    SpratS   widths 28, 52      SpratM   widths 48, 84      SpratL   widths 64, 120
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier

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
        shares = x.chunk(len(self.parts), dim=1)
        return torch.cat([part(share) for part, share in zip(self.parts, shares, strict=True)], 1)


class Pointwise(nn.Sequential):
    """Two 1x1 convolutions, ReLU between them, half as wide again inside. Keeps the shape."""

    def __init__(self, channels: int) -> None:
        wide = 3 * channels // 2
        super().__init__(
            nn.Conv2d(channels, wide, 1), nn.ReLU(), nn.Conv2d(wide, channels, 1, bias=False)
        )


class SpratBlock(nn.Module):
    """Windows, BatchNorm, 1x1 convolutions, BatchNorm, beside the identity. Keeps the shape."""

    def __init__(self, windows: nn.Module, mix: nn.Module, channels: int) -> None:
        super().__init__()
        self.windows = windows
        self.bn1 = nn.BatchNorm2d(channels)
        self.mix = mix
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bn2(self.mix(self.bn1(self.windows(x))))


class SpratNet(PooledClassifier):
    """The family; a subclass names its widths.

    widths: channels of each stage, halving the side from one to the next, each divisible by the
        number of kernels. depth: blocks of a stage.
    """

    widths: ClassVar[tuple[int, ...]]
    depth: ClassVar[int] = 3

    def __init__(self, num_classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        first, *rest = self.widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False), nn.BatchNorm2d(first)
        )
        stages = [self.stage(first)]
        for narrow, wide in zip(self.widths, rest, strict=False):
            down = [
                nn.Conv2d(narrow, narrow, 4, 2, padding=1, groups=narrow, bias=False),
                nn.Conv2d(narrow, wide, 1, bias=False),
                nn.BatchNorm2d(wide),
            ]
            stages.append(nn.Sequential(*down, self.stage(wide)))
        self.stages = nn.Sequential(*stages)
        self.add_head(self.widths[-1], num_classes, dropout, he_init=False)

    def stage(self, channels: int) -> nn.Sequential:
        """`depth` blocks."""
        return nn.Sequential(*(self.block(channels) for _ in range(self.depth)))

    def block(self, channels: int) -> nn.Module:
        """One block."""
        return SpratBlock(Windows(channels), Pointwise(channels), channels)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))


class SpratS(SpratNet):
    """About 40,000 parameters."""

    widths = (28, 52)


class SpratM(SpratNet):
    """About 100,000 parameters."""

    widths = (48, 84)


class SpratL(SpratNet):
    """Just under 200,000 parameters."""

    widths = (64, 120)
