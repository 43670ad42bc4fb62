"""Schedules: factors of a peak value, always above 0, that depend only on the step."""

import math
from collections.abc import Callable


def cosine(progress: float) -> float:
    """Fall from 1 at progress 0 to 0 at progress 1 along half a cosine (arXiv 1608.03983)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """Fall linearly from 1 at progress 0 to 0 at progress 1."""
    return 1 - progress


SCHEDULES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear}


def warmup_then(schedule: str, step: int, total_steps: int, warmup_steps: int = 0) -> float:
    """Return the factor of the peak learning rate at `step`, above 0 and at most 1.

    The factor rises linearly over `warmup_steps`, reaches 1 at the last of them, then falls by the
    named schedule. It is above 0 at every step of the run: 0 would be reached at `total_steps`, one
    past the end.

    Args:
        schedule: a key of SCHEDULES.
        step: 0 to total_steps - 1.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[schedule]((step - warmup_steps) / (total_steps - warmup_steps))


# factor of a probability or a strength at a step, 0 to total_steps - 1
RAMPS: dict[str, Callable[[int, int], float]] = {
    "constant": lambda step, total_steps: 1.0,
    "rising": lambda step, total_steps: (step + 1) / total_steps,
    "falling": lambda step, total_steps: 1 - step / total_steps,
}
