"""OptimizedCIFAR10Net200K: a ResNet of depthwise separable convolutions, 150,690 parameters.

    stem  3 -> 20, 3x3, BatchNorm, ReLU                  580
    4 stages of 2 blocks: 20, 40, 80, 160 channels       2,480 / 8,060 / 28,920 / 109,040
    global average pooling, dropout, linear              1,610

Strides are 1-2-2-2, so a 32x32 image becomes a 4x4 map before pooling. Depthwise separable
convolutions: Howard et al. 2017 (arXiv 1704.04861); residual blocks: He et al. 2015 (arXiv
1512.03385).
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from sprat.models.blocks import Block, Blueprint, Normed, Separable, in_a_row, stem_of
from sprat.models.classifier import PooledClassifier, conv_bn, each_stage


class DepthwiseSeparableConv2d(nn.Module):
    """Depthwise 3x3, pointwise 1x1, one BatchNorm after both; no biases.

    Takes B x in_channels x H x W, returns B x out_channels x ceil(H/stride) x ceil(W/stride).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False
        )
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.pointwise(self.depthwise(x)))

    def described(self) -> Separable:
        return Separable((self.depthwise,), self.pointwise, self.bn)


class EfficientBlock(nn.Module):
    """Two depthwise separable convolutions with a shortcut; ReLU after the first and the sum.

    The shortcut is a strided 1x1 convolution and BatchNorm if the shape changes, else the identity.
    Takes B x in_channels x H x W, returns B x out_channels x ceil(H/stride) x ….
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = DepthwiseSeparableConv2d(in_channels, out_channels, stride)
        self.conv2 = DepthwiseSeparableConv2d(out_channels, out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(self.relu(self.conv1(x)))
        return self.relu(out + self.shortcut(x))


class OptimizedCIFAR10Net200K(PooledClassifier):
    """The original project's network. Exactly 150,690 parameters with ten classes.

    Args:
        num_classes: number of logits.
        dropout: probability of zeroing a pooled feature in training.
        widths: channels of each stage.
        strides: stride of each stage's first block.
        depth: number of blocks: one value for all stages, or one for each.
        in_channels: channels of the images, 3 or 1.

    Raises:
        SpratError: the settings contradict each other.
    """

    def __init__(
        self,
        num_classes: int = 10,
        dropout: float = 0.2,
        *,
        widths: Sequence[int] = (20, 40, 80, 160),
        strides: Sequence[int] = (),
        depth: Sequence[int] = (2,),
        in_channels: int = 3,
    ) -> None:
        super().__init__(in_channels)
        strides = each_stage("strides", strides or (1, *(2 for _ in widths[1:])), widths)
        depth = each_stage("depth", depth, widths)
        width = widths[0]
        self.stem = nn.Sequential(*conv_bn(in_channels, width), nn.ReLU())
        self.stages = len(widths)
        for i, out_width in enumerate(widths):
            blocks = []
            for n in range(depth[i]):
                blocks.append(EfficientBlock(width, out_width, 1 if n else strides[i]))
                width = out_width
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.add_head(width, num_classes, dropout)

    def layers(self) -> list[nn.Module]:
        """Return the stages in order: layer1, layer2, …"""
        return [self.get_submodule(f"layer{i + 1}") for i in range(self.stages)]

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 160 x ceil(H/8) x ceil(W/8)."""
        x = self.stem(images)  # B, 20, H, W
        for layer in self.layers():  # B, 20, H, W; B, 40, H/2, W/2; B, 80, H/4, W/4; …
            x = layer(x)
        return x

    def blocks(self) -> Blueprint | None:
        """Describe the network; None if its layers were replaced."""
        blocks = in_a_row(nn.Sequential(*self.layers()))
        return self.blueprint(stem_of(self.stem), map(_described, blocks))


def _described(block: Any) -> Block | None:
    if type(block) is not EfficientBlock or type(block.relu) is not nn.ReLU:
        return None
    convs = block.conv1, block.conv2
    if any(type(conv) is not DepthwiseSeparableConv2d for conv in convs):
        return None
    shortcut: Any = block.shortcut
    if type(shortcut) is nn.Sequential and len(shortcut) == 2:
        shortcut = Normed(*shortcut)
    elif type(shortcut) is not nn.Identity:
        return None
    return Block(tuple(conv.described() for conv in convs), shortcut)
