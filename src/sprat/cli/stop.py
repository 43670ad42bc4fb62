"""Handling of Ctrl-C and SIGTERM in commands that train, and the end of such a command."""

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from sprat.cli.errors import complain
from sprat.errors import Interrupted, SpratError, in_words


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


def run_resumable(work: Callable[[], object], stop: Stop, to_resume: Callable[[Path], str]) -> int:
    """Run the work of a command; return its exit code. If the work is stopped or cannot be
    finished, print how to resume it.

    Args:
        stop: stops the work.
        to_resume: returns the command that resumes the run or search in a folder.

    Raises:
        SpratError: as the work, or a file cannot be written or another process has ended.
    """
    from sprat.api.runs import Unfinished

    try:
        work()
    except Interrupted as stopped:
        complain(f"Stopped and saved. Resume with\n  {to_resume(stopped.folder)}")
        return 128 + (stop.asked or signal.SIGTERM)  # another process may have been asked
    except Unfinished as error:
        raise SpratError(
            f"{in_words(error.reason)} Then resume with", f"  {to_resume(error.folder)}"
        ) from error
    return 0
