"""Schedules of a run as functions of the step: learning rate, mixer and image side."""

import random
from dataclasses import dataclass

from sprat.augment.mixing import choose
from sprat.optim.schedules import RAMPS, warmup_then
from sprat.runtime import derive_seed
from sprat.settings.config import Config


@dataclass(frozen=True)
class RunSchedule:
    """Schedule of a run of `config.epochs` epochs with `steps_per_epoch` steps each.

    Steps are numbered 0 to `total_steps` - 1.
    """

    config: Config
    steps_per_epoch: int

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def lr_share(self, step: int) -> float:
        """Return the fraction of the peak learning rate at a step."""
        optim = self.config.optim
        warmup_steps = round(optim.warmup_epochs * self.steps_per_epoch)
        return warmup_then(optim.schedule, step, self.total_steps, warmup_steps)

    def lr(self, step: int) -> float:
        """Return the learning rate at a step."""
        return self.config.optim.lr * self.lr_share(step)

    def side(self, step: int) -> int:
        """Return the side of the images at a step, in pixels; 0: the original side."""
        return self.config.augment.side_of(step // self.steps_per_epoch)

    def mixer(self, step: int) -> tuple[str | None, float]:
        """Return the name of the mixer for the batch of a step, or None, and its alpha or beta."""
        mixing = self.config.mixing
        with_mixing = self.total_steps - round(mixing.off_epochs * self.steps_per_epoch)
        if not mixing.any or step >= with_mixing:
            return None, 1.0
        share = RAMPS[mixing.probability](step, with_mixing)
        probabilities = {name: p * share for name, p in mixing.probabilities.items()}
        draw = random.Random(derive_seed("mixer", self.config.seed, step)).random()
        name = choose(probabilities, draw)
        strength = mixing.strengths[name] if name else 1.0
        return name, strength * RAMPS[mixing.strength](step, with_mixing)
