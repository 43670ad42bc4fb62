"""Workers of a Ray cluster: each task is a Ray task, which Ray starts where CPUs and GPUs are free.

    ray start --head                      # on the first machine
    ray start --address FIRST:6379        # on the others

Values shared by all tasks are sent to the cluster once; Ray keeps one copy on each machine, whose
workers read its arrays in place. A task whose worker or machine dies is restarted here rather than
by Ray, which would do so endlessly if memory is short.
"""

import contextlib
import importlib.util
import io
import os
import pickle
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Generic

import numpy as np
import torch

from sprat import __version__
from sprat.errors import SpratError
from sprat.pools import (
    LOOK_EVERY,
    STOP_PATIENCE,
    Common,
    Failed,
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
from sprat.text import visible

PATIENCE, HEAD_PATIENCE = 5.0, 30.0  # seconds for the first connection, and for checks of the head
CHECK_EVERY = 10.0  # seconds between two checks whether a task can still be run anywhere
# no usage statistics are sent; a server that is not Ray's is given up soon
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S": "5",
    "GRPC_VERBOSITY": "ERROR",
}
START = "ray start --head --disable-usage-stats"


@contextlib.contextmanager
def connected(address: str) -> Iterator["Cluster"]:
    """Connect to a Ray cluster for the block; yield its workers. A program that was connected
    before stays connected.

    Args:
        address: "auto" for $RAY_ADDRESS or the cluster that runs on this machine, or
            "ray://HOST:PORT".

    Raises:
        SpratError: Ray is not installed, or the cluster does not answer or has another version.
    """
    if importlib.util.find_spec("ray") is None:
        raise SpratError(
            "--workers ray needs Ray, which is not installed here. Install it with pip install "
            "'sprat[ray]'."
        )
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with _ours_kept():
        import ray
    if ray.is_initialized():
        yield Cluster(ray)
        return
    address = os.environ.get("RAY_ADDRESS") or address if address == "auto" else address
    _check_answers(address)
    try:
        with _ours_kept():
            ray.init(address, log_to_driver=False, logging_level="CRITICAL")
    except Exception as error:  # Ray raises anything
        raise _unreachable(address, error) from error
    ray._private.worker._worker_logs_enabled = False  # else it prints the state of machines
    head = None if address.startswith("ray://") else ray.get_runtime_context().gcs_address
    cluster = Cluster(ray, head)
    try:
        yield cluster
    finally:
        with _ours_kept():
            ray.shutdown()


@contextlib.contextmanager
def _ours_kept() -> Iterator[None]:
    """Keep our handling of SIGTERM, which Ray replaces, and suppress Ray's warnings."""
    ours = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, ours)


def _check_answers(address: str) -> None:
    """Check that something listens at an address, since Ray would wait for a minute."""
    try:
        _connect(address, PATIENCE)
    except (OSError, OverflowError) as error:
        raise _unreachable(address, error) from error


