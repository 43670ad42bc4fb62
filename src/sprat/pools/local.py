"""Workers of this machine: this process, or several processes."""

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
from typing import Any, Generic

from sprat.errors import Interrupted, SpratError
from sprat.pools import (
    LOOK_EVERY,
    Common,
    Failed,
    Pool,
    Result,
    Stopped,
    Task,
    Work,
    result_of,
    run_task,
)
from sprat.threads import usable_cores


class Processes:
    """Processes of this machine that share its cores; a single one is this process."""

    apart = False

    def __init__(self, count: int) -> None:
        self.count, self.several = count, count > 1

    def threads(self, asked: int) -> int:
        return asked or max(1, usable_cores() // self.count)

    def gpus(self, asked: float, device: str) -> float:
        if asked:
            raise SpratError(
                f"--gpus-per-trial is {asked:g}, but processes of one machine share its GPU. Give "
                "--workers ray for trials with GPUs of their own, or leave it out."
            )
        return 0.0

    def check(self, threads: int, gpus: float) -> None:
        pass

    def pool(
        self,
        work: Work[Task, Common, Result],
        shared: Common,
        should_stop: Callable[[], bool],
        *,
        threads: int,
        gpus: float = 0.0,
    ) -> Pool[Task, Result]:
        if self.count == 1:
            return Here(work, shared, should_stop)
        return ProcessPool(work, shared, should_stop, self.count)


class Here(Generic[Task, Common, Result]):
    """A pool that runs one task at a time in this process.

    Args:
        work: function that runs a task.
        shared: values shared by all tasks.
        should_stop: called after every step.
    """

    workers = 1

    def __init__(
        self, work: Work[Task, Common, Result], shared: Common, should_stop: Callable[[], bool]
    ) -> None:
        self.work, self.shared, self.should_stop = work, shared, should_stop
        self.task: Task | None = None

    def start(self, task: Task) -> None:
        self.task = task

    def next(self) -> Result:
        assert self.task is not None
        if self.should_stop():
            raise Stopped
        try:
            return self.work(self.task, self.shared, self.should_stop)
        except Interrupted as error:
            raise Stopped from error

    def close(self) -> None:
        pass


class ProcessPool(Generic[Task, Common, Result]):
    """A pool that runs tasks in worker processes.

    Args:
        workers: number of processes.
        The others are as for `Here`.
    """

    def __init__(
        self,
        work: Work[Task, Common, Result],
        shared: Common,
        should_stop: Callable[[], bool],
        workers: int,
    ) -> None:
        self.workers, self.should_stop, self.work = workers, should_stop, work
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.stop = context.Event()
        begin = functools.partial(_begin, shared.to_send(), self.stop)
        self.executor = ProcessPoolExecutor(workers, context, begin)
        self.running: set[Future[Result | Failed | None]] = set()
        for _ in range(workers):  # so that they load torch while the first tasks are made
            self.executor.submit(_ready)

    def start(self, task: Task) -> None:
        self.running.add(self.executor.submit(_run, self.work, task))

    def next(self) -> Result:
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
                    return result_of(future.result())
                except BrokenProcessPool as error:
                    raise SpratError(
                        "A worker process died while it trained, maybe for lack of memory. Resume "
                        "with fewer --workers."
                    ) from error

    def close(self) -> None:
        self.stop.set()
        self.executor.shutdown(cancel_futures=True)


_shared: Any
_stop: Event


def _begin(shared: Any, stop: Event) -> None:
    """Prepare a worker: it ignores interrupts, which the command handles, and ends with the
    command, however that ends."""
    global _shared, _stop
    _shared, _stop = shared, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _ready() -> None:
    """Do nothing: a first task that starts a worker."""


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)


def _run(work: Work[Task, Any, Result], task: Task) -> Result | Failed | None:
    return run_task(work, task, _shared, _stop.is_set)
