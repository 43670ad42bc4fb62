"""Images with their labels: whole in memory, or rows of a set that may be in a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor

from sprat.data.groups import deal

LUMA = (19_595, 38_470, 7_471)  # shares of red, green and blue in brightness, of 2**16
PIECE = 1_024  # images looked at together where all of a set are: 3 MB at 32 px, 50 at 128


class Source(Protocol):
    """A source that images are copied out of: a tensor, or a file."""

    @property
    def shape(self) -> torch.Size:
        """N x C x H x W."""

    @property
    def device(self) -> torch.device:
        """Device on which they come out."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The images of these rows (int64), uint8, copied."""


class Rows:
    """Some images of a source, in an order, each copied out only when it is asked for.

    Stands where a tensor of images does, and has of a tensor what those need who look at images.

    Args:
        source: uint8 images.
        rows: int64, N: which of them.
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
        """All of them in pieces of `size`, the last perhaps smaller."""
        return (self.source[rows] for rows in self.rows.split(size) if len(rows))


Images = Tensor | Rows


class InChannels:
    """A source whose images come out in another number of channels (see `to_channels`)."""

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
    """Return whether images (… x C x H x W) have no colour: every plane is the same."""
    return bool((images == images[..., :1, :, :]).all())


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Return uint8 images (… x C x H x W) in 1 or 3 channels: colour as grey, by its luma as in
    Pillow's convert("L"), or grey as three equal planes. Grey pixels keep their value."""
    if images.shape[-3] == channels:
        return images
    if channels == 3:
        return images.repeat_interleave(3, -3)
    shares = torch.tensor(LUMA, dtype=torch.int32, device=images.device)
    luma = (images.int() * shares[:, None, None]).sum(-3, keepdim=True)
    return (luma + 2**15 >> 16).to(torch.uint8)


def with_channels(images: "ImageSet", channels: int) -> "ImageSet":
    """Return the same images in 1 or 3 channels: a view."""
    if images.images.shape[1] == channels:
        return images
    whole = images if isinstance(images.images, Rows) else images.subset(torch.arange(len(images)))
    assert isinstance(whole.images, Rows)
    rows = Rows(InChannels(whole.images.source, channels), whole.images.rows)
    return ImageSet(rows, images.targets, images.classes)


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation, as fractions of full brightness."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Images) -> Self:
        """Return that of uint8 images N x C x H x W. Exact: counts grey levels, adds no floats."""
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
    """Images with targets and class names.

    images: uint8, N x C x H x W, C being 3, or 1 where they are grey. targets: int64, N, each an
    index into classes.
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
        """The images at `indices` (int64): a view, which copies none of them."""
        if isinstance(self.images, Rows):
            images = Rows(self.images.source, self.images.rows[indices])
        else:
            images = Rows(self.images, indices)
        return ImageSet(images, self.targets[indices], self.classes)

    def to(self, device: torch.device) -> "ImageSet":
        """The same set on `device`: a view stays one where it is, and goes to a GPU as a tensor
        of its images alone, through pinned memory."""
        if device.type == self.images.device.type:
            return self
        images, targets = self.images[:], self.targets
        if device.type == "cuda":
            images, targets = images.pin_memory(), targets.pin_memory()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        return ImageSet(images, targets, self.classes)


def joined(first: ImageSet, second: ImageSet) -> ImageSet:
    """Return the images of two sets of the same classes as one: a view, if both are of one source,
    else a copy."""
    a, b = first.images, second.images
    if isinstance(a, Rows) and isinstance(b, Rows) and a.source is b.source:
        images: Images = Rows(a.source, torch.cat([a.rows, b.rows]))
    else:
        images = torch.cat([a[:], b[:]])
    return ImageSet(images, torch.cat([first.targets, second.targets]), first.classes)


def with_classes(images: ImageSet, classes: tuple[str, ...]) -> ImageSet:
    """Return the same images with their targets counted among other classes, by name.

    Raises:
        ValueError: one of their classes is not among them.
    """
    places = torch.tensor([classes.index(name) for name in images.classes], dtype=torch.int64)
    return ImageSet(images.images, places.to(images.targets.device)[images.targets], classes)


def class_counts(dataset: ImageSet) -> dict[str, int]:
    """Count the images of each class, by its name."""
    counts = dataset.targets.bincount(minlength=len(dataset.classes)).tolist()
    return dict(zip(dataset.classes, counts, strict=True))


def stratified_split(
    targets: Tensor, held_out: int, seed: int, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Indices to train on and `held_out` indices held out, the same share of every class.

    Where the share is no whole number, the classes that lose most by rounding give one more.
    Groups are held out whole or not at all, so that there are about `held_out` indices.

    Args:
        targets: int64, N.
        held_out: how many to hold out, at most N.
        seed: decides which; the same on every machine.
        groups: int64, N; images of one number stay together.

    Returns:
        Two sorted int64 tensors that together hold every index once.
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