def _connect(address: str, seconds: float) -> None:
    """Connect to an address and leave; do nothing if it is not one of HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()


def _unreachable(address: str, error: Exception) -> SpratError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if "ersion" in str(error):
        return SpratError(
            f"The Ray cluster cannot be used from here: {visible(' '.join(lines))} Install the "
            "same versions of Ray and Python here and there."
        )
    if address == "auto":
        return SpratError(
            f"No Ray cluster runs on this machine. Start one: {START}, or give --workers 2 for two "
            "processes of this machine."
        )
    reason = visible(lines[0].rstrip(".")) if lines else type(error).__name__
    return SpratError(
        f"No Ray cluster answers at {visible(address)} ({reason}). Start one there: {START}, or "
        "give its address as --workers ray://HOST:10001."
    )


class Lost(SpratError, ConnectionError):
    """The cluster no longer answers, so the command ends and can be resumed."""


class Cluster:
    """The machines of a connected Ray cluster.

    Args:
        ray: the module `ray`.
        head: address of the head; None if Ray's client notices by itself that the head has died.
    """

    several = apart = True
    lost = False
    """Whether the cluster no longer answers."""

    def __init__(self, ray: Any, head: str | None = None) -> None:
        self.ray, self.head = ray, head

    @contextlib.contextmanager
    def answered(self) -> Iterator[None]:
        """Ask the cluster something during the block.

        Raises:
            Lost: it does not answer.
        """
        try:
            yield
        except (OSError, RuntimeError) as error:
            self.lost = True
            raise Lost(
                f"The Ray cluster was lost ({visible(_reason(error))}). Start it again."
            ) from error

    def threads(self, asked: int) -> int:
        return asked or 1

    def gpus(self, asked: float, device: str) -> float:
        if device == "cuda":
            return asked or 1.0
        if asked:
            raise SpratError(
                f"--gpus-per-trial is {asked:g}, but networks would be trained on {device}, as "
                "this machine has no GPU. Start sprat on a machine of the cluster that has one, or "
                "leave it out."
            )
        return 0.0

    def check(self, threads: int, gpus: float) -> None:
        if self.places(threads, gpus):
            return
        needed = _in_words(threads, gpus)
        have = [
            f"{node['NodeManagerHostname']} has "
            f"{_in_words(*(node['Resources'].get(each, 0) for each in ('CPU', 'GPU')))}"
            for node in self._nodes()
        ]
        raise SpratError(
            f"Each training needs {needed}, but no machine of the Ray cluster has as many "
            f"({'; '.join(map(visible, have))}). Give fewer, or add a machine."
        )

    def places(self, threads: int, gpus: float) -> int:
        """Return how many tasks with so many threads and GPUs the cluster can run at once."""
        return sum(_places(node["Resources"], threads, gpus) for node in self._nodes())

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
        return RayPool(self, work, shared, should_stop, threads=threads, gpus=gpus, limit=limit)

    def _nodes(self) -> list[dict[str, Any]]:
        with self.answered():
            if self.head:  # Ray exits silently if the head does not answer for a minute
                _connect(self.head, HEAD_PATIENCE)
            return [node for node in self.ray.nodes() if node["Alive"]]


def _reason(error: Exception) -> str:
    """Return the first line of an error without a full stop, or its name if it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")


