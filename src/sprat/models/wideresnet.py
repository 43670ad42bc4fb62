"""WRN-16-1, the narrowest wide residual network (Zagoruyko & Komodakis 2016, arXiv 1605.07146)."""

from torch import Tensor, nn

from sprat.models.classifier import PooledClassifier


class _Block(nn.Module):
    """BatchNorm and ReLU before each convolution; a projection takes the activated map."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(in_channels), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        )
        self.projection = (
            None
            if in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = self.activate(x)
        shortcut = x if self.projection is None else self.projection(activated)
        return self.residual(activated) + shortcut


class WRN16x1(PooledClassifier):
    """Six blocks of 16, 32 and 64 channels; 175,066 parameters with ten classes."""

    def __init__(
        self, num_classes: int = 10, dropout: float = 0.2, *, in_channels: int = 3
    ) -> None:
        super().__init__(in_channels)
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(
            _Block(16, 16, 1), _Block(16, 16, 1),
            _Block(16, 32, 2), _Block(32, 32, 1),
            _Block(32, 64, 2), _Block(64, 64, 1),
        )  # fmt: skip
        self.activate = nn.Sequential(nn.BatchNorm2d(64), nn.ReLU())
        self.add_head(64, num_classes, dropout)

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x 64 x ceil(H/4) x ceil(W/4)."""
        return self.activate(self.blocks(self.stem(images)))
