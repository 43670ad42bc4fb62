"""Workers of this machine: this process, or several."""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import Any, Generic

from sprat.errors import Interrupted, SpratError
from sprat.pools import (
    LOOK_EVERY,
    STOP_PATIENCE,
    Common,
    Limit,
    Pool,
    Result,
    Running,
    Stopped,
    Task,
    Work,
    result_of,
    run_task,
)
from sprat.threads import usable_cores

PATIENCE = 5.0  # seconds for a process to end


class Processes:
    """Processes of this machine, among which its cores are divided; one alone is this process."""

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
        limit: Limit[Task, Result] | None = None,
    ) -> Pool[Task, Result]:
        if self.count == 1:
            return Here(work, shared, should_stop)
        return ProcessPool(work, shared, should_stop, self.count, limit)


class Here(Generic[Task, Common, Result]):
    """A pool that runs one task at a time in this process.

    Args:
        work: what runs a task.
        shared: what all tasks have in common.
        should_stop: asked after every step.
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
    """A pool that runs tasks in processes of their own, which start when they are first needed. If
    one dies, its task begins again in another.

    Args:
        workers: how many.
        limit: of each task; a process whose task does not keep it is ended.
        Others as of `Here`.
    """

    def __init__(
        self,
        work: Work[Task, Common, Result],
        shared: Common,
        should_stop: Callable[[], bool],
        workers: int,
        limit: Limit[Task, Result] | None = None,
    ) -> None:
        self.workers, self.should_stop, self.limit = workers, should_stop, limit
        self.new_worker = functools.partial(_Worker, work, shared.to_send())
        self.busy: list[_Worker] = []
        self.idle: list[_Worker] = []

    def start(self, task: Task) -> None:
        self._start(Running.of(task, self.limit))

    def _start(self, running: Running[Task]) -> None:
        worker = self.idle.pop() if self.idle else self.new_worker()
        self.busy.append(worker)
        worker.begin(running)

    def next(self) -> Result:
        while True:
            if self.should_stop():
                self.close()
                raise Stopped
            heard = wait([worker.connection for worker in self.busy], LOOK_EVERY)
            for worker in list(self.busy):
                if worker.connection in heard:
                    try:
                        ended = worker.connection.recv()
                    except (EOFError, OSError):
                        self._start_again(worker)
                        continue
                    if not worker.ready:
                        worker.go()
                        continue
                    self.busy.remove(worker)
                    self.idle.append(worker)
                    return result_of(ended)
                if time.monotonic() > worker.running.late:
                    self.busy.remove(worker)
                    worker.kill()
                    return worker.running.instead

    def _start_again(self, dead: "_Worker") -> None:
        """Begin a task again whose worker died."""
        self.busy.remove(dead)
        dead.process.join(PATIENCE)  # it ends with a code of its own
        code = dead.kill()
        if not dead.ready and code > 0:  # it has said why
            raise SpratError(
                f"A worker process ended before it could train (exit code {code}). In a script, "
                "call sprat below `if __name__ == '__main__':`, or give one worker."
            )
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._start(dead.running.again(ended))

    def close(self) -> None:
        """End the tasks under way after their step, or, if that takes long, at once."""
        try:
            stopping = {worker.connection for worker in self.busy if worker.ready}
            for connection in stopping:
                _send(connection, None)
            end = time.monotonic() + STOP_PATIENCE
            while stopping and (left := end - time.monotonic()) > 0:
                for connection in wait(stopping, left):
                    try:
                        connection.recv_bytes()  # what a task came to just now
                    except (EOFError, OSError):
                        stopping.remove(connection)
        finally:
            for worker in self.busy + self.idle:
                worker.kill()
            self.busy, self.idle = [], []


class _Worker:
    """A process that runs one task after another, from this process's side.

    ready: whether it has loaded what it needs. running: its task, if it has one.
    """

    running: Running[Any]

    def __init__(self, work: Work[Any, Any, Any], shared: Any) -> None:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, shared))
        with _signals_held():
            self.process.start()
        theirs.close()
        self.ready = False

    def begin(self, running: Running[Any]) -> None:
        """Begin a task, as soon as the process is ready."""
        self.running = running
        if self.ready:
            self.go()

    def go(self) -> None:
        """Send the task to the process, which is ready."""
        self.ready = True
        _send(self.connection, self.running.task)

    def kill(self) -> int:
        """End the process, if it has not ended; return its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        assert code is not None
        return code


def _send(connection: "Connection[Any, Any]", message: object) -> None:
    with contextlib.suppress(OSError):  # the process has died, as is seen when it is heard
        connection.send(message)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Hold signals back during the block, and in a process that it starts until that ignores
    them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it starts with the first process, and lets signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# in a worker


def _serve(connection: "Connection[Any, Any]", work: Work[Any, Any, Any], shared: Any) -> None:
    """Run tasks until there is none, or the command has ended. Signals, which a terminal and a
    scheduler send to all processes, are left to the command."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(None)  # it is ready
        while (task := connection.recv()) is not None:
            # while a task is under way, the command only sends that it is to stop
            connection.send(run_task(work, task, shared, connection.poll))


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)
