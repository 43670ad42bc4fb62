"""Tests of the real command `sprat search`: on own pictures, end to end, and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import weights
from PIL import Image, ImageDraw

KINDS = ("circle", "square", "triangle")
SHORT = """
epochs = 4
batch_size = 32
label_smoothing = 0.05
[optim]
name = "muon"
warmup_epochs = 1
"""


def draw(folder: Path, count: int, side: int) -> None:
    """Draw shapes on noise, with a folder for each kind."""
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        picture = Image.fromarray(rng.integers(0, 120, (side, side, 3), dtype=np.uint8))
        x, y = (int(value) for value in rng.integers(side // 3, 2 * side // 3, 2))
        r = int(rng.integers(side // 8, side // 4))
        colour = tuple(int(value) for value in rng.integers(120, 256, 3))
        pen = ImageDraw.Draw(picture)
        if kind == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=colour)
        elif kind == "square":
            pen.rectangle((x - r, y - r, x + r, y + r), fill=colour)
        else:
            pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=colour)
        path = folder / kind / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.toml").write_text(SHORT)
    return tmp_path


def sprat(*words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "sprat", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def ended(*words: str) -> str:
    """Run a command to its end; return what it printed."""
    done = sprat(*words)
    out, err = done.communicate()
    assert done.returncode == 0, err
    return out


def test_own_pictures_end_to_end(place: Path) -> None:
    draw(place / "shapes", 300, 64)
    limits = ("--max-parameters", "20k", "--max-macs", "3M", "--max-ram", "128K")
    printed = ended(
        "search", "--dataset", "shapes", "--pictures.side", "64", *limits, "--time", "120s",
        "--final", "--recipe", "short.toml", "--output", "run",
    )  # fmt: skip
    assert "networks were trained" in printed
    results = json.loads((place / "run" / "results.json").read_text())
    assert results["final"]
    assert results["side"] in (64, 48, 32)
    ended("check", "run", *limits)  # fails if a limit is exceeded
    inner = place / "run" / "search"
    outcome = json.loads((inner / "outcome.json").read_text())
    assert outcome["seconds"] + results["seconds"] <= 1.1 * 120, "--time covers both"
    trials = json.loads((inner / "trials.json").read_text())
    assert outcome["trained"] == sum(bool(trial["rungs"]) for trial in trials) > 0
    again = ("--recipe", "run/search/winner.toml", "--dataset", "shapes", "--epochs", "1")
    ended("train", *again, "--output", "again")
    trained = json.loads((place / "again" / "results.json").read_text())
    assert trained["network"] == results["network"]


def settled(folder: Path) -> list[dict[str, Any]]:
    """Return the trials of a search without their times."""
    trials = json.loads((folder / "search" / "trials.json").read_text())
    clocks = ("seconds", "elapsed")
    return [{key: value for key, value in each.items() if key not in clocks} for each in trials]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_killed_search_resumes_to_the_same_result(place: Path, number: int) -> None:
    draw(place / "shapes", 240, 32)
    words = [
        "search", "--dataset", "shapes", "--pictures.side", "16", "--max-parameters", "10k",
        "--trials", "4", "--generation", "2", "--trial-epochs", "3", "--cpus-per-trial", "1",
        "--recipe", "short.toml",
    ]  # fmt: skip
    ended(*words, "--output", "whole")
    killed = sprat(*words, "--workers", "2", "--output", "killed")
    work = place / "killed" / "search" / "work"
    while killed.poll() is None and not list(work.glob("*-*.json")):
        time.sleep(0.01)
    # a job scheduler sends SIGTERM to all processes
    (os.killpg if number == signal.SIGTERM else os.kill)(killed.pid, number)
    _, said = killed.communicate()
    assert killed.returncode == (-9 if number == signal.SIGKILL else 128 + number)
    if number != signal.SIGKILL:
        assert "sprat search --resume killed" in said
    ended("search", "--resume", "killed")
    assert settled(place / "killed") == settled(place / "whole")
    assert weights(place / "killed") == weights(place / "whole")
