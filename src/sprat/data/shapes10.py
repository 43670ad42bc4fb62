"""shapes10: ten kinds of shape on a cluttered background, drawn from a seed.

For tests, continuous integration and machines without internet access. Each 32 x 32 colour image
shows one shape of its class at a random place, size, angle and colour, on a shaded background with
stray strokes and noise. A linear model stays below 60 %, a small convolutional network exceeds 95 %
after two epochs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sprat.deferred import deferred

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import torch
    from numpy.typing import NDArray

    from sprat.data import imageset
    from sprat.data.imageset import ImageSet

    Array = NDArray[np.floating]
else:
    np, torch, imageset = map(deferred, ("numpy", "torch", "sprat.data.imageset"))

TITLE = "shapes10"
CAUTION = "This is shapes10, drawn shapes; it says nothing about CIFAR-10."
CLASSES = (
    "disc",
    "ring",
    "square",
    "frame",
    "triangle",
    "plus",
    "cross",
    "stripes",
    "dots",
    "half-moon",
)
SIDE = 32  # pixels
TRAIN_IMAGES, TEST_IMAGES = 10_000, 2_000
_CHUNK = 500  # images drawn at once, to limit memory


def load(
    seed: int = 0, train_images: int = TRAIN_IMAGES, test_images: int = TEST_IMAGES
) -> tuple[ImageSet, ImageSet]:
    """Return training and test images, with equal numbers of each class."""
    rng = np.random.Generator(np.random.PCG64(seed))
    train, test = (_draw_set(rng, n) for n in (train_images, test_images))
    return train, test


def _draw_set(rng: np.random.Generator, n: int) -> ImageSet:
    labels = rng.permutation(np.arange(n) % len(CLASSES))
    images = np.concatenate([_draw(rng, labels[i : i + _CHUNK]) for i in range(0, n, _CHUNK)])
    return imageset.ImageSet(torch.from_numpy(images), torch.from_numpy(labels).long(), CLASSES)


def _draw(rng: np.random.Generator, labels: np.ndarray) -> NDArray[np.uint8]:
    """Draw uint8 images, n x 3 x 32 x 32, of the given classes."""
    n = len(labels)

    def uniform(low: float, high: float, *shape: int) -> Array:
        return rng.uniform(low, high, (n, *shape, 1, 1)).astype(np.float32)

    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32)

    ground, colour = uniform(0.0, 0.4, 3), uniform(0.55, 1.0, 3)  # bright on dark: always visible
    slope = (x - SIDE / 2) * uniform(-0.008, 0.008) + (y - SIDE / 2) * uniform(-0.008, 0.008)
    images = ground + slope[:, None]

    for _ in range(3):  # stray strokes
        angle = uniform(0, np.pi)
        offset = uniform(-14, 14)
        across = (x - SIDE / 2) * np.cos(angle) + (y - SIDE / 2) * np.sin(angle) - offset
        along = (y - SIDE / 2) * np.cos(angle) - (x - SIDE / 2) * np.sin(angle) - uniform(-14, 14)
        stroke = _cover(np.maximum(np.abs(across) - 0.6, np.abs(along) - 4))[:, None]
        images = images * (1 - stroke) + uniform(0.0, 0.8, 3) * stroke

    radius = uniform(7, 11)
    centre_x, centre_y = uniform(11, SIDE - 11), uniform(11, SIDE - 11)
    angle = uniform(-0.35, 0.35)  # radians
    u = ((x - centre_x) * np.cos(angle) + (y - centre_y) * np.sin(angle)) / radius
    v = ((y - centre_y) * np.cos(angle) - (x - centre_x) * np.sin(angle)) / radius
    inside = _cover(_distance(u, v, labels) * radius)[:, None]
    images = images * (1 - inside) + colour * inside

    images = images + rng.normal(0, 0.04, images.shape).astype(np.float32)
    return (images.clip(0, 1) * 255).round().astype(np.uint8)


def _cover(distance: Array) -> Array:
    """Return the fraction of a pixel that a shape covers, from the signed distance in pixels."""
    return (0.5 - distance).clip(0, 1)


def _distance(u: Array, v: Array, labels: np.ndarray) -> Array:
    """Return the signed distance (below 0 inside) of points from shapes of radius about 1."""
    distance = np.empty_like(u)
    for label, name in enumerate(CLASSES):
        mine = labels == label
        distance[mine] = _SHAPES[name](u[mine], v[mine])
    return distance


def _square(u: Array, v: Array) -> Array:
    return np.maximum(np.abs(u), np.abs(v)) - 0.85


def _plus(u: Array, v: Array) -> Array:
    upright = np.maximum(np.abs(u) - 0.26, np.abs(v) - 1)
    lying = np.maximum(np.abs(v) - 0.26, np.abs(u) - 1)
    return np.minimum(upright, lying)


def _stripes(u: Array, v: Array) -> Array:
    return np.maximum(_square(u, v), 0.2 - np.abs(np.mod(v + 0.85, 0.68) - 0.34))


_SHAPES: dict[str, Callable[[Array, Array], Array]] = {
    "disc": lambda u, v: np.hypot(u, v) - 0.95,
    "ring": lambda u, v: np.abs(np.hypot(u, v) - 0.75) - 0.2,
    "square": _square,
    "frame": lambda u, v: np.abs(_square(u, v) + 0.15) - 0.18,
    "triangle": lambda u, v: np.maximum(v - 0.7, np.abs(u) * 0.89 - v * 0.45 - 0.4),
    "plus": _plus,
    "cross": lambda u, v: _plus((u + v) * np.float32(0.5**0.5), (u - v) * np.float32(0.5**0.5)),
    "stripes": _stripes,
    "dots": lambda u, v: np.hypot(np.abs(u) - 0.52, np.abs(v) - 0.52) - 0.34,
    "half-moon": lambda u, v: np.maximum(np.hypot(u, v) - 0.95, -v),
}
