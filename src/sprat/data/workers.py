"""Batches augmented by worker processes, one image at a time."""

import itertools
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from sprat import distributed
from sprat.data.batches import Batches
from sprat.data.imageset import ImageSet

Augment = Callable[[Tensor, int], Tensor]
# images and targets of a batch, and the seed of its augmentation; not tensors, since torch sends
# those through shared memory
Order = tuple[NDArray[np.uint8], NDArray[np.int64], int]


class WorkerBatches(Batches):
    """The same batches in the same order, augmented by worker processes.

    Workers live until `close` and prefetch across epochs. The augmented batch depends only on
    (seed, epoch, batch), not on the worker.

    Args:
        dataset: on the CPU.
        augment: (images uint8 B x C x H x W, seed) -> images; pickled for the workers.
        workers: number of processes, at least 1.
        device: where batches go; to a GPU from pinned memory.
    """

    def __init__(
        self,
        dataset: ImageSet,
        batch_size: int,
        seed: int,
        *,
        augment: Augment,
        workers: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset, batch_size, seed)
        self.augment, self.workers, self.device = augment, workers, device
        self._stream: Iterator[tuple[Tensor, Tensor]] | None = None
        self._next = (0, 0)  # epoch and batch that the stream yields next

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (augmented images B x C x H x W, targets int64 B), starting with batch `start`."""
        for batch in range(start, len(self)):
            if self._stream is None or self._next != (epoch, batch):
                self._stream = iter(self._loader(epoch, batch))
            self._next = (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)
            images, targets = next(self._stream)
            images = images.to(self.device, non_blocking=True)
            yield images, targets.to(self.device, non_blocking=True)

    def close(self) -> None:
        """Stop the workers; the next epoch starts new ones."""
        self._stream = None

    def _loader(self, epoch: int, start: int) -> DataLoader[tuple[Tensor, Tensor]]:
        method = "spawn" if sys.platform == "win32" else "forkserver"
        return DataLoader(
            _Augmented(self.augment),  # type: ignore[arg-type]
            batch_size=None,
            sampler=self._orders(epoch, start),
            num_workers=self.workers,
            pin_memory=self.device.type == "cuda",
            # forking a process with threads can hang
            multiprocessing_context=multiprocessing.get_context(method),
            worker_init_fn=_leave_interrupts_to_the_parent,
        )

    def _orders(self, epoch: int, start: int) -> Iterator[Order]:
        """Yield orders forever; the run stops asking."""
        for each in itertools.count(epoch):
            for batch, chosen in enumerate(self.order(each)):
                if each > epoch or batch >= start:
                    images, targets = self.dataset.images[chosen], self.dataset.targets[chosen]
                    seed = distributed.seed("augment", self.seed, each * len(self) + batch)
                    yield images.numpy(), targets.numpy(), seed


class _Augmented:
    """Dataset of a worker, which holds no images: those of each batch come with its order, from the
    parent, since containers limit shared memory and the dataset may exceed memory."""

    def __init__(self, augment: Augment) -> None:
        self.augment = augment

    def __getitem__(self, order: Order) -> tuple[Tensor, Tensor]:
        images, targets, seed = order
        return self.augment(torch.from_numpy(images), seed), torch.from_numpy(targets)


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
