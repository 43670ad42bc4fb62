"""What the networks of this package have in common: a map of features, pooled, then logits."""

from collections.abc import Iterable
from typing import ClassVar

from torch import Tensor, nn

from sprat.models.blocks import Block, Blueprint, Head, Normed, check_images


class PooledClassifier(nn.Module):
    """A network that a subclass completes by `features` and a call of `add_head`. One that is made
    of blocks which the compiled kernels support describes them by a method `blocks` (see
    `sprat.models.blocks`), and is then computed by them.

    Takes float images B x 3 x H x W, normalised, H and W at least `min_side`; returns logits
    B x num_classes.

    Raises:
        ValueError: on images of another shape.
    """

    min_side: ClassVar[int] = 16  # px

    def add_head(self, width: int, num_classes: int, dropout: float, he_init: bool = True) -> None:
        """Ends the constructor: dropout and a linear layer on `width` pooled features; all
        convolutions get initial weights for ReLU (He et al. 2015, arXiv 1502.01852), or keep
        torch's own."""
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules() if he_init else ():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """The map before global pooling, B x width x H' x W'."""
        raise NotImplementedError

    def classify(self, pooled: Tensor) -> Tensor:
        """Logits of pooled features B x width."""
        return self.classifier(self.dropout(pooled))

    def check_shape(self, images: Tensor) -> None:
        """Raise ValueError unless `images` is B x 3 x H x W with sides of at least `min_side`."""
        check_images(images, self.min_side)

    def blueprint(self, stem: Normed | None, blocks: Iterable[Block | None]) -> Blueprint | None:
        """Return a description with the head of `add_head`, for the `blocks` method of a subclass;
        None if one of its parts has no description."""
        given = list(blocks)
        described = tuple(block for block in given if block is not None)
        if stem is None or len(described) < len(given):
            return None
        return Blueprint(stem, described, Head(self.dropout, self.classifier))

    def forward(self, images: Tensor) -> Tensor:
        self.check_shape(images)
        return self.classify(self.features(images).mean(dim=(2, 3)))


def conv_bn(
    in_channels: int, out_channels: int, kernel: int = 3, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    """A padded convolution without bias, and its BatchNorm."""
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]
