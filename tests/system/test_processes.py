"""Tests that seeds, trials and classifiers give the same results in other processes."""

import dataclasses
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from conftest import SMALL, weights
from pretended import NOWHERE, Recorder, decide, pretend, records

import sprat
from sprat.data import Dataset
from sprat.pools.local import ProcessPool
from sprat.training.observer import Observer

CONFIG = dataclasses.replace(SMALL, epochs=2, train_images=48, evaluate_every=2, tta=1)


class Writes(Observer):
    """Observer that writes a file into a run's folder at the end."""

    def finished(self, run: Any, results: Any) -> None:
        (run.folder / "observed.txt").write_text(str(run.steps_taken))


def test_two_processes_train_the_same_weights_as_one(tiny: Dataset, tmp_path: Path) -> None:
    alone, together = tmp_path / "alone", tmp_path / "together"
    sprat.train_seeds(CONFIG, seeds=2, dataset=tiny, output=alone, quiet=True)
    ended: list[str] = []

    def record(run: sprat.Run) -> None:
        ended.append(run.folder.name)

    how: dict[str, Any] = {"dataset": tiny, "output": together, "quiet": True, "workers": 2}
    found = sprat.train_seeds(CONFIG, seeds=2, ended=record, observers=[Writes()], **how)
    assert sorted(ended) == ["seed-0", "seed-1"]
    for seed in ("seed-0", "seed-1"):
        assert weights(together / seed) == weights(alone / seed)
        assert (together / seed / "observed.txt").read_text() == "6"
        assert (together / seed / "curves.png").exists()
    assert found.summary["seeds"] == [0, 1]
    assert not list(together.glob(".*"))


def test_two_processes_search_the_same_as_one(tmp_path: Path) -> None:
    for folder in ("alone", "together"):
        (tmp_path / folder).mkdir()
    alone = decide(tmp_path / "alone", Recorder())
    pool = ProcessPool(pretend, NOWHERE, lambda: False, 2)
    try:
        assert records(decide(tmp_path / "together", pool)) == records(alone)
    finally:
        pool.close()


def test_a_classifier_can_be_sent_to_a_spawned_process() -> None:
    classifier = sprat.load("SpratS", device="cpu")
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    expected = classifier(pixels)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        labels, probabilities = pool.submit(classifier, pixels).result()
    assert labels == expected.labels
    assert torch.allclose(probabilities, expected.probabilities, atol=1e-6)
    assert torch.equal(classifier(pixels).probabilities, expected.probabilities)  # still usable
