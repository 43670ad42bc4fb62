"""Pools of workers that train trials, seeds and folds: this process, several processes of this
machine, or the machines of a Ray cluster.

    with open_workers("ray") as workers:
        pool = workers.pool(train_rung, source, should_stop, threads=2, gpus=0)
        pool.start(task)
        rung = pool.next()

A pool runs tasks and returns their results as they end. A task's result does not depend on the
worker, so a search is the same in any pool whose tasks have the same number of threads.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self, TypeVar

from sprat.errors import Interrupted, SpratError, shown

MOST_WORKERS = 256
MOST_GPUS = 1.0  # a task trains on one GPU, or on a share of it
LOOK_EVERY = 0.2  # seconds between two checks whether to stop


class Stopped(Exception):
    """A task was ended early, since the command is to stop."""


class Shared(Protocol):
    """Values shared by all tasks, sent to each worker once."""

    def to_send(self) -> Self:
        """Return a copy without what another process of this machine can load by itself."""


Task = TypeVar("Task")
Result = TypeVar("Result")
Common = TypeVar("Common", bound=Shared)
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)
Work = Callable[[Task, Common, Callable[[], bool]], Result]
"""A function at the top level of a module that runs a task. It raises Interrupted once the function
that it is given returns true."""


class Pool(Protocol[Taken, Given]):
    """Runs tasks."""

    @property
    def workers(self) -> int:
        """Number of tasks that run at once."""

    def start(self, task: Taken) -> None:
        """Start a task; at most `workers` may be running."""

    def next(self) -> Given:
        """Wait until a task ends, and return its result.

        Raises:
            Stopped: the command is to stop; the running tasks are ended.
            SpratError: the task raised it, or workers died.
        """

    def close(self) -> None:
        """End the running tasks and the workers."""


class Workers(Protocol):
    """Workers of one kind that can run tasks.

    several: whether there is more than this process. apart: whether some may be on other machines.
    """

    several: bool
    apart: bool

    def threads(self, asked: int) -> int:
        """Return the number of CPU threads of each task; asked 0: its share of the cores."""

    def gpus(self, asked: float, device: str) -> float:
        """Return the number of GPUs, or the fraction of one, for each task on a device.

        Args:
            asked: number that the user gave; 0: one for each task on GPUs.

        Raises:
            SpratError: GPUs are asked for, but tasks cannot have GPUs of their own.
        """

    def check(self, threads: int, gpus: float) -> None:
        """Check that tasks with so many threads and GPUs can be run.

        Raises:
            SpratError: no machine has as many.
        """

    def pool(
        self,
        work: Work[Task, Common, Result],
        shared: Common,
        should_stop: Callable[[], bool],
        *,
        threads: int,
        gpus: float = 0.0,
    ) -> Pool[Task, Result]:
        """Return a pool that gives each task so many threads and GPUs."""


def parse_workers(given: object) -> int | str:
    """Parse the value of --workers: return the number of processes of this machine, or the address
    of a Ray cluster ("auto" or "ray://HOST:PORT").

    Raises:
        SpratError: it is neither.
    """
    text = str(given) if isinstance(given, int | str) and not isinstance(given, bool) else ""
    if re.fullmatch(r"[0-9]{1,9}", text) and 1 <= int(text) <= MOST_WORKERS:
        return int(text)
    if text == "ray":
        return "auto"
    if re.fullmatch(r"ray://[^\s/:@]+:[0-9]{1,5}|ray://\[[0-9a-fA-F:]+\]:[0-9]{1,5}", text):
        return text
    what = shown(text)[1:-1] or shown(given)
    raise SpratError(
        f"--workers is {what}, expected 1 to {MOST_WORKERS}, ray or ray://HOST:PORT. Give a "
        "number of processes of this machine, ray for the Ray cluster that runs here, or the "
        "address of another."
    )


def check_gpus(gpus: object) -> float:
    """Return the number of GPUs for each task.

    Raises:
        SpratError: it is not a number from 0 to 1.
    """
    if isinstance(gpus, int | float) and 0 <= gpus <= MOST_GPUS:
        return float(gpus)
    raise SpratError(
        f"--gpus-per-trial is {shown(gpus)}, expected 0 to 1: a trial trains on one GPU. Give "
        "1, or 0.25 for four trials on each GPU."
    )


@contextlib.contextmanager
def open_workers(given: int | str) -> Iterator[Workers]:
    """Yield the workers that `--workers` names; a Ray cluster is connected during the block.

    Raises:
        SpratError: the value is invalid, Ray is not installed, or the cluster cannot be used.
    """
    which = parse_workers(given)
    if isinstance(which, int):
        from sprat.pools.local import Processes

        yield Processes(which)
    else:
        from sprat.pools.cluster import connected

        with connected(which) as cluster:
            yield cluster


class Failed:
    """An error that the user can correct and that ended a task, as a worker returns it: so it
    reaches the command unchanged."""

    def __init__(self, error: SpratError | OSError) -> None:
        plain = isinstance(error, OSError)  # other classes may need more arguments
        self.error = error if plain else SpratError(*error.args)


def run_task(
    work: Work[Task, Any, Result], task: Task, shared: Any, should_stop: Callable[[], bool]
) -> Result | Failed | None:
    """Run a task in a worker; return None if the command is to stop."""
    try:
        return work(task, shared, should_stop)
    except Interrupted:
        return None
    except (SpratError, OSError) as error:
        return Failed(error)


def result_of(ended: Result | Failed | None) -> Result:
    """Return a task's result from what its worker returned.

    Raises:
        Stopped: the command is to stop.
        SpratError, OSError: the task raised it.
    """
    if ended is None:
        raise Stopped
    if isinstance(ended, Failed):
        raise ended.error
    return ended
