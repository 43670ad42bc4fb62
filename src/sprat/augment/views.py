"""Test-time augmentation: the same images seen in several ways, on pixels, before normalisation.

A view maps uint8 images B x 3 x H x W to images of the same shape and type. A set of views is
judged by the weighted mean of its members' probabilities; the weights of a set sum to 1.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sprat.augment.transforms import affine, pad
from sprat.errors import SpratError

View = Callable[[Tensor], Tensor]
Views = Sequence[tuple[View, float]]


def identity(images: Tensor) -> Tensor:
    """The images as they are."""
    return images


def flipped(images: Tensor) -> Tensor:
    """Mirrored left to right."""
    return images.flip(3)


def shifted(images: Tensor, right: int, down: int) -> Tensor:
    """Moved by whole pixels, the mirrored image behind the border."""
    height, width = images.shape[2:]
    most = max(abs(right), abs(down))
    padded = pad(images, most, "reflect")
    return padded[:, :, most - down : most - down + height, most - right : most - right + width]


def turned(images: Tensor, degrees: float = 0.0, scale: float = 1.0) -> Tensor:
    """Turned counter-clockwise and zoomed about the centre, mirrored behind the border."""
    one = torch.ones(len(images), device=images.device)
    return affine(
        images,
        torch.zeros(len(images), 2, device=images.device),
        scale * one[:, None].expand(-1, 2),
        degrees * one,
    )


SINGLE: Views = ((identity, 1.0),)
# by number of views; the first of each is the image as it is
VIEWS: dict[int, Views] = {
    1: SINGLE,
    2: ((identity, 1 / 2), (flipped, 1 / 2)),
}


def find_views(views: int) -> Views:
    """The offered set of so many views.

    Raises:
        SpratError: there is none.
    """
    if views not in VIEWS:
        offered = ", ".join(map(str, VIEWS))
        raise SpratError(f"tta is {views}, expected a number of views among {offered}")
    return VIEWS[views]
