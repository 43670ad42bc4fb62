"""DenseNet-BC-40 with growth rate 12 (Huang et al. 2016, arXiv 1608.06993)."""

import torch
from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier


def _activated_conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
    ]


class _DenseLayer(nn.Module):
    """Append `growth` channels, computed through a bottleneck of four times as many."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_activated_conv(in_channels, 4 * growth, 1), *_activated_conv(4 * growth, growth, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.layers(x)), 1)


class DenseNetBC40(PooledClassifier):
    """Three dense blocks of six layers; 176,122 parameters with ten classes."""

    growth, layers_a_block = 12, 6

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        width = 2 * self.growth
        layers: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1, bias=False)]
        for block in range(3):
            if block:  # a transition halves the channels and the side
                layers += [*_activated_conv(width, width // 2, 1), nn.AvgPool2d(2)]
                width //= 2
            for _ in range(self.layers_a_block):
                layers.append(_DenseLayer(width, self.growth))
                width += self.growth
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.add_head(width, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 132 x floor(H/4) x floor(W/4)."""
        return self.layers(images)
