"""Test that `sprat data check --labels` finds changed labels as well as cleanlab does."""

from pathlib import Path

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from safetensors.torch import load_file

import sprat
from sprat.data import Dataset, assemble, shapes10
from sprat.data.imageset import ImageSet
from sprat.training.folds import PROBABILITIES_FILE

RECIPE = """
epochs = 8
batch_size = 64
dropout = 0.0
threads = 1
precision = "fp32"
[network]
name = "SpratNet"
widths = [8, 12]
depth = [1]
[optim]
name = "muon"
lr = 0.25
muon_lr = 0.08
weight_decay = 5e-4
warmup_epochs = 1
schedule = "linear"
[augment]
flip = 0.5
crop = 2
[ema]
decay = 0
"""
FLIPPED = 0.05  # share of the labels


def _flipped(seed: int) -> tuple[Dataset, set[int]]:
    """Return 2,000 images of shapes10, some with a wrong label, and the places of those."""
    rng = np.random.default_rng(seed)
    train, test = shapes10.load(train_images=1600, test_images=400)
    targets = torch.cat([train.targets, test.targets])
    places = rng.choice(len(targets), round(FLIPPED * len(targets)), replace=False)
    targets[places] = (targets[places] + torch.from_numpy(rng.integers(1, 10, len(places)))) % 10
    parts = zip((train, test), targets.split([1600, 400]), strict=True)
    sets = [ImageSet(part.images, labels, part.classes) for part, labels in parts]
    return assemble("shapes10", *sets), set(places.tolist())


def _recall(ranked: list[int], flipped: set[int]) -> float:
    return len(flipped & set(ranked[: len(flipped)])) / len(flipped)


def test_flipped_labels_rank_as_high_as_with_cleanlab(tmp_path: Path) -> None:
    recipe, runs = tmp_path / "small.toml", tmp_path / "runs"
    recipe.write_text(RECIPE)
    dataset, flipped = _flipped(0)
    found = sprat.check_data(
        dataset, labels=True, folds=3, recipe=str(recipe), runs=runs, quiet=True
    )
    assert found.labels is not None
    ours = [each.place for each in found.labels.suspects]
    (folder,) = runs.iterdir()
    answers = load_file(folder / PROBABILITIES_FILE)["probabilities"].double().numpy()
    scores = get_label_quality_scores(
        found.images.targets.numpy(), answers, method="normalized_margin"
    )
    theirs = scores.argsort(kind="stable").tolist()
    assert _recall(ours, flipped) >= 0.9
    assert _recall(ours, flipped) >= _recall(theirs, flipped)
