"""sprat's training step on noise, for scripts that time it: no run, folder or dataset."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sprat.data.imageset import Normalization
from sprat.runtime import keep_freed_memory
from sprat.settings.config import Config
from sprat.training.prepare import settle
from sprat.training.schedules import RunSchedule
from sprat.training.step import Step, new_network

CLASSES = 10
NORMALIZATION = Normalization((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


class NoiseSteps:
    """The steps of a run on random images and labels.

    Args:
        config: "auto" and 0 threads are settled for this machine.
        images: how many; all are kept in memory, on the config's device.
        side: of the images, in pixels.
    """

    def __init__(self, config: Config, images: int = 10_000, side: int = 32) -> None:
        self.config = settle(config)
        keep_freed_memory()
        device, batch_size = self.config.device, self.config.batch_size
        generator = torch.Generator().manual_seed(0)
        shape = images, 3, side, side
        self.images = torch.randint(256, shape, dtype=torch.uint8, generator=generator).to(device)
        self.labels = torch.randint(CLASSES, (images,), generator=generator).to(device)
        self.step = Step(
            new_network(self.config, CLASSES).train(),
            self.config,
            RunSchedule(self.config, images // batch_size),
            NORMALIZATION,
            CLASSES,
        )
        self.taken = 0
        self.order: Iterator[Tensor] = iter(())

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return the next images, uint8 B x 3 x side x side, and their labels, int64 B."""
        chosen = next(self.order, None)
        while chosen is None or len(chosen) < self.config.batch_size:
            order = torch.randperm(len(self.images), device=self.images.device)
            self.order = iter(order.split(self.config.batch_size))
            chosen = next(self.order)
        return self.images[chosen], self.labels[chosen]

    def __call__(self) -> Tensor:
        """Take the next step; return its loss, which a GPU may still be computing."""
        loss = self.step(*self.batch(), self.taken % self.step.schedule.total_steps)
        self.taken += 1
        return loss
