"""Test that every command on the pages of the docs runs."""

import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Here
from pages import PAGES, ROOT, commands
from PIL import Image

# commands that run the suite, install packages or query a server (test_serve.py does that), and
# those that test_torchrun.py and test_ray.py replace
NOT_RUN = (
    "make",
    "torchrun",
    "ray start",
    "python3 -m venv",
    ".venv/bin/",
    "uv ",
    "pip install",
    "curl",
)
# options that make a command train briefly
SHORT = {"--epochs": "1", "--batch-size": "32", "--optim.warmup-epochs": "0"}
SHORT_SEARCH = {
    "--trials": "2", "--generation": "2", "--trial-epochs": "1", "--recipe": "short.toml",
}  # fmt: skip
FEW = "flowers"
AT_HAND = ("flowers", "flowers.csv", "shapes10", "eyes.csv", "xrays")
NEEDS_NETWORK = ("data fetch", "data verify")


def shortened(words: list[str]) -> list[str]:
    """Change a command so that it uses available pictures and trains briefly."""
    if words[:2] in (["data", "show"], ["augment", "preview"]) or words[0] == "train":
        if "--dataset" in words:
            where = words.index("--dataset") + 1
            words[where] = words[where] if words[where] in AT_HAND else FEW
        elif "--resume" not in words:
            words += ["--dataset", FEW]
    if words[0] == "export":  # barely trained, so int8 may lose accuracy
        words += ["--max-drop", "100", "--max-class-drop", "100"]
    if words[0] == "train" and "--resume" not in words:
        changes = dict(SHORT)
        if "--time" in words:  # sets the epochs itself
            words[words.index("--time") + 1] = "20s"
            del changes["--epochs"]
        words = changed(words, changes)
    if words[0] == "search" and "--resume" not in words:
        if "--time" in words:
            at = words.index("--time")
            del words[at : at + 2]
        words = changed(words, SHORT_SEARCH)
    return words


def changed(words: list[str], changes: dict[str, str]) -> list[str]:
    """Replace or add options of a command."""
    for option, value in changes.items():
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    return words


def serve_and_stop(words: list[str]) -> None:
    """Start a server on a free port of this machine, request its health, and stop it."""
    pytest.importorskip("httptools")
    for option, value in (("--port", "0"), ("--host", "127.0.0.1")):
        if option in words:
            words[words.index(option) + 1] = value
        else:
            words += [option, value]
    server = subprocess.Popen(
        [sys.executable, "-m", "sprat", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            ready = re.search(r"http://127.0.0.1:\d+/", said)
            assert ready, said
            directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with directly.open(f"{ready[0]}healthz", timeout=60) as answer:
                assert answer.status == 200
            server.terminate()
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with every file that the pages mention."""
    folder = tmp_path_factory.mktemp("workshop")
    draw = np.random.default_rng(0)

    def picture(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / path)

    for name in ("cat.jpg", "dog.png", "picture.jpg", "other.png", "new.jpg", "folder/one.png"):
        picture(folder / name)
    for name in ("daisy", "rose"):
        for number in range(40):
            picture(folder / "flowers" / name / f"{number}.png")
    for file in (folder / "flowers").rglob("*.png"):
        grey = folder / "xrays" / file.relative_to(folder / "flowers")
        grey.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("L").save(grey)
    rows = [
        f"flowers/{name}/{number}.png,{name},{number // 2}"
        for name in ("daisy", "rose")
        for number in range(40)
    ]
    (folder / "eyes.csv").write_text("\n".join(["path,label,patient", *rows]))
    (folder / "flowers.csv").write_text("\n".join(["path,species,number", *rows]))
    shutil.copytree(folder / "flowers", folder / "moved" / "flowers")
    shutil.make_archive(str(folder / "more-flowers"), "zip", folder, "flowers")
    (folder / "my-recipe.toml").write_text("epochs = 3\n[optim]\nwarmup_epochs = 1\n")
    (folder / "short.toml").write_text("epochs = 1\nbatch_size = 32\n[optim]\nwarmup_epochs = 0\n")
    (folder / "results").symlink_to(ROOT / "results")
    page = (ROOT / "docs" / "how-to" / "networks.md").read_text()
    block = re.search(r"^```python\n(# my_nets\.py\n.*?)^```", page, re.M | re.S)
    assert block is not None
    named: dict[str, Any] = {}
    exec(block[1], named)
    torch.save(named["MyNet"](2).state_dict(), folder / "net.pth")
    return folder


@pytest.fixture(scope="module")
def cache_home(new_cache: Callable[[], Path]) -> Path:
    return new_cache()


@pytest.fixture(scope="module")
def my_run(workshop: Path, cache_home: Path) -> Path:
    import sprat

    folder = workshop / "runs" / "my-run"
    changes = {"epochs": 1, "batch_size": 32, "optim.warmup_epochs": 0.0}
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(workshop)
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
        sprat.train("quick", changes, dataset=FEW, output=folder, quiet=True)
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_of_a_page_runs(
    page: Path,
    workshop: Path,
    cache_home: Path,
    my_run: Path,
    tmp_path: Path,
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "place"
    shutil.copytree(workshop, place, symlinks=True)
    for block in re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", page.read_text(), re.M | re.S):
        (place / block[0]).write_text(block[1])
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache_home))
    for scheme in ("http_proxy", "https_proxy"):  # downloads fail at once
        monkeypatch.setenv(scheme, "http://127.0.0.1:9")
    for command in commands(page):
        if command.startswith(NOT_RUN) or "--workers ray" in command:  # test_ray.py has a cluster
            continue
        name, *words = shlex.split(command)
        assert name == "sprat", f"{page.name} says to type {command!r}, which no test runs"
        if words[0] == "serve":
            serve_and_stop(words)
            continue
        if words[0] == "export":
            pytest.importorskip("onnxruntime")
        done = here(*shortened(words))
        if command.removeprefix("sprat ").startswith(NEEDS_NETWORK):
            assert done.returncode in (0, 2), command
        else:
            may_fail = words[0] == "check"  # --min-accuracy, after so short a run
            assert done.returncode in ((0, 1) if may_fail else (0,)), f"{command}: {done.stderr}"
