"""Tests of several seeds or folds trained at once: their results, and what is refused."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, weights
from conftest import Here as CommandLine

import sprat
from sprat import SpratError
from sprat.data import Dataset
from sprat.errors import Interrupted
from sprat.pools import parse_workers
from sprat.pools.local import Here, Processes
from sprat.pools.source import Source
from sprat.training.observer import Observer
from sprat.training.seeds import train_seeds
from sprat.training.several import Apart

CONFIG = dataclasses.replace(SMALL, epochs=2, train_images=48, evaluate_every=2, tta=1)


class HereAlone(Processes):
    """Workers that are this process, so that a test sees what a member does."""

    stopping: Callable[[], bool] | None = None

    def pool(self, work: Any, shared: Any, should_stop: Any, **needs: Any) -> Any:
        return Here(work, shared.to_send(), self.stopping or should_stop)


def test_seeds_resume_and_failure_leaves_others_unchanged(tiny: Dataset, tmp_path: Path) -> None:
    source = Source(
        "tiny", None, CONFIG.pictures, {CONFIG.pictures.side: tiny.md5}, False, tiny, False
    )
    asked = iter([False] * 6 + [True] * 100)
    workers = HereAlone(1)
    apart = Apart(workers, source)
    workers.stopping = lambda: next(asked)
    folder = tmp_path / "seeds"
    with pytest.raises(Interrupted) as stopped:
        train_seeds(CONFIG, tiny, folder, 2, None, apart, recipe="small")
    assert stopped.value.folder == folder
    assert (folder / "seed-0" / "last.pt").exists()
    workers.stopping = None
    train_seeds(CONFIG, tiny, folder, 2, None, apart, recipe="small")
    whole = tmp_path / "whole"
    train_seeds(CONFIG, tiny, whole, 2, recipe="small")
    for seed in ("seed-0", "seed-1"):
        assert weights(folder / seed) == weights(whole / seed)

    other = dataclasses.replace(CONFIG, dropout=0.1)
    with pytest.raises(SpratError, match=r"seed-0 is a run with other settings .*dropout"):
        train_seeds(other, tiny, folder, 2, None, apart, recipe="small")
    changed = dataclasses.replace(source, held=None, named=True, name="nosuch")
    with pytest.raises(SpratError, match="nosuch"):
        train_seeds(CONFIG, tiny, folder, 3, None, Apart(workers, changed), recipe="small")
    assert weights(folder / "seed-1") == weights(whole / "seed-1")
    assert not (folder / "seed-2").exists()


def test_folder_invisible_to_a_worker_is_reported(tiny: Dataset, tmp_path: Path) -> None:
    class Elsewhere(HereAlone):
        apart = True

        def pool(self, work: Any, shared: Any, should_stop: Any, **needs: Any) -> Any:
            assert shared.marker.exists()
            moved = dataclasses.replace(shared, marker=tmp_path / "elsewhere" / shared.marker.name)
            return Here(work, moved, should_stop)

    source = Source(
        "tiny", None, CONFIG.pictures, {CONFIG.pictures.side: tiny.md5}, False, tiny, False
    )
    with pytest.raises(SpratError, match=r"does not see .*elsewhere. Give an --output"):
        train_seeds(
            CONFIG, tiny, tmp_path / "seeds", 1, None, Apart(Elsewhere(1), source), recipe="small"
        )
    assert not (tmp_path / "seeds").exists()


@pytest.mark.parametrize(
    ("given", "means"), [(1, 1), ("3", 3), ("ray", "auto"), ("ray://[::1]:10001",) * 2]
)
def test_workers_are_processes_or_a_cluster(given: int | str, means: int | str) -> None:
    assert parse_workers(given) == means


@pytest.mark.parametrize(
    "given", [0, -1, 257, True, 1.5, None, "", "two", "0", "²", "ray:foo", "ray://", "ray://host",
              "ray://host:port", "ray://a b:1", "http://host:1", "9" * 5000]
)  # fmt: skip
def test_invalid_workers_are_refused(given: Any) -> None:
    with pytest.raises(SpratError, match=r"^--workers is .*, expected 1 to 256, ray or ray://"):
        parse_workers(given)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--workers", "2"], "--workers is 2, but one run is trained. Give --seeds"),
        (["train", "--workers", "ray:foo"], "--workers is ray:foo, expected 1 to 256"),
        (["train", "--seeds", "2", "--workers", "0"], "--workers is 0, expected 1 to 256"),
        (["train", "--folds", "2", "--workers", "x"], "--workers is x, expected 1 to 256"),
        (["train", "--resume", "run", "--workers", "2"], "exactly the settings it began with"),
        (["search", "--trials", "1", "--workers", "ray:foo"], "--workers is ray:foo, expected"),
        (["search", "--trials", "1", "--gpus-per-trial", "2"], "--gpus-per-trial is 2"),
        (["search", "--resume", "run", "--workers", "0"], "--workers is 0, expected 1 to 256"),
    ],
)
def test_invalid_worker_options_are_reported(
    here: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(*words, "--dataset", "shapes10")
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["train", "--seeds", "2"], ["search", "--trials", "1"]])
def test_several_runs_under_torchrun_are_refused(
    here: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    done = here(*words, "--workers", "2", "--dataset", "shapes10")
    assert done.returncode == 2
    assert "torchrun trains a single run" in done.stderr


def test_an_observer_that_cannot_be_copied_is_refused(tiny: Dataset, tmp_path: Path) -> None:
    class Inside(Observer):
        pass

    with pytest.raises(SpratError, match="The observer Inside cannot be copied"):
        sprat.train_seeds(
            CONFIG, seeds=2, dataset=tiny, output=tmp_path / "x", quiet=True, workers=2,
            observers=[Inside()],
        )  # fmt: skip


def test_without_ray_it_says_what_to_install(
    here: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    before = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "ray" else before(name)
    )
    done = here("train", "--dataset", "shapes10", "--seeds", 2, "--workers", "ray")
    assert done.returncode == 2
    assert "pip install 'sprat[ray]'" in done.stderr
