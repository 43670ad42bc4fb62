"""Runs killed with SIGKILL at random moments end with the weights of one that was not."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sprat.checkpoint import load_model, load_resume

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
    return False


def _weights(run: Path) -> dict[str, bytes]:
    state = load_model(run).network.state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run that was left alone, and the seconds it took to train."""
    run = tmp_path_factory.mktemp("untouched") / "run"
    process = _start(run)
    began = time.monotonic()
    process.communicate(timeout=120)
    assert process.returncode == 0
    return run, time.monotonic() - began


def test_killed_at_random_moments(untouched: tuple[Path, float], tmp_path: Path) -> None:
    expected, seconds = untouched
    rng = random.Random(20_070_326)
    run = tmp_path / "run"
    for _ in range(4):
        process = _start(run)
        time.sleep(rng.uniform(0.1, 0.9) * seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    _finish(run)
    assert _weights(run) == _weights(expected)
    metrics = [(p / "metrics.jsonl").read_text().count("\n") for p in (run, expected)]
    assert metrics[0] == metrics[1]


def test_killed_while_a_checkpoint_is_written(
    untouched: tuple[Path, float], tmp_path: Path
) -> None:
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
    assert _weights(run) == _weights(untouched[0])
