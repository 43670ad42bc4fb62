"""Tests of several seeds of one recipe, trained one after another."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL
from torch import Tensor

from sprat.cli import app
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import read_json
from sprat.settings.recipes import load_recipe, recipe_names
from sprat.training.observer import Observer
from sprat.training.run import Interrupted, Run
from sprat.training.seeds import train_seeds

CONFIG = dataclasses.replace(SMALL, epochs=2, train_images=48, seed=4)


class Watching(Observer):
    """Observer that counts steps and asks to stop after so many."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.steps, self.stop_after = 0, stop_after

    def stepped(self, training: Run) -> None:
        self.steps += 1

    def should_stop(self) -> bool:
        return self.steps >= self.stop_after


def _train(folder: Path, dataset: Dataset, watching: Watching, **changes: Any) -> dict[str, Any]:
    return train_seeds(
        dataclasses.replace(CONFIG, **changes),
        dataset,
        folder,
        2,
        recipe="small",
        observer=watching,
        should_stop=watching.should_stop,
    )


def test_interrupted_seed_resumes_and_finished_one_is_skipped(
    tiny: Dataset, tmp_path: Path
) -> None:
    whole = Watching()
    summary = _train(tmp_path / "whole", tiny, whole)
    assert (summary["seeds"], summary["split"], summary["top1"]["n"]) == ([4, 5], "val", 2)
    assert whole.steps == 2 * 2 * 3

    cut = Watching(stop_after=8)  # within the second seed
    with pytest.raises(Interrupted):
        _train(tmp_path / "cut", tiny, cut)
    rest = Watching()
    again = _train(tmp_path / "cut", tiny, rest)
    assert cut.steps + rest.steps == whole.steps
    for seed in (4, 5):
        models = [tmp_path / run / f"seed-{seed}/model.safetensors" for run in ("whole", "cut")]
        assert models[0].read_bytes() == models[1].read_bytes()
    assert again["top1"] == summary["top1"]

    nothing = Watching()
    assert _train(tmp_path / "cut", tiny, nothing) == again
    assert nothing.steps == 0


def test_folder_with_other_settings_is_refused_unchanged(tiny: Dataset, tmp_path: Path) -> None:
    _train(tmp_path, tiny, Watching())
    before = read_json(tmp_path / "seed-4" / "results.json")
    with pytest.raises(SpratError, match=r"seed-4 is a run with other settings .*dropout"):
        _train(tmp_path, tiny, Watching(), dropout=0.1)
    assert read_json(tmp_path / "seed-4" / "results.json") == before


def test_fewer_training_images_keep_class_proportions(tiny: Dataset, tmp_path: Path) -> None:
    def counts(images: int) -> Tensor:
        training = Run(dataclasses.replace(CONFIG, train_images=images), tiny, tmp_path)
        return training.images.batches.dataset.targets.bincount(minlength=10)

    assert counts(45).sum() == 45
    assert (counts(45) - counts(0) / 4).abs().max() <= 1
    with pytest.raises(
        SpratError, match=r"train_images is 201, but there are only 180 training images"
    ):
        Run(dataclasses.replace(CONFIG, train_images=201), tiny, tmp_path)


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_recipe_trains_and_is_summarized(
    recipe: str, tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    """Train for a few steps, and ResNet8 in place of ResNet18, so that it does not take hours."""
    config = load_recipe(recipe).changed({
        "epochs": 2, "train_images": 32, "batch_size": 16, "evaluate_every": 2, "final": True,
        "device": "cpu", "tta": 1,
    })  # fmt: skip
    if config.model == "ResNet18":
        config = config.changed({"model": "ResNet8"})
    if config.distill.teacher:
        config = config.changed({"distill.teacher": [str(small_run)]})
    summary = train_seeds(config, tiny, tmp_path, 2, recipe=recipe)
    assert summary["top1"]["n"] == 2
    assert summary["model"] == config.model


def test_the_command_writes_a_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["train", "--dataset", "shapes10", "--seeds", "2", "--train-images", "64"]
    words += ["--model", "SpratNet", "--network.widths", "8,12", "--network.depth", "1"]
    words += ["--batch-size", "32", "--epochs", "1", "--optim.warmup-epochs", "0.5"]
    words += ["--device", "cpu", "--final"]
    assert app(words, result_action="return_value") == 0
    summary = json.loads((tmp_path / "runs/quick/summary.json").read_text())
    assert (summary["split"], summary["seeds"]) == ("test", [0, 1])
    shown = capsys.readouterr().out
    assert "2 seeds, on test" in shown
    assert f"{100 * summary['top1']['mean']:.2f} ± {100 * summary['top1']['std']:.2f} %" in shown
    for seed in (0, 1):
        assert (tmp_path / f"runs/quick/seed-{seed}/curves.png").exists()
