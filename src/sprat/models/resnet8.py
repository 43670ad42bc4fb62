"""ResNet-8 of MLPerf Tiny (Banbury et al. 2021, arXiv 2106.07597): 78,186 parameters.

As in the benchmark's Keras code, convolutions have biases and projections have no BatchNorm. Keras
counts 78,666 parameters, as it includes BatchNorm's running statistics.
"""

from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2)


class _Block(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            _conv(in_channels, out_channels, 3, stride),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            _conv(out_channels, out_channels, 3, 1),
            nn.BatchNorm2d(out_channels),
        )
        self.shortcut = (
            nn.Identity() if stride == 1 else _conv(in_channels, out_channels, 1, stride)
        )
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.residual(x) + self.shortcut(x))


class ResNet8(PooledClassifier):
    """Three blocks of 16, 32 and 64 channels; 78,186 parameters with ten classes."""

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        self.stem = nn.Sequential(_conv(in_channels, 16, 3, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.Sequential(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2))
        self.add_head(64, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 64 x ceil(H/4) x ceil(W/4)."""
        return self.blocks(self.stem(images))
