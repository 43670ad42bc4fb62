"""Tests of one run on several processes: gradients, resuming, and a process that is killed."""

import dataclasses
import shutil
import time
from pathlib import Path

import pytest
import torch
from conftest import SMALL, StopAfter, weights
from together import started
from torch import Tensor

from sprat import distributed
from sprat.checkpoint import load_resume
from sprat.data import Dataset, shapes10
from sprat.data.imageset import Normalization
from sprat.errors import PeerEnded
from sprat.evaluation.records import EpochRow, read_metrics, read_results
from sprat.settings.config import AugmentConfig, EMAConfig
from sprat.training.observer import Observer
from sprat.training.run import Interrupted, Run
from sprat.training.schedules import RunSchedule
from sprat.training.start import resume, train
from sprat.training.step import Step, new_network

PLAIN = dataclasses.replace(
    SMALL,
    dropout=0.0,
    kernels="torch",
    augment=AugmentConfig(crop=0, flip=0),
    ema=EMAConfig(decay=0),
)
NORMS = (0.0, 0.1)
TOGETHER = dataclasses.replace(SMALL, final=True, epochs=2, batch_size=32)


def _small() -> Dataset:
    images, test = shapes10.load(train_images=100, test_images=50)
    return Dataset("shapes10", images, test, Normalization.of(images.images), md5="")


def _gradients(images: Tensor, labels: Tensor, max_norm: float) -> list[Tensor]:
    """Return the loss and gradients of one step, with BatchNorm's statistics frozen."""
    config = dataclasses.replace(PLAIN, optim=dataclasses.replace(SMALL.optim, max_norm=max_norm))
    network = new_network(config, 10).eval()
    step = Step(network, config, RunSchedule(config, 5), Normalization((0.5,) * 3, (0.25,) * 3), 10)
    loss = step(distributed.part(images), distributed.part(labels), 3)
    return [loss, *(p.grad for p in network.parameters() if p.grad is not None)]


def _batch() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 16, 16), dtype=torch.uint8, generator=draw)
    return images, torch.randint(0, 10, (32,), generator=draw)


def _do_all(folder: Path) -> None:
    """Do what all tests check in one pair of processes, since starting them takes longest."""
    for max_norm in NORMS:
        path = folder / f"{max_norm}-{distributed.rank()}.pt"
        torch.save(_gradients(*_batch(), max_norm), path)
    small, stop = _small(), StopAfter(2) if distributed.is_first() else lambda: False
    whole = train(TOGETHER, small, folder / "whole", recipe="small")
    with pytest.raises(Interrupted):
        train(TOGETHER, small, folder / "stopped", recipe="small", should_stop=stop)
    resumed = resume(folder / "stopped", small)
    assert whole["epochs"] == resumed["epochs"] == 2


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    with started(_do_all, folder) as processes:
        for process in processes:
            process.join(240)
            assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("max_norm", NORMS)
def test_gradients_match_one_process_on_the_whole_batch(together: Path, max_norm: float) -> None:
    expected = _gradients(*_batch(), max_norm)
    first, second = (
        torch.load(together / f"{max_norm}-{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert len(first) == len(expected)
    for one, other, joined in zip(first, second, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, joined, rtol=1e-4, atol=1e-6)


def test_resume_is_exact_and_warns_if_processes_change(
    together: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert weights(together / "stopped") == weights(together / "whole")
    assert [row["epoch"] for row in read_metrics(together / "stopped")] == [1, 2]
    assert read_results(together / "whole" / "results.json")["machine"]["processes"] == 2

    alone = tmp_path / "alone"
    shutil.copytree(together / "whole", alone)
    (alone / "results.json").unlink()
    resume(alone, _small())
    assert "was trained by 2 processes and is resumed by 1, so" in capsys.readouterr().err


def test_killed_peer_is_reported(tmp_path: Path) -> None:
    with started(_say_how_it_ends, tmp_path) as (first, second):
        while not (tmp_path / "stepped").exists():
            time.sleep(0.05)
        second.kill()
        first.join(60)
        assert first.exitcode == 0
    assert "Another process of this run has ended" in (tmp_path / "ended").read_text()
    assert load_resume(tmp_path / "run/last.pt")["epoch"] >= 1


class _Touch(Observer):
    def __init__(self, path: Path) -> None:
        self.path = path

    def epoch_ended(self, run: Run, row: EpochRow) -> None:
        self.path.touch()


def _say_how_it_ends(folder: Path) -> None:
    long = dataclasses.replace(TOGETHER, epochs=10_000)
    try:
        train(long, _small(), folder / "run", recipe="small", observer=_Touch(folder / "stepped"))
    except PeerEnded as error:
        (folder / "ended").write_text(str(error))
