"""Test-time augmentation: several views of the same images, on pixels before normalisation.

A view maps uint8 images B x C x H x W to images of the same shape and dtype. A set of views is
evaluated by the weighted mean of its members' probabilities; the weights of a set sum to 1.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sprat.augment.transforms import affine, pad
from sprat.names import check_views

View = Callable[[Tensor], Tensor]
Views = Sequence[tuple[View, float]]


def identity(images: Tensor) -> Tensor:
    """Return the images unchanged."""
    return images


def flipped(images: Tensor) -> Tensor:
    """Mirror left to right."""
    return images.flip(3)


def shifted(images: Tensor, right: int, down: int) -> Tensor:
    """Shift by whole pixels, mirroring the image at the border."""
    height, width = images.shape[2:]
    most = max(abs(right), abs(down))
    padded = pad(images, most, "reflect")
    return padded[:, :, most - down : most - down + height, most - right : most - right + width]


def turned(images: Tensor, degrees: float = 0.0, scale: float = 1.0) -> Tensor:
    """Rotate counter-clockwise and scale about the centre, mirroring the image at the border."""
    one = torch.ones(len(images), device=images.device)
    still, scales = torch.zeros_like(one), scale * one
    return affine(
        images, torch.stack((still, still), 1), torch.stack((scales, scales), 1), degrees * one
    )


def _mirrored_too(weights: Sequence[tuple[View, float]]) -> Views:
    """Return every view and its mirror image, each with half the view's share of the weights."""
    total = 2 * sum(weight for _, weight in weights)
    both = ((view, _mirror_of(view), weight / total) for view, weight in weights)
    return tuple(pair for view, mirror, share in both for pair in ((view, share), (mirror, share)))


def _mirror_of(view: View) -> View:
    return lambda images: flipped(view(images))


def _shifts(*places: tuple[int, int]) -> list[View]:
    return [partial(shifted, right=right, down=down) for right, down in places]


_DIAGONAL = _shifts((1, 1), (-1, -1))
_CORNERS = _DIAGONAL + _shifts((1, -1), (-1, 1))
_BY_TWO: list[View] = _shifts((2, 0), (-2, 0), (0, 2), (0, -2))
_RESAMPLED: list[View] = [
    partial(turned, scale=0.95),
    partial(turned, scale=1.05),
    partial(turned, degrees=5.0),
    partial(turned, degrees=-5.0),
]

SINGLE: Views = ((identity, 1.0),)
# By number of views, with the unchanged image first. Chosen on val from some thirty sets
# (benchmarks/README.md); resampled views blur and cost two to seven points on their own.
VIEWS: dict[int, Views] = {
    1: SINGLE,
    2: _mirrored_too([(identity, 1)]),
    6: _mirrored_too([(identity, 2), *((view, 1) for view in _DIAGONAL)]),
    8: _mirrored_too([(identity, 2), *((view, 1) for view in [*_DIAGONAL, _RESAMPLED[0]])]),
    10: _mirrored_too([(identity, 2), *((view, 1) for view in _CORNERS)]),
    26: _mirrored_too(
        [
            (identity, 4),
            *((view, 2) for view in _CORNERS),
            *((view, 1) for view in _BY_TWO + _RESAMPLED),
        ]
    ),
}


def find_views(views: int) -> Views:
    """Return the set with that number of views.

    Raises:
        SpratError: there is no such set.
    """
    check_views(views)
    return VIEWS[views]
