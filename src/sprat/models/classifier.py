"""Base class of this package's networks: features, global average pooling, logits."""

from collections.abc import Iterable, Sequence
from typing import ClassVar, TypeVar

from torch import Tensor, nn

from sprat.models.blocks import Block, Blueprint, Head, Normed, check_images
from sprat.settings.field import refused

Number = TypeVar("Number", int, float)


class PooledClassifier(nn.Module):
    """Base class of networks that pool a feature map globally. A subclass calls `add_head` and
    defines `features`. If it is made of blocks that the compiled kernels support, a method `blocks`
    describes them (see `sprat.models.blocks`), so that the kernels can compute it.

    Takes normalised float images B x in_channels x H x W with H and W of at least `min_side`;
    returns logits B x num_classes.

    Args:
        in_channels: channels of the images: 3, or 1 if they are grey.

    Raises:
        ValueError: on images of another shape.
    """

    min_side: ClassVar[int] = 16  # px

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels

    def add_head(self, width: int, num_classes: int, dropout: float, he_init: bool = True) -> None:
        """Complete the constructor: add dropout and a linear layer on `width` pooled features, and
        initialise all convolutions for ReLU (He et al. 2015, arXiv 1502.01852) unless `he_init` is
        false."""
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(width, num_classes)
        for module in self.modules() if he_init else ():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, images: Tensor) -> Tensor:
        """Return the map before global pooling, B x width x H' x W'."""
        raise NotImplementedError

    def classify(self, pooled: Tensor) -> Tensor:
        """Return the logits of pooled features B x width."""
        return self.classifier(self.dropout(pooled))

    def check_shape(self, images: Tensor) -> None:
        """Raise ValueError unless `images` is B x in_channels x H x W with sides of at least
        `min_side`."""
        check_images(images, self.in_channels, self.min_side)

    def blueprint(self, stem: Normed | None, blocks: Iterable[Block | None]) -> Blueprint | None:
        """Return a description with the head of `add_head`, for use in `blocks` of a subclass; None
        if one of its parts has no description."""
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
    """Return a padded convolution without bias, and its BatchNorm."""
    padding = kernel // 2
    return [
        nn.Conv2d(in_channels, out_channels, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
    ]


def each_stage(name: str, values: Sequence[Number], widths: Sequence[int]) -> Sequence[Number]:
    """Return a setting's value for each stage; a single value applies to every stage.

    Raises:
        SpratError: there are neither one value nor as many as `widths`.
    """
    if len(values) == 1:
        return [values[0] for _ in widths]
    if len(values) != len(widths):
        raise refused(
            f"network.{name}",
            list(values),
            f"one value, or one for each of the {len(widths)} stages",
            f"network.widths names {len(widths)}: {', '.join(map(str, widths))}.",
        )
    return values


def check_windows(widths: Sequence[int], kernels: Sequence[int]) -> None:
    """Check that depthwise windows can divide the channels of each stage into equal shares.

    Raises:
        SpratError: a window is even, or a width is not divisible by the number of windows.
    """
    if even := [kernel for kernel in kernels if kernel % 2 == 0]:
        remedy = f"Take {even[0] - 1} or {even[0] + 1}."
        raise refused("network.kernels", list(kernels), "odd windows", remedy)
    count = len(kernels)
    for width in widths:
        if width % count:
            raise refused(
                "network.widths",
                list(widths),
                f"widths divisible by {count}, the number of network.kernels",
                f"Take {width - width % count or count} or {width + count - width % count} "
                f"instead of {width}, or other kernels.",
            )
