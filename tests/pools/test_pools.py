"""Tests of pools of processes: tasks that hang, workers that die, and signals."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from obeying import Folder, limit, obey

from sprat import SpratError
from sprat.pools import Stopped, run_all
from sprat.pools.local import Here, ProcessPool

Pool = ProcessPool[str, Folder, str]


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Pool]]:
    """Function that makes pools, of which nothing may be left after closing them."""
    pools: list[Pool] = []

    def start(workers: int = 1, should_stop: Callable[[], bool] = lambda: False) -> Pool:
        pools.append(ProcessPool(obey, Folder(tmp_path), should_stop, workers, limit))
        return pools[-1]

    yield start
    for pool in pools:
        pool.close()
        assert not pool.busy + pool.idle


def test_tasks_are_taken_when_a_worker_is_free() -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(5):
            taken.append(task)
            yield task

    class Last:
        """Pool that runs two tasks at once and ends the newest first."""

        workers = 2
        running: list[int] = []  # noqa: RUF012

        def start(self, task: int) -> None:
            self.running.append(task)

        def next(self) -> tuple[int, int]:
            return self.running.pop(), len(taken)

        def close(self) -> None:
            pass

    assert list(run_all(Last(), tasks())) == [(1, 2), (2, 3), (3, 4), (4, 5), (0, 5)]
    assert list(run_all(Last(), [])) == []


def test_hanging_task_is_given_up_and_others_continue(
    started: Callable[..., Pool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprat.pools.OVERTIME", 1.0)
    ended = list(run_all(started(2), ["hang", "one", "die once", "be signalled", "two"]))
    assert sorted(ended) == [
        "be signalled: done", "die once: done", "hang: given up", "one: done", "two: done",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("die", r"The workers of 4 tries of one training died.*: killed by signal 9\)"),
        ("exit", r"The workers of 4 tries of one training died.*: exit code 3\)"),
        ("refuse", "^The value is wrong. Give another.$"),
    ],
)
def test_failing_task_is_reported(started: Callable[..., Pool], task: str, said: str) -> None:
    pool = started()
    pool.start(task)
    with pytest.raises(SpratError, match=said):
        pool.next()


def test_unexpected_error_includes_the_workers_traceback(started: Callable[..., Pool]) -> None:
    pool = started()
    pool.start("divide")
    with pytest.raises(ZeroDivisionError) as error:
        pool.next()
    assert "in obey" in "".join(error.value.__notes__)


def test_stopping_ends_tasks_after_their_step(
    started: Callable[..., Pool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprat.pools.OVERTIME", 1_000.0)
    monkeypatch.setattr("sprat.pools.local.STOP_PATIENCE", 1.0)
    begun = [tmp_path / "stop", tmp_path / "hang"]
    pool = started(2, lambda: all(path.exists() for path in begun))
    pool.start("stop")
    pool.start("hang")
    with pytest.raises(Stopped):
        pool.next()
    assert begun[0].read_text() == "saved"
    assert not pool.busy


@pytest.mark.parametrize(
    ("named", "expected"), [(None, ["0", "0", "1"]), ("5,GPU-7", ["5", "5", "GPU-7"])]
)
def test_processes_are_spread_over_the_gpus(
    started: Callable[..., Pool],
    monkeypatch: pytest.MonkeyPatch,
    named: str | None,
    expected: list[str],
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert sorted(run_all(started(3), ["name the GPU"] * 3)) == expected


def test_a_worker_is_not_interrupted_while_it_starts(started: Callable[..., Pool]) -> None:
    pool = started()
    pool.start("one")
    process = pool.busy[0].process
    assert process.pid
    for _ in range(10):
        os.kill(process.pid, signal.SIGINT)
        time.sleep(0.01)
    assert pool.next() == "one: done"
    assert pool.idle[0].process is process


def test_pool_of_one_runs_in_this_process(tmp_path: Path) -> None:
    pool = Here(obey, Folder(tmp_path), lambda: False)
    assert list(run_all(pool, ["one", "two"])) == ["one: done", "two: done"]
    pool = Here(obey, Folder(tmp_path), lambda: True)
    pool.start("one")
    with pytest.raises(Stopped):
        pool.next()
