"""Logging to stdout and stderr that never blocks, even if nobody reads or the disk is full."""

import json
import logging
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from threading import Thread

MOST_WAITING = 10_000  # lines
GATHER_SECONDS = 0.02  # waking the thread for each line would slow down the others
AT_ONCE = 100  # lines


def now() -> str:
    """Return the current time for a line of the log, in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Log:
    """Write lines in a separate thread; drop and count them if it cannot keep up.

    A later line reports the number of dropped ones: {"time": …, "dropped": …}.

    Args:
        descriptor: descriptor of the file to write to.
        dropped: called with the number of dropped lines, in any thread.
    """

    def __init__(self, descriptor: int, dropped: Callable[[int], None] = lambda lines: None):
        self._descriptor, self._report_dropped = descriptor, dropped
        self._lines: SimpleQueue[str | None] = SimpleQueue()  # None: the end
        self._dropped = self._reported = 0
        self._cut = False  # a line was written in part
        # a daemon: a write to a full pipe may never return
        self._thread = Thread(target=self._work, name="log", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        """Queue a line, given without its line break; never block."""
        if self._lines.qsize() < MOST_WAITING:
            self._lines.put(line)
        else:
            self._drop(1)

    def close(self, seconds: float) -> None:
        """Wait until all queued lines are written, for at most so many seconds."""
        self._lines.put(None)
        self._thread.join(seconds)

    def _drop(self, lines: int) -> None:
        self._dropped += lines
        self._report_dropped(lines)

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
            unreported = self._dropped - self._reported
            if unreported and not self._write([json.dumps({"time": now(), "dropped": unreported})]):
                self._reported += unreported
            if left := self._write(lines):
                self._drop(left)
            if line is not None:
                line = self._lines.get()

    def _write(self, lines: list[str]) -> int:
        """Write lines; return how many of them could not be written completely."""
        rest = "".join(f"{line}\n" for line in lines).encode(errors="replace")
        if self._cut:
            rest = b"\n" + rest
        before = len(rest)
        try:
            # by the descriptor: Python's file object has a lock, for which the exit would wait
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            pass
        if len(rest) < before:
            self._cut = bool(rest)
        return min(rest.count(b"\n"), len(lines))


class Handler(logging.Handler):
    """Handler that passes the records of Python's logging to a `Log`."""

    def __init__(self, log: Log, level: int) -> None:
        super().__init__(level)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        self._log.write(self.format(record))
