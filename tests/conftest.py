"""Fixtures that tests share: small datasets, a small finished run, CIFAR-10 if available."""

import contextlib
import dataclasses
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import sprat  # noqa: F401 - sets how OpenMP's threads wait, before torch loads it

WORKER = os.environ.get("PYTEST_XDIST_WORKER")
if WORKER and hasattr(os, "sched_setaffinity"):
    # one core for each worker and its child processes, set before OpenMP counts the cores: threads
    # that wait in a busy loop while sharing a core are slower than a single thread
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(WORKER.removeprefix("gw")) % len(cores)]})

import pytest
import torch

from sprat.checkpoint import load_model
from sprat.cli import main
from sprat.data import Dataset, cifar10, load_dataset
from sprat.data import shapes10 as shapes10_module
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.files import cache_dir
from sprat.kernels import NoKernels
from sprat.kernels.cpu import build
from sprat.models import NetworkConfig
from sprat.settings.config import AugmentConfig, Config, EMAConfig, OptimConfig
from sprat.threads import usable_cores

if TYPE_CHECKING:
    from playwright.sync_api import Browser

KERNELS = cache_dir() / "kernels"

SMALL = Config(
    # has the blocks that the kernels support, and trains in a quarter of the default's time
    network=NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,)),
    dataset="shapes10",
    device="cpu",
    epochs=3,
    batch_size=16,
    dropout=0.2,
    threads=1,
    precision="fp32",
    label_smoothing=0.05,
    optim=OptimConfig(lr=0.1, warmup_epochs=1),
    augment=AugmentConfig(crop=2),
    ema=EMAConfig(decay=0.9),
)


def shrink(dataset: Dataset, train: int, test: int) -> Dataset:
    """Keep the first images of both sets; shapes10 has its classes in random order."""
    return dataclasses.replace(
        dataset,
        train=dataset.train.subset(torch.arange(train)),
        test=dataset.test.subset(torch.arange(test)),
    )


def weights(run: Path) -> dict[str, bytes]:
    """Return a run's weights by name, as bytes for bit-for-bit comparison."""
    state = load_model(run).network.state_dict()
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


class StopAfter:
    """Callable that asks to stop after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


@pytest.fixture(scope="session")
def shapes10() -> Dataset:
    return load_dataset("shapes10")


@pytest.fixture(scope="session")
def small(shapes10: Dataset) -> Dataset:
    """200 training and 100 test images of shapes10."""
    return shrink(shapes10, 200, 100)


@pytest.fixture(scope="session")
def tiny(small: Dataset) -> Dataset:
    """Images of `small` at half the side, so that a step takes a quarter of the time."""

    def halved(images: ImageSet) -> ImageSet:
        return dataclasses.replace(images, images=images.images[:][:, :, ::2, ::2].contiguous())

    return dataclasses.replace(small, train=halved(small.train), test=halved(small.test))


@pytest.fixture(scope="session")
def new_cache(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return a function that makes a folder for XDG_CACHE_HOME with only the compiled kernels."""

    def make() -> Path:
        home = tmp_path_factory.mktemp("cache")
        if KERNELS.exists():
            unfinished = shutil.ignore_patterns(".*")
            shutil.copytree(KERNELS, home / "sprat" / "kernels", ignore=unfinished)
        return home

    return make


@pytest.fixture(scope="session")
def no_network(new_cache: Callable[[], Path]) -> dict[str, str]:
    """Environment variables with which CIFAR-10 can be neither found nor downloaded."""
    return {
        "SPRAT_DATA": "",
        "XDG_CACHE_HOME": str(new_cache()),
        "https_proxy": "http://127.0.0.1:9",
    }


@pytest.fixture(scope="session")
def cifar10_place() -> Path:
    """Return the path of the real CIFAR-10, or skip the test if SPRAT_DATA does not have it."""
    given = os.environ.get("SPRAT_DATA")
    place = cifar10.find(Path(given)) if given else None
    if place is None:
        pytest.skip("needs CIFAR-10: set SPRAT_DATA to the folder that holds it")
    return place


