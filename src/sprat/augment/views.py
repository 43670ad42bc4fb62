"""Test-time views: the same images seen another way, on pixels, before normalisation.

A view maps uint8 images B x 3 x H x W to images of the same shape. A set of views is judged by
the mean of its members' probabilities.
"""

from collections.abc import Callable

from torch import Tensor

View = Callable[[Tensor], Tensor]


def identity(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def flipped(images: Tensor) -> Tensor:
    """Mirrored left to right."""
    return images.flip(3)


SINGLE: tuple[View, ...] = (identity,)
WITH_FLIP: tuple[View, ...] = (identity, flipped)
