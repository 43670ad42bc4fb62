"""Tests of the shipped models, their cards, and the corruptions that the cards report on."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import torch as safetensors

from sprat.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sprat.budget import memory_plan
from sprat.budget.graph import trace
from sprat.budget.layers import lower
from sprat.checkpoint import load_model, with_ranges
from sprat.cli import app
from sprat.data import Dataset
from sprat.evaluation.ranges import read_record
from sprat.model_file import read_model
from sprat.ship import refresh
from sprat.zoo import ZOO, best, card_text, cards, find_card, is_model, listed, locate

SHIPPED = sorted(path.parent.name for path in ZOO.glob("*/card.json"))


def test_package_contains_models() -> None:
    assert SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
class TestEveryShippedModel:
    def test_is_small_and_stored_in_fp16(self, name: str) -> None:
        content = read_model(ZOO / name / "model.safetensors.xz")
        assert len(content) <= 450_000
        tensors = safetensors.load(content).values()
        too_large = [tensor for tensor in tensors if tensor.dtype is torch.float32]
        assert all(tensor.half().isinf().any() for tensor in too_large)
        assert {tensor.dtype for tensor in tensors} <= {torch.float16, torch.float32, torch.int64}
        assert sum(tensor.nbytes for tensor in too_large) < 1_000

    def test_card_matches_text_and_model(self, name: str) -> None:
        card = find_card(name)
        assert (ZOO / name / "CARD.md").read_text(encoding="utf-8") == card_text(card)
        assert (ZOO / name / "curves.png").exists()
        model = load_model(locate(name))
        assert sum(p.numel() for p in model.network.parameters()) == card["parameters"] < 200_000
        plan = memory_plan(model.network, model.side)
        assert card["memory"] == {
            "arena": plan.arena, "image": plan.image, "weights": plan.weights
        }  # fmt: skip
        assert model.about["recipe"] == card["training"]["recipe"]
        assert card["training"]["git"]["dirty"] is False
        assert card["compiled"]["arena"] == plan.arena
        assert card["compiled"]["constants"] > plan.weights
        assert f"{card['compiled']['stack']:,} bytes of stack" in card_text(card)

    def test_contains_activation_ranges(self, name: str) -> None:
        model = load_model(locate(name))
        lowered = lower(trace(model.network, model.side))
        assert len(read_record(model.ranges, lowered)) == len(lowered.layers)


def test_refresh_updates_ranges_and_card_not_weights(
    small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sprat.evaluation.ranges.CALIBRATION", 20)
    folder = shutil.copytree(ZOO / "SpratS", tmp_path / "SpratS")
    file, card_file = folder / "model.safetensors.xz", folder / "card.json"
    before, card = load_model(file), json.loads(card_file.read_text())
    card_file.write_text(json.dumps({key: card[key] for key in card if key != "compiled"}))
    seen = []
    for _ in range(2):
        renewed = refresh(file, small)
        assert renewed == json.loads(card_file.read_text())
        assert list(renewed) == list(card)
        assert (folder / "CARD.md").read_text() == card_text(renewed)
        seen.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert seen[0] == seen[1]
    after = load_model(file)  # also checks its sha256 against the card's
    assert after.ranges["images"] == 20
    assert with_ranges(file, read_model(file), None) == with_ranges(
        file, read_model(ZOO / "SpratS" / file.name), None
    )
    same = ("test", "int8", "robustness", "training", "memory")
    assert {key: renewed[key] for key in same} == {key: card[key] for key in same}
    assert (after.classes, after.about) == (before.classes, before.about)


class TestList:
    def test_is_best_first_and_matches_the_files(self, capsys: pytest.CaptureFixture[str]) -> None:
        app(["models", "--json"], result_action="return_value")
        models = json.loads(capsys.readouterr().out)
        shares = [model["test_top1"] for model in models]
        assert shares == sorted(shares, reverse=True)
        assert {model["name"] for model in models} == set(SHIPPED)
        for model in models:
            assert model.keys() == {"name", "parameters", "test_top1", "bytes", "sha256"}
            content = read_model(ZOO / model["name"] / "model.safetensors.xz")
            assert model["sha256"] == hashlib.sha256(content).hexdigest()
            assert model["bytes"] == len(content)
        assert best() == ZOO / models[0]["name"] / "model.safetensors.xz"

    def test_prints_text_or_one_card(self, capsys: pytest.CaptureFixture[str]) -> None:
        app(["models"], result_action="return_value")
        shown = capsys.readouterr().out
        for card in cards():
            assert card["name"] in shown
            assert listed(card)["sha256"] in shown
        app(["models", SHIPPED[0].lower()], result_action="return_value")
        assert capsys.readouterr().out.strip() == card_text(find_card(SHIPPED[0])).strip()


class TestNames:
    def test_path_takes_precedence_over_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        name = SHIPPED[0]
        assert is_model(name.lower())
        assert locate(name.lower()) == ZOO / name / "model.safetensors.xz"
        monkeypatch.chdir(tmp_path)
        (tmp_path / name).mkdir()
        assert locate(name) == Path(name)
        assert not is_model(name), "a folder of pictures named like a model"

    def test_a_run_and_a_file_are_models_and_pictures_are_not(
        self, small_run: Path, tmp_path: Path
    ) -> None:
        assert is_model(str(small_run))
        assert is_model("anything.safetensors")
        assert not is_model(str(tmp_path))
        assert not is_model("cat.jpg")

    def test_predict_without_a_model_uses_the_best(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        Image.new("RGB", (40, 50), "skyblue").save(tmp_path / "sky.png")
        answers = []
        for model in ([], [str(best())]):
            words = ["predict", *model, str(tmp_path / "sky.png"), "--json", "--top", "10"]
            app(words, result_action="return_value")
            answers.append(json.loads(capsys.readouterr().out))
        assert answers[0] == answers[1]
        assert {guess["class"] for guess in answers[0][0]["predictions"]} > {"airplane", "ship"}


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEveryCorruption:
    def test_harms_at_every_severity_and_most_at_the_last(self, name: str, small: Dataset) -> None:
        images = small.train.images[:64]
        harm = [
            (corrupt(images, name, severity).float() - images.float()).abs().mean().item()
            for severity in SEVERITIES
        ]
        assert min(harm) > 0
        assert harm[-1] == max(harm) > harm[0]

    def test_keeps_shape_and_is_determined_by_seed(self, name: str, small: Dataset) -> None:
        images = small.train.images[:5][:, :, :, :30]
        before = images.clone()
        changed = corrupt(images, name, 5, seed=3)
        assert (changed.shape, changed.dtype) == (images.shape, torch.uint8)
        assert torch.equal(changed, corrupt(images, name, 5, seed=3))
        assert torch.equal(images, before)
        assert corrupt(images[:, :1], name, 5).shape == (5, 1, 32, 30)
