"""Workers of this machine: this process, or several processes."""

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
    """Processes of this machine that share its cores; a single one is this process."""

    apart = False

    def __init__(self, count: int) -> None:
        self.count, self.several = count, count > 1

    def threads(self, asked: int) -> int:
        return asked or max(1, usable_cores() // self.count)

    def gpus(self, asked: float, device: str) -> float:
        if asked:
            raise SpratError(
                f"--gpus-per-trial is {asked:g}, but only Ray reserves GPUs for trials; processes "
                "of one machine are spread over its GPUs. Give --workers ray, or leave it out."
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
    """A pool that runs tasks in worker processes, which start when they are needed and are spread
    over the GPUs of this machine. If one dies, its task starts again in another.

    Args:
        workers: number of processes.
        limit: time limit of each task; a process whose task exceeds it is killed.
        The others are as for `Here`.
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
        self.gpus = visible_gpus()
        self.busy: list[_Worker] = []
        self.idle: list[_Worker] = []

    def start(self, task: Task) -> None:
        self._start(Running.of(task, self.limit))

    def _start(self, running: Running[Task]) -> None:
        worker = self.idle.pop() if self.idle else self.new_worker(self._free_gpu())
        self.busy.append(worker)
        worker.begin(running)

    def _free_gpu(self) -> str | None:
        """Return the GPU that the fewest workers use, or None if there are no GPUs."""
        used = [worker.gpu for worker in self.busy + self.idle]
        return min(self.gpus, key=used.count, default=None)

    def next(self) -> Result:
        while True:
            if self.should_stop():
                self.close()
                raise Stopped
            readable = wait([worker.connection for worker in self.busy], LOOK_EVERY)
            for worker in list(self.busy):
                if worker.connection in readable:
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
        """Start a task again whose worker died."""
        self.busy.remove(dead)
        dead.process.join(PATIENCE)  # so that its own exit code is reported
        code = dead.kill()
        if not dead.ready and code > 0:  # it has printed why
            raise SpratError(
                f"A worker process ended before it could train (exit code {code}). In a script, "
                "call sprat below `if __name__ == '__main__':`, or give one worker."
            )
        ended = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._start(dead.running.again(ended))

    def close(self) -> None:
        """End the running tasks after their step, or at once if that takes long."""
        try:
            stopping = [worker.connection for worker in self.busy if worker.ready]
            for connection in stopping:
                _send(connection, None)
            end = time.monotonic() + STOP_PATIENCE
            while stopping and (left := end - time.monotonic()) > 0:
                readable = wait(stopping, left)
                for connection in [each for each in stopping if each in readable]:
                    try:
                        connection.recv_bytes()  # the result of a task that has just ended
                    except (EOFError, OSError):
                        stopping.remove(connection)
        finally:
            for worker in self.busy + self.idle:
                worker.kill()
            self.busy, self.idle = [], []


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(number) for number in range(count)]


class _Worker:
    """A worker process, which runs one task after another, as seen from the command.

    ready: whether it has loaded everything that tasks need. running: its latest task. gpu: the only
    GPU that it sees, as CUDA_VISIBLE_DEVICES names it; None if there are no GPUs.
    """

    running: Running[Any]

    def __init__(self, work: Work[Any, Any, Any], shared: Any, gpu: str | None) -> None:
        self.gpu = gpu
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, work, shared, gpu))
        with _signals_held():
            self.process.start()
        theirs.close()
        self.ready = False

    def begin(self, running: Running[Any]) -> None:
        """Start a task as soon as the process is ready."""
        self.running = running
        if self.ready:
            self.go()

    def go(self) -> None:
        """Send the task to the process, which is ready."""
        self.ready = True
        _send(self.connection, self.running.task)

    def kill(self) -> int:
        """Kill the process if it is still alive; return its exit code."""
        self.process.kill()
        self.process.join()
        self.connection.close()
        code = self.process.exitcode
        assert code is not None
        return code


def _send(connection: "Connection[Any, Any]", message: object) -> None:
    with contextlib.suppress(OSError):  # the process has died, which `next` notices
        connection.send(message)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Block signals during the block, also in a process that is started in it, until that process
    ignores them."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    resource_tracker.ensure_running()  # it would unblock them if it started in the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# in a worker


def _serve(
    connection: "Connection[Any, Any]", work: Work[Any, Any, Any], shared: Any, gpu: str | None
) -> None:
    """Run tasks until the command sends None or has ended. Signals, which terminals and schedulers
    send to all processes, are left to the command."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu  # CUDA has not been initialized yet
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    with contextlib.suppress(EOFError, BrokenPipeError):
        connection.send(None)  # ready
        while (task := connection.recv()) is not None:
            # the command sends something during a task only to stop it
            connection.send(run_task(work, task, shared, connection.poll))


def _end_with(sentinel: Any) -> None:
    wait([sentinel])
    os._exit(1)
