"""Shuffled batches sliced from one tensor, without worker processes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sprat import distributed
from sprat.augment.transforms import alternating_flip
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.runtime import derive_seed


def check_batch_size(batch_size: int, images: int) -> None:
    """Check that there are enough images to fill a batch.

    Raises:
        SpratError: there are not.
    """
    if images < batch_size:
        raise SpratError(
            f"batch_size is {batch_size}, but there are only {images:,} training images. Use a "
            f"batch size of at most {images:,}."
        )


class Batches:
    """Training batches of an ImageSet, in an order that depends only on (seed, epoch).

    Images left over after the last full batch are skipped in that epoch, because BatchNorm needs
    full batches; the next epoch has another order. If several processes train one run, each gets
    its part of every batch.

    Args:
        alternating_flip: mirror every image every other epoch, half of them in the first.

    Raises:
        SpratError: there are fewer images than one batch needs, or the processes cannot divide a
            batch evenly.
    """

    def __init__(
        self, dataset: ImageSet, batch_size: int, seed: int, *, alternating_flip: bool = False
    ) -> None:
        check_batch_size(batch_size, len(dataset))
        distributed.check_batch_size(batch_size)
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.mirrored_first: Tensor | None = None  # bool, N
        if alternating_flip:
            generator = torch.Generator().manual_seed(derive_seed("flip", seed))
            half = torch.randperm(len(dataset), generator=generator) < len(dataset) // 2
            self.mirrored_first = half.to(dataset.images.device)

    def __len__(self) -> int:
        """Number of batches, and so of steps, in an epoch."""
        return len(self.dataset) // self.batch_size

    def order(self, epoch: int) -> list[Tensor]:
        """Return the indices of each batch's images (int64, on the CPU), of this process's part."""
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        return [distributed.part(batch) for batch in order.split(self.batch_size)[: len(self)]]

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (images uint8 B x C x H x W, targets int64 B), starting with batch `start`."""
        for chosen in self.order(epoch)[start:]:
            chosen = chosen.to(self.dataset.images.device, non_blocking=True)
            images = self.dataset.images[chosen]
            if self.mirrored_first is not None:
                images = alternating_flip(images, self.mirrored_first[chosen], epoch)
            yield images, self.dataset.targets[chosen]

    def close(self) -> None:
        """Stop whatever prepares batches in the background."""
