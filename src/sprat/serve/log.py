"""Lines to stdout and stderr that nobody need read, and no disk need have room for."""

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Thread

MOST_WAITING = 10_000  # lines
GATHER_SECONDS = 0.02  # a thread that wakes for each line would hold up the others
AT_ONCE = 100  # lines


def now() -> str:
    """The time of a line, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Log:
    """Writes lines in a thread of its own; drops and counts them where that cannot keep up.

    A line later says how many were dropped: {"time": …, "dropped": …}.

    Args:
        descriptor: the file to write to.
        dropped: called with the number of dropped lines, in any thread.
    """

    def __init__(self, descriptor: int, dropped: Callable[[int], None] = lambda lines: None):
        self._descriptor, self._tell_dropped = descriptor, dropped
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # None: the end
        self._dropped = self._told = 0
        self._cut = False  # a line was written in part
        # a daemon: a write to a full pipe may never return
        self._thread = Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queues a line, without its end; never waits."""
        if self._lines.qsize() < MOST_WAITING:
            self._lines.put(line)
        else:
            self._drop(1)

    def close(self, seconds: float) -> None:
        """Waits for what is queued to be written, but no longer than so many seconds."""
        self._lines.put(None)
        self._thread.join(seconds)

    def _drop(self, lines: int) -> None:
        self._dropped += lines
        self._tell_dropped(lines)

    def _work(self) -> None:
        line = self._lines.get()
        while line is not None:
            lines = [line]
            time.sleep(GATHER_SECONDS)
            try:
                while len(lines) < AT_ONCE and (line := self._lines.get_nowait()) is not None:
                    lines.append(line)
            except Empty:
                pass
            untold = self._dropped - self._told
            if untold and not self._write([json.dumps({"time": now(), "dropped": untold})]):
                self._told += untold
            if left := self._write(lines):
                self._drop(left)
            if line is not None:
                line = self._lines.get()

    def _write(self, lines: list[str]) -> int:
        """Return how many of the lines could not be written whole."""
        rest = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        if self._cut:
            rest = b"\n" + rest
        before = len(rest)
        try:
            # by the descriptor: Python's own file would hold a lock that its end waits for
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            pass
        if len(rest) < before:
            self._cut = bool(rest)
        return min(rest.count(b"\n"), len(lines))


class Handler(logging.Handler):
    """Passes the records of Python's logging on to a `Log`."""

    def __init__(self, log: Log, level: int) -> None:
        super().__init__(level)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))
