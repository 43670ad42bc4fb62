"""Tests that the shipped models reach what their cards say on CIFAR-10; they take minutes."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sprat.augment.corruptions import CORRUPTIONS
from sprat.budget import count_parameters
from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.deploy.writing import export
from sprat.evaluation.evaluate import evaluate, predict_probabilities, top1
from sprat.evaluation.records import read_json
from sprat.ship import ship
from sprat.zoo import best, card_text, cards, find_card, locate


@pytest.mark.parametrize("name", [card["name"] for card in cards()])
def test_shipped_model_reaches_its_cards_accuracy(name: str, cifar10_place: Path) -> None:
    """Allow a few predictions to change, since other processors round differently."""
    test = load_dataset("cifar10", cifar10_place).test
    model, card = load_model(locate(name)), find_card(name)
    evaluated = evaluate(model.network, test, model.normalization, card["test"]["tta_views"])
    assert evaluated["n"] == card["test"]["n"] == 10_000
    for key in ("top1", "tta_top1"):
        assert evaluated[key] == pytest.approx(card["test"][key], abs=5e-4)


def test_best_model_keeps_its_accuracy_in_int8(
    cifar10_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sprat[export]")
    monkeypatch.setattr("sprat.deploy.agreement.TIMED_SECONDS", 0.0)
    dataset, model = load_dataset("cifar10", cifar10_place.parent), load_model(best())
    path = tmp_path / "int8.onnx"
    test = dataset.test.subset(torch.arange(2_000))
    file = export(model, path, "onnx-int8", compared=test, training=dataset.train)
    assert file.contenders[-1].bytes < 1.6 * count_parameters(model.network)
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images = test.images[:]
    parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(500)]
    before = predict_probabilities(model.network, images, model.normalization)
    said = torch.from_numpy(np.concatenate(parts))
    assert top1(said, test.targets) > top1(before, test.targets) - 0.01


def test_card_matches_the_shipped_model(small_run: Path, small: Dataset, tmp_path: Path) -> None:
    run = shutil.copytree(small_run, tmp_path / "run")
    (run / "curves.png").write_bytes(b"")  # drawn by the command line
    card = ship(run, small, tmp_path / "zoo")
    folder = tmp_path / "zoo" / card["name"]
    assert read_json(folder / "card.json") == card
    model = load_model(folder)
    assert card["test"] == evaluate(model.network, small.test, model.normalization, 2)
    assert abs(card["int8"]["top1"] - card["test"]["top1"]) < 0.05
    assert card["robustness"]["images"] == len(small.test)
    assert card["robustness"]["clean"] == card["test"]["top1"]
    assert card["robustness"]["top1"].keys() == CORRUPTIONS.keys()
    assert card["training"]["images"] == 180
    assert "best on val, 20 training images" in card_text(card)
    card["training"]["overrides"] = {"epochs": 3, "optim.lr": 0.1}
    assert "Recipe `small` with `epochs` 3, `optim.lr` 0.1, seed 0" in card_text(card)