@pytest.fixture(scope="session")
def small_run(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a short finished run that kept its best weights on val."""
    from sprat.training.start import train

    run = tmp_path_factory.mktemp("runs") / "small"
    train(SMALL, small, run, recipe="small")
    return run


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Real browser without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium")
    if path is None:
        pytest.skip("needs a browser: install Debian's package chromium")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=as_root)
        yield browser
        browser.close()


class Here(Protocol):
    def __call__(self, *words: object) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Run the command line in this process, because starting another takes most of the time."""

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        monkeypatch.setenv("COLUMNS", "200")
        monkeypatch.setattr(sys, "argv", ["sprat", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(words, ended.value.code, *capsys.readouterr())

    return run


@dataclasses.dataclass
class Hostile:
    """Counts of the bad inputs tried in this session and of those that sprat handled wrongly."""

    tried: int = 0
    read_wrongly: int = 0
    left_behind: int = 0
    partial: bool = False  # not all tests were selected

    def offer(self, folder: Path, read: Callable[[], object], whole: object = None) -> str:
        """Return sprat's error about the bad input in `folder`, or "" if it was correctly read as
        `whole`. Fail if it was read otherwise or a file in `folder` changed."""
        self.tried += 1
        before, said = _contents(folder), ""
        try:
            wrongly = read() != whole
        except SpratError as error:
            said, wrongly = str(error), False
        left = _contents(folder) != before
        self.read_wrongly += wrongly
        self.left_behind += left
        assert not wrongly, "a bad input was read"
        assert not left, "a bad input left something behind"
        return said

    def add(self, **counted: int) -> None:
        for name, number in counted.items():
            setattr(self, name, getattr(self, name) + number)

    def as_documented(self) -> bool:
        """Return whether sprat handled all of them correctly and the docs give their number."""
        if self.read_wrongly or self.left_behind:
            return False
        return f"{self.tried:,} hostile inputs" in " ".join(HOSTILE_PAGE.read_text().split())

    def __str__(self) -> str:
        return (
            f"hostile inputs: {self.tried:,} tried, {self.read_wrongly} read wrongly, "
            f"{self.left_behind} left something behind"
        )


def _contents(folder: Path) -> dict[Path, tuple[int, int]]:
    stats = {path: path.lstat() for path in folder.rglob("*")}
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()}


HOSTILE = pytest.StashKey[Hostile]()
HOSTILE_PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "datasets.md"


@pytest.fixture
def hostile(request: pytest.FixtureRequest) -> Hostile:
    return request.config.stash[HOSTILE]


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return the number of cores + 1: workers wait a sixth of the time for servers or browsers."""
    return usable_cores() + 1


def pytest_configure(config: pytest.Config) -> None:
    config.stash[HOSTILE] = Hostile(partial=config.args != config.getini("testpaths"))
    shapes10_module.load = functools.cache(shapes10_module.load)  # so that it is drawn only once
    if WORKER:
        torch.set_num_threads(1)
    else:
        _build_kernels()


def _build_kernels() -> None:
    """Build the kernels in parallel before any worker needs them."""
    libraries = ("trunk", build.store(False)), ("trunk", build.store(True)), ("inference",)
    with contextlib.suppress(NoKernels), ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda library: build.load(*library), libraries))


def pytest_deselected(items: list[pytest.Item]) -> None:
    items[0].config.stash[HOSTILE].partial = True


def pytest_testnodedown(node: Any) -> None:
    """Add the counts of a worker that has ended to the total."""
    node.config.stash[HOSTILE].add(**getattr(node, "workeroutput", {}).get("hostile", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    hostile = session.config.stash[HOSTILE]
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["hostile"] = dataclasses.asdict(hostile)
    elif not hostile.partial and not hostile.as_documented():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    hostile = terminalreporter.config.stash[HOSTILE]
    if hostile.tried:
        terminalreporter.write_line(str(hostile))
    if not hostile.partial and not hostile.as_documented():
        terminalreporter.write_line(f"FAILED {HOSTILE_PAGE} reports other figures", red=True)
