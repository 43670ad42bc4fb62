"""Shuffled batches out of one tensor: slices, no worker processes."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.runtime import derive_seed


class Batches:
    """Training batches of an ImageSet, in an order that is a function of (seed, epoch).

    The last images of an epoch's order that do not fill a batch are left out of that epoch:
    BatchNorm's statistics want full batches, and the next epoch's order is another.

    Raises:
        SpratError: there are fewer images than one batch holds.
    """

    def __init__(self, dataset: ImageSet, batch_size: int, seed: int) -> None:
        if len(dataset) < batch_size:
            raise SpratError(
                f"batch_size is {batch_size} but there are only {len(dataset)} training images; "
                f"use a batch size of at most {len(dataset)}"
            )
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed

    def __len__(self) -> int:
        """Batches, and so steps, in an epoch."""
        return len(self.dataset) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (images uint8 B x 3 x H x W, targets int64 B) from batch `start` on."""
        generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
        order = torch.randperm(len(self.dataset), generator=generator)
        order = order.to(self.dataset.images.device)
        for batch in range(start, len(self)):
            chosen = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.dataset.images[chosen], self.dataset.targets[chosen]
