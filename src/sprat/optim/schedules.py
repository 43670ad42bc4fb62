"""Schedules: factors of a peak, above 0 at every step, functions of the step and nothing else."""

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """Fall from 1 at progress 0 to 0 at progress 1 along half a cosine (arXiv 1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Fall from 1 at progress 0 to 0 at progress 1 along a line."""
    return 1 - progress


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def warmup_then(schedule: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """The factor, above 0 and at most 1, of the peak learning rate at `step`.

    Rises linearly over `warmup_steps`, reaching 1 at the last of them, then falls by the named
    schedule. Every step of the run gets a factor above 0: 0 would be reached at `total_steps`,
    which is one past the end.

    Args:
        schedule: a name in SCHEDULES.
        step: 0 to total_steps - 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[schedule]((step - warmup_steps) / (total_steps - warmup_steps))


# the share of a probability or a strength at a step, 0 to total_steps - 1
RAMPS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total_steps: 1.0,
    "rising": lambda step, total_steps: (step + 1) / total_steps,
    "falling": lambda step, total_steps: 1 - step / total_steps,
}
