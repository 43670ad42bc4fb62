"""Pictures that are in a dataset twice: exact copies by digest, near ones by a perceptual hash.

The hash is the signs of a picture's 64 lowest frequencies (a DCT of its brightness at 32 x 32
pixels; Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). Pictures
whose hashes differ in few bits are then compared pixel by pixel.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sprat.data.imageset import PIECE, Images

# Begun from copies made on purpose of 2,000 CIFAR-10 images: saved as JPEG of quality 50 or 75,
# brighter, of more contrast, resized and back, cropped, or moved by a pixel of 32. The correlation
# was then raised from 0.95 after looking at pairs of drawn shapes that were no copies.
NEAR_BITS = 12  # of 64 in which hashes of near copies may differ
NEAR_CORRELATION = 0.96  # of their pixels, at least
FLAT = 4.0  # grey levels: below this standard deviation a picture has nothing to compare

_SIDE, _LOWEST = 32, 8  # pixels, frequencies in each direction
_MARGIN = 1  # pixels of _SIDE by which near copies may be moved against each other
_WORTH_MOVING = 0.8  # correlation of unmoved pixels from which it is tried
_ROWS, _COLUMNS = 64, 8_192  # hashes compared at once, which stay in the processor's cache
_PAIRS = 1_024  # pictures compared pixel by pixel at once


@dataclass(frozen=True)
class Pair:
    """Two pictures that are the same, or nearly.

    first, second: places in the images; `first` is in an earlier part, or earlier in the same one.
    exact: whether every pixel is the same.
    """

    first: int
    second: int
    exact: bool


@dataclass(frozen=True)
class Traits:
    """Traits by which images are compared, an entry for each.

    digests: of the pixels. coarse: images at 8 x 8 pixels, N x C x 8 x 8, each of length 1.
    spreads: standard deviations in grey levels. ranges: brightest minus darkest value of a channel.
    """

    digests: list[bytes]
    hashes: NDArray[np.uint64]
    coarse: NDArray[np.float16]
    spreads: NDArray[np.float32]
    ranges: NDArray[np.int64]


def traits_of(images: Images) -> Traits:
    """Return what images (uint8, N x C x H x W) are compared by."""
    digests: list[bytes] = []
    hashes, coarse, spreads, ranges = [], [], [], []
    for piece in images.split(PIECE):
        pixels = piece.contiguous().numpy()
        digests += [hashlib.blake2b(each, digest_size=16).digest() for each in pixels]
        hashes.append(_hash(piece))
        coarse.append(_unit(F.avg_pool2d(_small(piece), _SIDE // 8)).half().numpy())
        flat = piece.flatten(2)
        spreads.append(flat.float().std(2, correction=0).amax(1).numpy())
        ranges.append((flat.amax(2).long() - flat.amin(2)).amax(1).numpy())
    return Traits(digests, *map(np.concatenate, (hashes, coarse, spreads, ranges)))


def find_pairs(
    images: Images,
    parts: NDArray[np.int64],
    traits: Traits,
    *,
    within: bool = True,
    near: bool = True,
) -> list[Pair]:
    """Return each picture with its copies, of an earlier part and earlier in its own part.

    In every such part a picture is paired with its first exact copy, or else with the nearest of
    its near copies, mirrored or not: so there are at most three pairs for each picture, and of many
    copies each is in one. Nearly constant pictures (see FLAT) have exact copies only.

    Args:
        images: uint8, N x C x H x W.
        parts: of each image, 0 and up.
        traits: of the images.
        within: whether to look for copies within a part.
        near: whether to look for near copies too.
    """
    first: dict[tuple[bytes, int], int] = {}
    for place, key in enumerate(zip(traits.digests, parts.tolist(), strict=True)):
        first.setdefault(key, place)
    comparable = traits.spreads >= FLAT
    distinct = [place for place in first.values() if comparable[place]]
    numbers = sorted(set(parts.tolist()))
    pairs = []
    for part, earlier in ((p, q) for p in numbers for q in numbers if q < p or (within and q == p)):
        gallery = [place for place in distinct if parts[place] == earlier]
        unmatched = [
            place
            for place in distinct
            if parts[place] == part
            and (part == earlier or (traits.digests[place], earlier) not in first)
        ]
        nearest = _nearest(images, traits, unmatched, gallery) if near else {}
        for place in np.flatnonzero(parts == part).tolist():
            digest = traits.digests[place]
            copy = first.get((digest, earlier), place)
            if copy != place:
                pairs.append(Pair(copy, place, exact=True))
            elif (other := nearest.get(first[digest, part])) is not None:
                pairs.append(Pair(other, place, exact=False))
    return sorted(pairs, key=lambda pair: (pair.second, pair.first))


def _nearest(
    images: Images,
    traits: Traits,
    chosen: list[int],
    gallery: list[int],
) -> dict[int, int]:
    """Return, for each chosen image that has near copies among the earlier ones of `gallery`, the
    nearest of them. Both lists are sorted."""
    best: dict[int, tuple[float, int]] = {}
    others = np.array(gallery, int)
    for begin in range(0, len(chosen), _ROWS):
        rows = np.array(chosen[begin : begin + _ROWS])
        earlier = others[: np.searchsorted(others, rows[-1])]
        for first, second in _candidates(traits, rows, earlier):
            scores = _correlations(images, first, second)
            for a, b, score in zip(first.tolist(), second.tolist(), scores, strict=True):
                if score >= NEAR_CORRELATION and (score, -a) > best.get(b, (0.0, 0)):
                    best[b] = (score, -a)
    return {place: -nearest for place, (_, nearest) in best.items()}


def _candidates(
    traits: Traits, rows: NDArray[np.int64], gallery: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Yield places of earlier and later images that may be near copies, some pairs at a time."""
    for begin in range(0, len(gallery), _COLUMNS):
        others = gallery[begin : begin + _COLUMNS]
        differ = traits.hashes[rows][:, None] ^ traits.hashes[others]
        near = np.bitwise_count(differ) <= NEAR_BITS
        near |= np.bitwise_count(differ ^ _MIRRORED) <= NEAR_BITS
        row, column = np.nonzero(near)
        first, second = others[column], rows[row]
        earlier = np.flatnonzero(first < second)
        for some in np.split(earlier, range(_PAIRS, len(earlier), _PAIRS)):
            a, b = (traits.coarse[places[some]].astype(np.float32) for places in (first, second))
            alike = np.maximum((a * b).sum((1, 2, 3)), (a * b[..., ::-1]).sum((1, 2, 3)))
            some = some[alike >= _WORTH_MOVING]
            if len(some):
                yield first[some], second[some]


