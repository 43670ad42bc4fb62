"""Runs killed with SIGKILL at random moments end with the weights of one that was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sprat.checkpoint import load_model, load_resume
from sprat.results import read_metrics

SCRIPT = Path(__file__).with_name("small_run.py")


def _start(run: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(run)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def _finish(run: Path) -> None:
    process = _start(run)
    process.communicate(timeout=120)
    assert process.returncode == 0


def _kill_when_writing(process: subprocess.Popen[str], run: Path) -> bool:
    """Kills at the moment that a checkpoint's new file stands beside the old one."""
    while process.poll() is None:
        if run.exists() and any(run.glob(".last-*.pt")):
            process.kill()
            process.wait()
            return True
        time.sleep(0.0005)  # leave the core to the run
    return False


def _weights(run: Path) -> dict[str, bytes]:
    state = load_model(run).network.state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def _kill_after(process: subprocess.Popen[str], steps: int) -> None:
    assert process.stdout is not None
    for _ in range(steps):
        assert process.stdout.readline() == "step\n"
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was left alone: three epochs of twelve steps."""
    run = tmp_path_factory.mktemp("untouched") / "run"
    _finish(run)
    return run


def test_killed_at_random_moments(untouched: Path, tmp_path: Path) -> None:
    rng = random.Random(20_070_326)
    run = tmp_path / "run"
    _kill_after(_start(run), rng.randint(1, 11))
    assert not (run / "last.pt").exists()
    _kill_after(_start(run), rng.randint(13, 23))
    assert load_resume(run / "last.pt")["epoch"] == 1
    _kill_after(_start(run), rng.randint(1, 11))
    _kill_after(_start(run), rng.randint(13, 23))
    assert load_resume(run / "last.pt")["epoch"] == 2
    _finish(run)
    assert _weights(run) == _weights(untouched)
    rows, expected = read_metrics(run), read_metrics(untouched)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]


def test_killed_while_a_checkpoint_is_written(untouched: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    kills = 0
    for _ in range(3):
        process = _start(run)
        kills += _kill_when_writing(process, run)
        assert process.stdout is not None
        process.stdout.close()
        if (run / "last.pt").exists():
            load_resume(run / "last.pt")  # whole, never half
    assert kills, "no checkpoint was caught in the writing"
    _finish(run)
    assert _weights(run) == _weights(untouched)
