"""Places where trials run: in this process, or in several of this machine.

A pool starts tasks and gives their rungs as they end. Whatever runs them, what a task comes to is
the same, so a search is the same in any pool whose trials have as many threads.
"""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.synchronize import Event
from typing import Any, Protocol

from sprat.errors import Interrupted, SpratError
from sprat.searching.source import Source
from sprat.searching.trial import Rung, Task, train_rung

Train = Callable[[Task, Source, Callable[[], bool]], Rung]
LOOK_EVERY = 0.2  # seconds between two looks whether the search is to stop


class Stopped(Exception):
    """A task was ended before its rung, since the search is to stop."""


class Pool(Protocol):
    """Runs tasks.

    workers: how many it runs at once.
    """

    workers: int

    def start(self, task: Task) -> None:
        """Start a task; at most `workers` are under way."""

    def next(self) -> Rung:
        """Wait for a task that ends, and return its rung.

        Raises:
            Stopped: the search is to stop; what was under way is lost.
            SpratError: as `train_rung`, or a worker died.
        """

    def close(self) -> None:
        """End the workers."""


class Here:
    """Runs one task at a time in this process.

    Args:
        source: the images.
        should_stop: asked after every step.
        train: what runs a task.
    """

    workers = 1

    def __init__(
        self, source: Source, should_stop: Callable[[], bool], train: Train = train_rung
    ) -> None:
        self.source, self.should_stop, self.train = source, should_stop, train
        self.task: Task | None = None

    def start(self, task: Task) -> None:
        self.task = task

    def next(self) -> Rung:
        assert self.task is not None
        if self.should_stop():
            raise Stopped
        try:
            return self.train(self.task, self.source, self.should_stop)
        except Interrupted as error:
            raise Stopped from error

    def close(self) -> None:
        pass


class Processes:
    """Runs tasks in processes of their own.

    Args:
        workers: how many.
        Others as of `Here`; `train` is a function of a module.
    """

    def __init__(
        self,
        source: Source,
        should_stop: Callable[[], bool],
        workers: int,
        train: Train = train_rung,
    ) -> None:
        self.workers, self.should_stop, self.train = workers, should_stop, train
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.stop = context.Event()
        begin = functools.partial(_begin, source.to_send(), self.stop)
        self.executor = ProcessPoolExecutor(workers, context, begin)
        self.running: set[Future[Rung | None]] = set()
        for _ in range(workers):  # they load torch while the first trials are asked
            self.executor.submit(_ready)

    def start(self, task: Task) -> None:
        self.running.add(self.executor.submit(_run, self.train, task))

    def next(self) -> Rung:
        while True:
            if self.should_stop():
                self.stop.set()
                raise Stopped
            done, _ = concurrent.futures.wait(
                self.running, LOOK_EVERY, concurrent.futures.FIRST_COMPLETED
            )
            for future in done:
                self.running.remove(future)
                try:
                    rung = future.result()
                except BrokenProcessPool as error:
                    raise SpratError(
                        "A worker process died while it trained a trial, maybe for lack of "
                        "memory. Resume the search with fewer --workers."
                    ) from error
                if rung is None:
                    raise Stopped
                return rung

    def close(self) -> None:
        self.stop.set()
        self.executor.shutdown(cancel_futures=True)


_source: Source
_stop: Event


def _begin(source: Source, stop: Event) -> None:
    """Prepare a worker: it leaves interrupts to the search, and ends with it, however that ends."""
    global _source, _stop
    _source, _stop = source, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _ready() -> None:
    """Do nothing, in a worker that has begun."""


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def _run(train: Train, task: Task) -> Rung | None:
    """Run a task in a worker; return None if the search is to stop."""
    try:
        return train(task, _source, _stop.is_set)
    except Interrupted:
        return None


def make_pool(
    source: Source, should_stop: Callable[[], bool], workers: int, train: Train = train_rung
) -> Pool:
    """Return a pool of so many workers; of one, this process."""
    if workers == 1:
        return Here(source, should_stop, train)
    return Processes(source, should_stop, workers, train)
