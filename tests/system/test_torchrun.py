"""Tests of sprat's command line under torchrun: a run, a killed process, wrong settings."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import weights

from sprat.evaluation.records import read_results

SETTINGS = {
    "dataset": "shapes10", "model": "SpratNet", "network.widths": 8, "network.depth": 1,
    "train-images": 400, "epochs": 2, "batch-size": 32, "precision": "fp32", "device": "cpu",
}  # fmt: skip


def _train(run: Path, **changed: object) -> list[object]:
    settings = SETTINGS | {name.replace("_", "-"): value for name, value in changed.items()}
    words = [word for name, value in settings.items() if value for word in (f"--{name}", value)]
    return ["train", *words, "--output", run]


def _torchrun(*words: object, restarts: int = 0, processes: int = 2) -> subprocess.Popen[str]:
    start = (sys.executable, "-m", "torch.distributed.run", "--standalone")
    options = ("--nproc-per-node", processes, "--max-restarts", restarts, "-m", "sprat")
    return subprocess.Popen(
        list(map(str, (*start, *options, *words))),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _pids(run: Path) -> list[int]:
    """Return the ids of sprat's processes that train into a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().decode().split("\0")
            except OSError:
                continue
            if str(run) in words and "torch.distributed.run" not in words:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    process = _torchrun(*_train(run))
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert out.count("contains model.safetensors") == 1
    return run


def test_two_processes_train_one_run(whole: Path) -> None:
    results = read_results(whole / "results.json")
    assert results["machine"]["processes"] == 2
    assert (whole / "curves.png").exists()
    assert not (whole / ".lock").exists()


def test_restart_after_a_killed_process_resumes_exactly(whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = _torchrun(*_train(run), restarts=1)
    while not (run / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(max(_pids(run)), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert weights(run) == weights(whole)


def test_killed_process_without_restarts_is_reported_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = _torchrun(*_train(run, epochs=1000))
    while not (run / "last.pt").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.kill(max(_pids(run)), signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count("Another process of this run has ended") == 1
    assert "site-packages/sprat" not in err  # only torchrun prints a traceback
    assert f"-m sprat train --resume {run}" in err
    assert (run / "last.pt").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"batch_size": 33}, "batch_size is 33, which 2 processes cannot divide evenly"),
        ({"time": "1m", "epochs": None}, "Give --epochs instead"),
        ({"seeds": 2}, "torchrun trains a single run"),
        ({"recipe": "nothing"}, "Unknown recipe 'nothing'"),
    ],
)
def test_invalid_settings_are_reported_once(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    process = _torchrun(*_train(tmp_path / "run", **changed))
    _, err = process.communicate(timeout=300)
    assert process.returncode != 0
    assert err.count(message) == 1, err
    assert "sprat/" not in err.split("sprat:", 1)[0]  # no traceback from sprat
    assert not (tmp_path / "run").exists()
