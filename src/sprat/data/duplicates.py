"""Pictures that are in a dataset twice: exact copies by digest, near copies by a perceptual hash.

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

# Tuned on deliberate copies of 2,000 CIFAR-10 images: saved as JPEG of quality 50 or 75, made
# brighter or higher in contrast, resized and back, cropped, or shifted by one pixel of 32. The
# correlation was then raised from 0.95, after inspecting pairs of drawn shapes that are no copies.
NEAR_BITS = 12  # of 64, in which the hashes of near copies may differ
NEAR_CORRELATION = 0.96  # least correlation of the pixels of near copies
FLAT = 4.0  # grey levels; a picture of a lower standard deviation has nothing to compare

_SIDE, _LOWEST = 32, 8  # pixels, frequencies in each direction
_MARGIN = 1  # pixels of _SIDE by which near copies may be shifted
_WORTH_MOVING = 0.8  # unshifted correlation above which shifts are tried
_ROWS, _COLUMNS = 64, 8_192  # hashes compared at once, to stay in the CPU's cache
_PAIRS = 1_024  # pictures compared pixel by pixel at once


@dataclass(frozen=True)
class Pair:
    """Two pictures that are the same, or nearly.

    first, second: indices of the images; `first` is in an earlier part, or earlier in the same
    part.
    exact: whether all pixels are equal.
    """

    first: int
    second: int
    exact: bool


@dataclass(frozen=True)
class Traits:
    """Features by which images are compared, one entry per image.

    digests: digest of the pixels. hashes: perceptual hash.
    coarse: N x C x 8 x 8, the image at 8 x 8 pixels without its mean, scaled to unit length.
    spreads: standard deviation in grey levels. ranges: largest minus smallest value of a channel.
    """

    digests: list[bytes]
    hashes: NDArray[np.uint64]
    coarse: NDArray[np.float16]
    spreads: NDArray[np.float32]
    ranges: NDArray[np.int64]


def traits_of(images: Images) -> Traits:
    """Return the features by which images (uint8, N x C x H x W) are compared."""
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
    """Pair each picture with its copies in each earlier part and earlier in its own part.

    In each of these parts a picture is paired with its first exact copy, else with the nearest of
    its near copies, mirrored or not. So a picture has at most three pairs, and each of many copies
    is in one. Nearly constant pictures (see FLAT) are paired with exact copies only.

    Args:
        images: uint8, N x C x H x W.
        parts: part number of each image, from 0.
        traits: features of the images.
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
    """Map each chosen image that has near copies among the earlier images of `gallery` to the
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
    """Yield indices of earlier and later images that may be near copies, some pairs at a time."""
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
    """Return the highest correlation of each pair's pixels over mirroring and shifts of up to
    _MARGIN pixels; brightness and contrast do not affect it."""
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
    """Return the part of images to compare as vectors of unit length: without the margin, averaged
    over 2 x 2 pixels, without the mean."""
    rows, columns = (slice(_MARGIN + by, _SIDE - _MARGIN + by) for by in (down, right))
    coarse = F.avg_pool2d(images[:, :, rows, columns], 2)
    return _unit(coarse).flatten(1)


def _unit(images: Tensor) -> Tensor:
    """Return images minus their mean, each scaled to unit length."""
    centred = images - images.mean((1, 2, 3), keepdim=True)
    return F.normalize(centred.flatten(1)).view_as(images)


def _small(images: Tensor) -> Tensor:
    return F.interpolate(images.float(), size=(_SIDE, _SIDE), mode="area")


def _hash(images: Tensor) -> NDArray[np.uint64]:
    """Return the hashes of uint8 images, N x C x H x W; each bit is the sign of a frequency."""
    frequency, place = torch.arange(_LOWEST)[:, None], torch.arange(_SIDE)
    cosines = (math.pi / _SIDE * (place + 0.5) * frequency).cos()
    signs = cosines @ _small(images).mean(1) @ cosines.T > 0
    return np.packbits(signs.flatten(1).numpy(), axis=1).view(np.uint64).ravel()


# Bits that change when a picture is mirrored: the signs of its odd horizontal frequencies.
_MIRRORED = np.packbits(np.arange(64) % 2 == 1).view(np.uint64)[0]
