"""Tests that runs killed with SIGKILL end with the same weights as an uninterrupted run."""

import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from conftest import weights
from small_run import small_run

from sprat.checkpoint import load_resume
from sprat.evaluation.records import read_metrics

# Each run is forked from a server that has imported torch, and what its optimizers import on first
# use, but has computed nothing.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sprat.training.start", "sprat.data", "torch._dynamo"])


@contextmanager
def _started(run: Path) -> Iterator[tuple[BaseProcess, Connection]]:
    receiver, to = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=small_run, args=(run, to))
    process.start()
    to.close()
    yield process, receiver
    process.join(timeout=120)
    receiver.close()


def _finish(run: Path) -> None:
    with _started(run) as (process, receiver):
        while _steps(receiver):
            pass
    assert process.exitcode == 0


def test_one_of_two_simultaneous_runs_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with _started(run) as (one, receiver), _started(run) as (two, other_receiver):
        for each in (receiver, other_receiver):
            while _steps(each):
                pass
    assert sorted([one.exitcode, two.exitcode]) == [0, 1]
    assert len(read_metrics(run)) == 3


def _steps(receiver: Connection) -> bool:
    """Wait for a step; return False if the run has ended instead."""
    try:
        return bool(receiver.recv())
    except EOFError:
        return False


def _kill_when_writing(run: Path) -> bool:
    """Kill a run while a checkpoint is being written; return False if it ended first."""
    with _started(run) as (process, _):
        while process.is_alive():
            if run.exists() and any(run.glob(".last-*.pt")):
                process.kill()
                return True
            time.sleep(0.0005)  # leave the core to the run
    return False


def _kill_after(run: Path, steps: int) -> None:
    with _started(run) as (process, receiver):
        for _ in range(steps):
            assert _steps(receiver)
        process.kill()
    assert process.exitcode == -signal.SIGKILL


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Uninterrupted run: three epochs of twelve steps."""
    run = tmp_path_factory.mktemp("untouched") / "run"
    _finish(run)
    return run


def test_run_killed_at_random_moments_resumes_exactly(untouched: Path, tmp_path: Path) -> None:
    rng = random.Random(20_070_326)
    run = tmp_path / "run"
    _kill_after(run, rng.randint(1, 11))
    assert not (run / "last.pt").exists()
    _kill_after(run, rng.randint(13, 23))
    assert load_resume(run / "last.pt")["epoch"] == 1
    _kill_after(run, rng.randint(1, 11))
    _kill_after(run, rng.randint(13, 23))
    assert load_resume(run / "last.pt")["epoch"] == 2
    _finish(run)
    assert weights(run) == weights(untouched)
    rows, expected = read_metrics(run), read_metrics(untouched)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_run_killed_during_checkpoint_resumes_exactly(untouched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kills = 0
    for _ in range(3):
        kills += _kill_when_writing(run)
        if (run / "last.pt").exists():
            load_resume(run / "last.pt")  # fails if the file is incomplete
    assert kills, "no run was killed while it wrote a checkpoint"
    _finish(run)
    assert weights(run) == weights(untouched)
