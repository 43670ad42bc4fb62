"""Files of weights: they come back the same, say what they are, and cannot execute."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sprat.checkpoint import Model, load_model, load_resume, save_model, save_resume
from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.files import replacing
from sprat.models import build_model


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model(
        network=build_model("OptimizedCIFAR10Net200K", num_classes=3).eval(),
        name="OptimizedCIFAR10Net200K",
        classes=("ant", "bee", "crow"),
        normalization=Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        side=32,
        about={"recipe": "quick"},
    )


def test_a_model_comes_back_the_same_without_its_recipe(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_model(path, model)
    for place in (path, tmp_path):
        loaded = load_model(place)
        images = torch.randn(4, 3, 32, 32)
        assert torch.equal(loaded.network(images), model.network(images))
        assert (loaded.name, loaded.classes, loaded.side) == (model.name, model.classes, 32)
        assert loaded.normalization == model.normalization
        assert loaded.about == {"recipe": "quick"}


def test_nothing_in_the_file_carries_a_wrappers_prefix(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        meta = json.loads(file.metadata()["sprat"])
    assert {"stem.0.weight", "layer4.1.conv2.bn.running_var", "classifier.bias"} <= names
    assert not [name for name in names if name.startswith(("module.", "_orig_mod."))]
    assert meta["classes"] == ["ant", "bee", "crow"]


def test_weights_in_another_memory_layout_keep_their_values(model: Model, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in model.network.state_dict().items()}
    model.network.to(memory_format=torch.channels_last)
    assert not model.network.stem[0].weight.is_contiguous()
    save_model(tmp_path / "m.safetensors", model)
    after = load_model(tmp_path / "m.safetensors").network.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_what_is_no_model_of_ours_is_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with pytest.raises(SpratError, match="there is no model at"):
        load_model(path)
    with pytest.raises(SpratError, match="there is no model at"):
        load_model(tmp_path)
    path.write_bytes(b"junk")
    with pytest.raises(SpratError, match="not a safetensors file, or damaged"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(SpratError, match="not written by sprat"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": "{}"})
    with pytest.raises(SpratError, match="is damaged"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": '{"format": 1, "model": 5, "classes": []}'})
    with pytest.raises(SpratError, match="is damaged"):
        load_model(path)
    save_file({"x": torch.zeros(1)}, path, {"sprat": '{"format": 99}'})
    with pytest.raises(SpratError, match=r"has format 99.*upgrade"):
        load_model(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_file_cut_short_is_refused(model: Model, tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.safetensors"
    save_model(path, model)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(SpratError, match="damaged"):
        load_model(path)


def test_a_resume_file_that_would_execute_is_refused(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple:
            import os

            return os.system, (f"touch {tmp_path}/harmed",)

    path = tmp_path / "last.pt"
    torch.save({"epoch": Attack()}, path)
    with pytest.raises(SpratError, match="damaged or not sprat's"):
        load_resume(path)
    assert not (tmp_path / "harmed").exists()
    path.write_bytes(b"")
    with pytest.raises(SpratError, match="damaged"):
        load_resume(path)
    with pytest.raises(SpratError, match="there is no"):
        load_resume(tmp_path / "other.pt")
    save_resume(path, {"epoch": 3, "losses": torch.ones(2)})
    assert load_resume(path)["epoch"] == 3


def test_replacing_leaves_the_old_file_whole_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")

    def fail_halfway() -> None:
        with replacing(path) as beside:
            beside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o044, "readable like any file, not like a temporary one"
