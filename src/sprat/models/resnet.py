"""ResNets for small images (He et al. 2015, arXiv 1512.03385): ResNet-20 and ResNet-18."""

from torch import Tensor, nn
from torch.nn import functional as F

from sprat.models.classifier import PooledClassifier, conv_bn


class _PaddedShortcut(nn.Module):
    """Option A of He et al.: every second pixel, padded with channels of zeros."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.new_channels // 2
        after = self.new_channels - before
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut.

    Args:
        projection: if the shape changes, use a 1x1 convolution with BatchNorm as the shortcut
            (option B) instead of every second pixel padded with channels of zeros (option A).
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, projection: bool = True
    ) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            *conv_bn(in_channels, out_channels, 3, stride),
            nn.ReLU(),
            *conv_bn(out_channels, out_channels),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = (
                nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride))
                if projection
                else _PaddedShortcut(out_channels - in_channels, stride)
            )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class _ResNet(PooledClassifier):
    widths: tuple[int, ...]
    blocks_a_stage: int
    projection = True

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        width = self.widths[0]
        self.stem = nn.Sequential(*conv_bn(in_channels, width), nn.ReLU())
        blocks = []
        for stage, out_width in enumerate(self.widths):
            for block in range(self.blocks_a_stage):
                stride = 2 if stage and not block else 1
                blocks.append(BasicBlock(width, out_width, stride, self.projection))
                width = out_width
        self.blocks = nn.Sequential(*blocks)
        self.add_head(width, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling; each stage but the first halves the sides."""
        return self.blocks(self.stem(images))


class ResNet20(_ResNet):
    """Nine blocks, projection shortcuts (option B); 272,474 parameters with ten classes."""

    widths, blocks_a_stage = (16, 32, 64), 3


class ResNet20A(ResNet20):
    """ResNet-20 as first published, shortcuts without parameters (option A); 269,722 parameters."""

    projection = False


class ResNet18(_ResNet):
    """The ImageNet network with a 3x3 stem and no max-pooling, as usual for CIFAR-10; 11,173,962
    parameters with ten classes."""

    widths, blocks_a_stage = (64, 128, 256, 512), 2