def _places(has: dict[str, float], threads: int, gpus: float) -> int:
    places = int(has.get("CPU", 0) // threads)
    return min(places, int(has.get("GPU", 0) / gpus + 1e-6)) if gpus else places


def _in_words(cpus: float, gpus: float) -> str:
    words = f"{cpus:g} CPU{'' if cpus == 1 else 's'}"
    return f"{words} and {gpus:g} GPU{'' if gpus == 1 else 's'}" if gpus else words


class RayPool(Generic[Task, Common, Result]):
    """A pool that runs tasks on a Ray cluster.

    Args:
        work: function at the top level of a module that runs a task.
        shared: values shared by all tasks.
        should_stop: called while the pool waits; if it returns true, running tasks end after their
            step.
        threads: CPUs of each task.
        gpus: GPUs of each task, or the fraction of one.
        limit: time limit of each task; a worker whose task exceeds it is killed.
    """

    def __init__(
        self,
        cluster: Cluster,
        work: Work[Task, Common, Result],
        shared: Common,
        should_stop: Callable[[], bool],
        *,
        threads: int,
        gpus: float,
        limit: Limit[Task, Result] | None,
    ) -> None:
        self.cluster, self.ray, self.should_stop = cluster, cluster.ray, should_stop
        self.threads, self.gpus, self.limit = threads, gpus, limit
        self.shared = self.ray.put(_pack((work, shared)))
        self.remote = self.ray.remote(_run).options(num_cpus=threads, num_gpus=gpus, max_retries=0)
        self.running: dict[Any, Running[Task]] = {}

    @property
    def workers(self) -> int:
        return max(1, self.cluster.places(self.threads, self.gpus))

    def start(self, task: Task) -> None:
        self._start(Running.of(task, self.limit))

    def _start(self, running: Running[Task]) -> None:
        # in a list, so that a worker fetches the shared values once rather than for every task
        with self.cluster.answered():
            reference = self.remote.remote([self.shared], running.task, __version__)
        self.running[reference] = running

    def next(self) -> Result:
        errors = self.ray.exceptions
        look = time.monotonic() + CHECK_EVERY
        while True:
            if self.should_stop():
                self._cancel()
                raise Stopped
            with self.cluster.answered():
                done, _ = self.ray.wait(list(self.running), timeout=LOOK_EVERY)
            if not done and time.monotonic() > look:
                self.cluster.check(self.threads, self.gpus)
                look = time.monotonic() + CHECK_EVERY
            for reference in done:
                running = self.running.pop(reference)
                try:
                    with self.cluster.answered():
                        ended = self.ray.get(reference)
                    return result_of(ended)
                except errors.TaskCancelledError as error:
                    raise Stopped from error
                except errors.RayTaskError as error:
                    raise _cause(error) from error
                except errors.RayError as error:  # its worker or machine died
                    self._start(running.again(_reason(error)))
            for reference, running in list(self.running.items()):
                if time.monotonic() > running.late:
                    del self.running[reference]
                    with contextlib.suppress(Exception):  # it has ended just now
                        self.ray.cancel(reference, force=True)
                    return running.instead

    def close(self) -> None:
        self._cancel()

    def _cancel(self) -> None:
        """End the running tasks after their step, or at once if that takes long."""
        left = [] if self.cluster.lost else list(self.running)
        self.running.clear()
        for force, patience in ((False, STOP_PATIENCE), (True, PATIENCE)):
            for reference in left:
                with contextlib.suppress(Exception):  # the task or the cluster has ended
                    self.ray.cancel(reference, force=force)
            with contextlib.suppress(Exception):
                _, left = self.ray.wait(left, num_returns=len(left), timeout=patience)
            if not left:
                return


def _cause(error: Any) -> Exception:
    """Return the exception that a task raised and that is not a SpratError; if it could not even
    start, a SpratError that says why."""
    cause: Exception | None = error.cause
    if isinstance(cause, ImportError) or cause is None or "failed to import" in str(error):
        reason = str(cause or error).strip().splitlines()[-1]
        return SpratError(
            f"A machine of the Ray cluster cannot run sprat ({visible(reason)}). Install the same "
            "sprat on each."
        )
    return cause


# in a worker


def _run(boxed: list[Any], task: Any, version: str) -> Any:
    """Run a task; return what `result_of` takes.

    Args:
        boxed: list with the reference to the packed shared values.
        version: version of sprat that runs the command.
    """
    if __version__ != version:
        return Failed(
            SpratError(
                f"{socket.gethostname()} has sprat {__version__}, but the command runs in sprat "
                f"{version}. Install the same on each machine of the cluster."
            )
        )
    with _stoppable() as should_stop:
        work, shared = _fetch(boxed[0])
        return run_task(work, task, shared, should_stop)


_fetched: dict[str, Any] = {}


def _fetch(reference: Any) -> Any:
    """Return the shared values, which a worker unpacks once."""
    key = reference.hex()
    if key not in _fetched:
        import ray

        _fetched.clear()
        _fetched[key] = _unpack(ray.get(reference))
    return _fetched[key]


@contextlib.contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Yield the function that returns whether the task was cancelled: Ray interrupts it, and a run
    then saves itself after its step."""
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda number, frame: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


# packing of the shared values: arrays separately, so that Ray keeps them once on each machine


def _pack(value: Any) -> tuple[bytes, list[Any]]:
    from ray import cloudpickle

    class Packer(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, each: Any) -> Any:
            if type(each) is torch.Tensor and each.device.type == "cpu":
                return _tensor, (each.detach().contiguous().numpy(),)
            return super().reducer_override(each)

    content, buffers = io.BytesIO(), list[pickle.PickleBuffer]()
    Packer(content, protocol=5, buffer_callback=buffers.append).dump(value)
    arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
    return content.getvalue(), arrays


def _unpack(packed: tuple[bytes, list[Any]]) -> Any:
    content, arrays = packed
    return pickle.loads(content, buffers=arrays)


def _tensor(array: Any) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the array is read-only, and nothing writes images
        return torch.from_numpy(array)
