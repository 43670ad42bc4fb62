"""The models that ship reach on CIFAR-10 what their cards say: minutes of arithmetic."""

from pathlib import Path

import numpy as np
import pytest
import torch

from sprat.checkpoint import load_model
from sprat.data import load_dataset
from sprat.evaluate import judge, predict_probabilities, top1
from sprat.export import export
from sprat.zoo import best, cards, find_card, locate


@pytest.mark.parametrize("name", [card["name"] for card in cards()])
def test_reaches_what_its_card_says(name: str, cifar10_place: Path) -> None:
    """Another processor's rounding may tip a picture or two."""
    test = load_dataset("cifar10", cifar10_place).test
    model, card = load_model(locate(name)), find_card(name)
    judged = judge(model.network, test, model.normalization, card["test"]["tta_views"])
    assert judged["n"] == card["test"]["n"] == 10_000
    for key in ("top1", "tta_top1"):
        assert judged[key] == pytest.approx(card["test"][key], abs=5e-4)


def test_the_best_keeps_its_accuracy_in_int8(
    cifar10_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sprat[export]")
    monkeypatch.setattr("sprat.export.TIMED_SECONDS", 0.0)
    dataset, model = load_dataset("cifar10", cifar10_place.parent), load_model(best())
    path = tmp_path / "int8.onnx"
    test = dataset.test.subset(torch.arange(2_000))
    file = export(model, path, "onnx-int8", compared=test, training=dataset.train)
    assert file.contenders[-1].bytes < 250_000
    session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
    images = test.images[:]
    parts = [session.run(None, {"images": part.numpy()})[0] for part in images.split(500)]
    before = predict_probabilities(model.network, images, model.normalization)
    said = torch.from_numpy(np.concatenate(parts))
    assert top1(said, test.targets) > top1(before, test.targets) - 0.01
