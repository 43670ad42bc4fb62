"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) at width 1, in its ImageNet form.

Its strides are meant for images of 224 px: a 32x32 image is a single pixel in the last stages.
"""

from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier, conv_bn

# expansion, channels, blocks, stride of the first block
STAGES = [
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
    (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
]  # fmt: skip


class _InvertedResidual(nn.Module):
    """Widen by 1x1, filter by depthwise 3x3, narrow by 1x1 without activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        widen = [*conv_bn(in_channels, wide, 1), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *widen,
            *conv_bn(wide, wide, 3, stride, groups=wide),
            nn.ReLU6(),
            *conv_bn(wide, out_channels, 1),
        )
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.has_shortcut else self.layers(x)


class MobileNetV2(PooledClassifier):
    """Seventeen inverted residuals; 2,236,682 parameters with ten classes."""

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        layers: list[nn.Module] = [*conv_bn(in_channels, 32, 3, 2), nn.ReLU6()]
        width = 32
        for expansion, channels, blocks, first_stride in STAGES:
            for block in range(blocks):
                stride = first_stride if block == 0 else 1
                layers.append(_InvertedResidual(width, channels, stride, expansion))
                width = channels
        self.layers = nn.Sequential(*layers, *conv_bn(width, 1280, 1), nn.ReLU6())
        self.add_head(1280, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 1280 x ceil(H/32) x ceil(W/32)."""
        return self.layers(images)
