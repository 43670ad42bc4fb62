"""Images with their labels, whole in memory."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Per-channel mean and standard deviation, as fractions of full brightness."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """That of uint8 images N x C x H x W. Exact: counts grey levels, adds no floats."""
        levels = torch.arange(256, dtype=torch.float64) / 255
        mean, std = [], []
        for channel in range(images.shape[1]):
            counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
            share = counts / counts.sum()
            m = (share * levels).sum()
            mean.append(m.item())
            std.append((share * (levels - m) ** 2).sum().sqrt().clamp_min(1e-3).item())
        return cls(tuple(mean), tuple(std))


@dataclass(frozen=True)
class ImageSet:
    """Images with targets and class names.

    images: uint8, N x 3 x H x W. targets: int64, N, each an index into classes.
    """

    images: Tensor
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
        """The images at `indices` (int64), copied."""
        return ImageSet(self.images[indices], self.targets[indices], self.classes)

    def to(self, device: torch.device) -> "ImageSet":
        """The same set with its tensors on `device`; through pinned memory to a GPU."""
        images, targets = self.images, self.targets
        if device.type == "cuda":
            images, targets = images.pin_memory(), targets.pin_memory()
        images = images.to(device, non_blocking=True)
        targets = targets.to(device, non_blocking=True)
        return ImageSet(images, targets, self.classes)


def stratified_split(targets: Tensor, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices to train on and `held_out` indices held out, the same share of every class.

    Where the share is no whole number, the classes that lose most by rounding give one more.

    Args:
        targets: int64, N.
        held_out: how many to hold out, at most N.
        seed: decides which; the same on every machine.

    Returns:
        Two sorted int64 tensors that together hold every index once.
    """
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
