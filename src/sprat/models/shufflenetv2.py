"""ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164) at width 0.5, in its ImageNet form.

Its strides are meant for images of 224 px: a 32x32 image is a single pixel in the last stage.
"""

import torch
from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier, conv_bn


class _Unit(nn.Module):
    """Transform half of the channels (with stride 2, all of them twice), then shuffle them."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        into = in_channels if stride == 2 else half
        self.left: nn.Module = nn.Identity()
        if stride == 2:
            self.left = nn.Sequential(
                *conv_bn(in_channels, in_channels, 3, stride, groups=in_channels),
                *conv_bn(in_channels, half, 1),
                nn.ReLU(),
            )
        self.right = nn.Sequential(
            *conv_bn(into, half, 1),
            nn.ReLU(),
            *conv_bn(half, half, 3, stride, groups=half),
            *conv_bn(half, half, 1),
            nn.ReLU(),
        )
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, 1) if self.stride == 1 else (x, x)
        both = torch.cat((self.left(left), self.right(right)), 1)
        # channel shuffle: alternate between the halves
        return both.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


class ShuffleNetV2x05(PooledClassifier):
    """Sixteen units of 48, 96 and 192 channels; 352,042 parameters with ten classes."""

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        layers: list[nn.Module] = [
            *conv_bn(in_channels, 24, 3, 2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, padding=1),
        ]
        width = 24
        for channels, units in ((48, 4), (96, 8), (192, 4)):
            for unit in range(units):
                layers.append(_Unit(width, channels, stride=1 if unit else 2))
                width = channels
        self.layers = nn.Sequential(*layers, *conv_bn(width, 1024, 1), nn.ReLU())
        self.add_head(1024, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 1024 x ceil(H/32) x ceil(W/32)."""
        return self.layers(images)
