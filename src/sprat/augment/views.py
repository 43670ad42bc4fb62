"""Test-time augmentation: the same images seen in several ways, on pixels, before normalisation.

A view maps uint8 images B x C x H x W to images of the same shape and type. A set of views is
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
    still, scales = torch.zeros_like(one), scale * one
    return affine(
        images, torch.stack((still, still), 1), torch.stack((scales, scales), 1), degrees * one
    )


def _mirrored_too(weights: Sequence[tuple[View, float]]) -> Views:
    """Every view and its mirror image, each with half of its share of the weights."""
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
# By number of views, the image as it is first. Chosen on val among some thirty sets
# (benchmarks/README.md); resampled views blur, alone they cost two to seven points.
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
    """The offered set of so many views.

    Raises:
        SpratError: there is none.
    """
    check_views(views)
    return VIEWS[views]
