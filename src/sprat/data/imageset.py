"""Labelled images: all in memory, or rows of a source that may be a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from sprat.data.groups import deal

LUMA = (19_595, 38_470, 7_471)  # weights of red, green and blue in brightness, x 2**16
PIECE = 1_024  # images processed at once when all are: 3 MB at 32 px, 50 MB at 128 px


class Source(Protocol):
    """Source of images, copied out by row: a tensor or a file."""

    @property
    def shape(self) -> torch.Size:
        """Shape N x C x H x W."""

    @property
    def device(self) -> torch.device:
        """Device that the copies are on."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Return a copy of the images in these rows (int64), uint8."""


class Rows:
    """Some images of a source, in some order, each copied only when it is accessed.

    Takes the place of a tensor of images, with as much of a tensor's interface as is needed.

    Args:
        source: uint8 images.
        rows: int64, N: indices into the source.
    """

    ndim, dtype = 4, torch.uint8

    def __init__(self, source: Source, rows: Tensor) -> None:
        self.source, self.rows = source, rows.to(source.device)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    @property
    def device(self) -> torch.device:
        return self.source.device

    def __getitem__(self, chosen: Tensor | slice) -> Tensor:
        return self.source[self.rows[chosen]]

    def split(self, size: int) -> Iterator[Tensor]:
        """Return all images in chunks of `size`; the last may be smaller."""
        return (self.source[rows] for rows in self.rows.split(size) if len(rows))


Images = Tensor | Rows


class InChannels:
    """Source that converts the images of another to 1 or 3 channels (see `to_channels`)."""

    def __init__(self, source: Source, channels: int) -> None:
        self._source, self._channels = source, channels

    @property
    def shape(self) -> torch.Size:
        count, _, *sides = self._source.shape
        return torch.Size((count, self._channels, *sides))

    @property
    def device(self) -> torch.device:
        return self._source.device

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        return to_channels(self._source[rows], self._channels)


def is_grey(images: Tensor) -> bool:
    """Return whether images (… x C x H x W) have no colour: all their planes are equal."""
    return bool((images == images[..., :1, :, :]).all())


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Convert uint8 images (… x C x H x W) to 1 or 3 channels: colour to its luma, as Pillow's
    convert("L") does, or grey to three equal planes. Grey pixels keep their value."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.repeat_interleave(3, -3)
    shares = torch.tensor(LUMA, dtype=torch.int32, device=images.device)
    luma = (images.int() * shares[:, None, None]).sum(-3, keepdim=True)
    return (luma + 2**15 >> 16).to(torch.uint8)


def with_channels(images: "ImageSet", channels: int) -> "ImageSet":
    """Return a view of the same images in 1 or 3 channels."""
    if images.images.shape[1] == channels:
        return images
    whole = images if isinstance(images.images, Rows) else images.subset(torch.arange(len(images)))
    assert isinstance(whole.images, Rows)
    rows = Rows(InChannels(whole.images.source, channels), whole.images.rows)
    return ImageSet(rows, images.targets, images.classes)


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, as fractions of full brightness."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Images) -> Self:
        """Compute it for uint8 images N x C x H x W, from exact counts of the 256 levels."""
        counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
        for piece in images.split(PIECE):
            for channel, of_channel in enumerate(counts):
                of_channel += torch.bincount(piece[:, channel].flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for of_channel in counts.double():
            share = of_channel / of_channel.sum()
            m = (share * levels).sum()
            mean.append(m.item())
            std.append((share * (levels - m) ** 2).sum().sqrt().clamp_min(1e-3).item())
        return cls(tuple(mean), tuple(std))


@dataclass(frozen=True)
class ImageSet:
    """Images with their targets and the class names.

    images: uint8, N x C x H x W, with C = 3, or 1 if they are grey.
    targets: int64, N, indices into `classes`.
    """

    images: Images
    targets: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise ValueError(f"images are {self.images.dtype} {tuple(self.images.shape)}")
        if self.targets.shape != (len(self.images),) or self.targets.dtype != torch.int64:
            raise ValueError(f"targets are {self.targets.dtype} {tuple(self.targets.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> "ImageSet":
        """Return a view of the images at `indices` (int64), without copying any."""
        if isinstance(self.images, Rows):
            images = Rows(self.images.source, self.images.rows[indices])
        else:
            images = Rows(self.images, indices)
        return ImageSet(images, self.targets[indices], self.classes)

    def to(self, device: torch.device) -> "ImageSet":
        """Return the set on `device`. On the same device it stays a view; on a GPU it becomes a
        tensor of its own images, sent through pinned memory."""
        if device.type == self.images.device.type:
            return self
        images, targets = self.images[:], self.targets
        if device.type == "cuda":
            images, targets = images.pin_memory(), targets.pin_memory()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        return ImageSet(images, targets, self.classes)


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Concatenate two sets of the same classes: as a view if both are rows of the same source, else
    as a copy."""
    a, b = first.images, second.images
    if isinstance(a, Rows) and isinstance(b, Rows) and a.source is b.source:
        images: Images = Rows(a.source, torch.cat([a.rows, b.rows]))
    else:
        images = torch.cat([a[:], b[:]])
    return ImageSet(images, torch.cat([first.targets, second.targets]), first.classes)


def with_classes(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """Return the same images with targets that index other class names.

    Raises:
        ValueError: one of their classes is not among `classes`.
    """
    places = torch.tensor([classes.index(name) for name in images.classes], dtype=torch.int64)
    return ImageSet(images.images, places.to(images.targets.device)[images.targets], classes)


def class_counts(dataset: ImageSet) -> dict[str, int]:
    """Return the number of images of each class, by class name."""
    counts = dataset.targets.bincount(minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def stratified_split(
    targets: Tensor, held_out: int, seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices to train on and `held_out` others, the same share of every class.

    If the share is not a whole number, the classes that rounding down costs most give one more.
    Groups are held out whole, which makes the number of indices approximate.

    Args:
        targets: int64, N.
        held_out: number of images to hold out, at most N.
        seed: seed of the choice, which is the same on every machine.
        groups: int64, N; images with the same number stay together.

    Returns:
        Two sorted int64 tensors that together contain every index once.
    """
    if groups is not None and 0 < held_out < len(targets):
        share = held_out / len(targets)
        dealt = deal(targets, groups, (1 - share, share), seed)
        return (dealt == 0).nonzero().flatten(), (dealt == 1).nonzero().flatten()
    counts = targets.bincount()
    shares = counts.double() * held_out / len(targets)
    take = shares.long()
    most_lost = (take - shares).argsort(stable=True)
    take[most_lost[: held_out - int(take.sum())]] += 1

    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(len(targets), dtype=torch.bool)
    for label, count in enumerate(take.tolist()):
        members = (targets == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        mask[members[order[:count]]] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()
