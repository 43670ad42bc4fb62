"""Pools of workers, which train trials, seeds and folds: this process, several of this machine, or
the machines of a Ray cluster.

    with open_workers("ray") as workers:
        pool = workers.pool(train_rung, source, should_stop, threads=2, gpus=0)
        pool.start(task)
        rung = pool.next()

A pool runs tasks and gives what they come to as they end. Whatever runs them, a task comes to the
same, so a search is the same in any pool whose tasks have as many threads.
"""

import contextlib
import dataclasses
import math
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

from sprat.errors import Interrupted, SpratError, shown
from sprat.text import visible

MOST_WORKERS = 256
MOST_GPUS = 1.0  # a task trains on one GPU, or on a share of it
LOOK_EVERY = 0.2  # seconds between two looks whether to stop
MOST_TRIES = 4  # of a task whose workers die
STOP_PATIENCE = 60.0  # seconds for the steps under way to end
OVERTIME = 10.0  # seconds that a task gets to give itself up after its time, before it is ended


class Stopped(Exception):
    """A task was ended before its end, since the command is to stop."""


class Died(SpratError, ChildProcessError):
    """Workers died, so that the command ends and can be resumed."""


class Shared(Protocol):
    """Values that all tasks have in common, sent to each worker once."""

    def to_send(self) -> Self:
        """Return the same without what another process of this machine can load by itself."""


Task = TypeVar("Task")
Result = TypeVar("Result")
Common = TypeVar("Common", bound=Shared)
Taken = TypeVar("Taken", contravariant=True)
Given = TypeVar("Given", covariant=True)
Work = Callable[[Task, Common, Callable[[], bool]], Result]
"""A function of a module, which runs a task. It raises Interrupted once the function that it is
given returns true."""
Limit = Callable[[Task], tuple[float, Result]]
"""A function that returns the seconds after which a task gives itself up, 0 for never, and what it
comes to then. If a task does not, its worker is ended."""


class Pool(Protocol[Taken, Given]):
    """Runs tasks."""

    @property
    def workers(self) -> int:
        """Number of tasks that it runs at once."""

    def start(self, task: Taken) -> None:
        """Start a task; at most `workers` are under way."""

    def next(self) -> Given:
        """Wait for a task that ends, and return what it came to.

        Raises:
            Stopped: the command is to stop; the tasks under way are ended.
            SpratError: as the work, or workers died.
        """

    def close(self) -> None:
        """End the tasks under way, and the workers."""


class Workers(Protocol):
    """Workers of one kind, which tasks can be run by.

    several: whether there is more than this process. apart: whether they may be on other machines.
    """

    several: bool
    apart: bool

    def threads(self, asked: int) -> int:
        """Return the CPU threads of each task; asked 0: its share of the cores."""

    def gpus(self, asked: float, device: str) -> float:
        """Return the GPUs, or the share of one, that each task on a device gets.

        Args:
            asked: 0: one for each task on GPUs.

        Raises:
            SpratError: GPUs are asked for where tasks have none of their own.
        """

    def check(self, threads: int, gpus: float) -> None:
        """Check that tasks that need so much can be run.

        Raises:
            SpratError: no machine has as much.
        """

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
        """Return a pool whose tasks have so many threads and GPUs each, and end by their limit."""


def run_all(pool: Pool[Task, Result], tasks: Iterable[Task]) -> Iterator[Result]:
    """Keep a pool busy; yield the result of each task as it ends.

    Args:
        tasks: each is taken when the pool has room for it.

    Raises:
        Stopped, SpratError: as `Pool.next`.
    """
    waiting, running = iter(tasks), 0
    while True:
        while running < pool.workers and (task := next(waiting, None)) is not None:
            pool.start(task)
            running += 1
        if not running:
            return
        running -= 1
        yield pool.next()


def parse_workers(given: object) -> int | str:
    """Return the number of processes of this machine, or the address of a Ray cluster: "auto" or
    "ray://HOST:PORT".

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
    """Return the GPUs that are asked for each task.

    Raises:
        SpratError: it is no share of one.
    """
    if isinstance(gpus, int | float) and 0 <= gpus <= MOST_GPUS:
        return float(gpus)
    raise SpratError(
        f"--gpus-per-trial is {shown(gpus)}, expected 0 to 1: each trial trains on one GPU. Give "
        "1, or 0.25 for four trials on each GPU."
    )


@contextlib.contextmanager
def open_workers(given: int | str) -> Iterator[Workers]:
    """Yield the workers that `--workers` names; those of Ray are connected to during the block.

    Raises:
        SpratError: it names none, Ray is not installed, or its cluster cannot be used.
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
    """A task's end by an error, as a worker returns it: the error reaches the command as it is,
    whatever carries it."""

    def __init__(self, error: Exception) -> None:
        # those of words alone may take more to make than their words
        words = isinstance(error, SpratError) and not isinstance(error, OSError)
        self.error = SpratError(*error.args) if words else error


@dataclass(frozen=True)
class Running(Generic[Task]):
    """A task under way in a worker.

    late: moment of `time.monotonic` after which its worker is ended, and it comes to `instead`.
    tries: how often it was begun.
    """

    task: Task
    late: float = math.inf
    instead: Any = None
    tries: int = 1

    @classmethod
    def of(cls, task: Task, limit: Limit[Task, Any] | None) -> "Running[Task]":
        """Return a task that is about to begin."""
        if limit is None:
            return cls(task)
        seconds, instead = limit(task)
        late = time.monotonic() + seconds + OVERTIME if seconds else math.inf
        return cls(task, late, instead)

    def again(self, reason: str) -> "Running[Task]":
        """Return the task for another try, since its worker died.

        Args:
            reason: of that, in words without a full stop.

        Raises:
            Died: too many have died.
        """
        if self.tries < MOST_TRIES:
            return dataclasses.replace(self, tries=self.tries + 1)
        raise Died(
            f"The workers of {MOST_TRIES} tries of one training died, maybe for lack of memory "
            f"(the last: {visible(reason)}). Let fewer run at once, by fewer --workers or more "
            "CPUs for each."
        )


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
    except Exception as error:  # not a user's to mend: with where it comes from
        error.add_note(traceback.format_exc())
        return Failed(error)


def result_of(ended: Result | Failed | None) -> Result:
    """Return what a task came to, by what its worker returned.

    Raises:
        Stopped: the command is to stop.
        Exception: that of the task.
    """
    if ended is None:
        raise Stopped
    if isinstance(ended, Failed):
        raise ended.error
    return ended