def _correlations(
    images: Images, first: NDArray[np.int64], second: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the largest correlation of each pair's pixels: with one of them mirrored or not, moved
    by up to _MARGIN pixels or not, and whatever their brightness and contrast."""
    a, b = (_small(images[torch.from_numpy(places)]) for places in (first, second))
    best = torch.zeros(len(a))
    for turned in (b, b.flip(3)):
        still, moved = _window(a), _window(turned)
        scores = (still * moved).sum(1)
        near = (scores >= _WORTH_MOVING).nonzero().flatten()
        for down, right in itertools.product((-_MARGIN, 0, _MARGIN), repeat=2):
            moved = _window(turned[near], down, right)
            scores[near] = torch.maximum(scores[near], (still[near] * moved).sum(1))
        best = torch.maximum(best, scores)
    return best.numpy()


def _window(images: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """Return what is compared of images: all but a margin, its details of two pixels and coarser,
    without their mean; as vectors of length 1."""
    rows, columns = (slice(_MARGIN + by, _SIDE - _MARGIN + by) for by in (down, right))
    coarse = F.avg_pool2d(images[:, :, rows, columns], 2)
    return _unit(coarse).flatten(1)


def _unit(images: Tensor) -> Tensor:
    """Return images without their mean, each of length 1."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return F.normalize(centred.flatten(1)).view_as(images)


def _small(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), size=(_SIDE, _SIDE), mode="area")


def _hash(images: Tensor) -> NDArray[np.uint64]:
    """Return the hashes of uint8 images, N x C x H x W; a bit is a frequency's sign."""
    frequency, place = torch.arange(_LOWEST)[:, None], torch.arange(_SIDE)
    cosines = (math.pi / _SIDE * (place + 0.5) * frequency).cos()
    signs = cosines @ _small(images).mean(1) @ cosines.T > 0
    return np.packbits(signs.flatten(1).numpy(), axis=1).view(np.uint64).ravel()


# The bits that change if a picture is mirrored: the signs of its odd frequencies across.
_MIRRORED = np.packbits(np.arange(64) % 2 == 1).view(np.uint64)[0]
