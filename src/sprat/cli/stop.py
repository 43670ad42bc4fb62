"""Handling of Ctrl-C and SIGTERM in commands that train."""

import signal
from collections.abc import Callable
from types import FrameType


class Stop:
    """While entered, Ctrl-C and SIGTERM stop training after the current step.

    asked: number of the signal that asked to stop; 0 if none has.
    """

    asked = 0

    def __enter__(self) -> Callable[[], bool]:
        both = (signal.SIGINT, signal.SIGTERM)
        self.before = {number: signal.signal(number, self._ask) for number in both}
        return lambda: self.asked != 0

    def __exit__(self, *error: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:  # the second time, stop at once
            raise KeyboardInterrupt
        self.asked = number
