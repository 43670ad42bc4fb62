"""The "Tiniest" network (https://github.com/xvel/cifar10-tiniest), 97,530 parameters: 94.4 % on
CIFAR-10 there, the mean of five runs.

    stem   3 -> 48, 3x3, LayerNorm                            1,440
    3 blocks of 48 channels, at full resolution              25,344
    down   48 -> 80, 4x4 of stride 2 in 16 groups, LayerNorm  4,080
    3 blocks of 80 channels, at half of it                   65,856
    global average pooling, dropout, linear                     810
"""

import torch
from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of each pixel (Ba et al. 2016, arXiv 1607.06450). Keeps the shape
    B x channels x H x W."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class MixedDepthwise(nn.Module):
    """Depthwise windows near and far, one per quarter of the channels: none, 3x3, 7x7, and 7x7
    dilated to 19x19 after a 3x3 mean. Keeps the shape."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        quarter = channels // 4

        def window(kernel: int, dilation: int = 1) -> nn.Conv2d:
            padding = dilation * (kernel // 2)
            return nn.Conv2d(
                quarter, quarter, kernel, padding=padding, dilation=dilation, groups=quarter
            )

        self.near, self.middle = window(3), window(7)
        self.far = nn.Sequential(nn.AvgPool2d(3, 1, padding=1), window(7, dilation=3))

    def forward(self, x: Tensor) -> Tensor:
        still, near, middle, far = x.chunk(4, dim=1)
        return torch.cat([still, self.near(near), self.middle(middle), self.far(far)], dim=1)


class GatedBlock(nn.Module):
    """Mixed windows, norm, then a gated pair of 1x1 convolutions, with a weighted shortcut.

    The gate is TanhExp, x tanh(exp x) (Liu and Di 2020, arXiv 2003.09855). Keeps the shape.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.windows = MixedDepthwise(channels)
        self.norm = ChannelNorm(channels)
        self.expand = nn.Conv2d(channels, 2 * channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)
        self.keep = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gate, values = self.expand(self.norm(self.windows(x))).chunk(2, dim=1)
        return self.project(gate * gate.exp().tanh() * values) + x * self.keep


class Tiniest(PooledClassifier):
    """Six gated blocks of 48 and 80 channels; 97,530 parameters with ten classes."""

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.0, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 48, 3, padding=1), ChannelNorm(48))
        self.stage1 = nn.Sequential(*(GatedBlock(48) for _ in range(3)))
        self.down = nn.Sequential(nn.Conv2d(48, 80, 4, 2, padding=1, groups=16), ChannelNorm(80))
        self.stage2 = nn.Sequential(*(GatedBlock(80) for _ in range(3)))
        self.add_head(80, num_classes, dropout, he_init=False)

    def features(self, images: Tensor) -> Tensor:
        return self.stage2(self.down(self.stage1(self.stem(images))))
