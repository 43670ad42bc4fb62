"""Tests of `sprat predict --explain`: a PNG and words per picture, and nothing overwritten."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here
from PIL import Image

import sprat
from sprat import SpratError
from sprat.api.maps import plan
from sprat.checkpoint import Model, save_model
from sprat.data.imageset import Normalization
from sprat.evaluation.explain import in_words
from sprat.figures.overlay import overlay
from sprat.models import NetworkConfig, build_network
from sprat.models.code import use

OWN = """
from torch import nn

class Flat(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.linear = nn.Linear(3, num_classes)

    def forward(self, images):
        return self.linear(images.mean((2, 3)))
"""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder of three pictures, the second of which cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.linear_gradient("L").save(folder / "a.jpg")
    (folder / "b.png").write_bytes(b"not a picture")
    Image.radial_gradient("L").save(folder / "c.png")
    return folder


def test_each_picture_gets_a_map_and_description(
    here: Here, small_run: Path, pictures: Path, tmp_path: Path
) -> None:
    done = here("predict", small_run, pictures, "--explain", tmp_path / "new" / "maps", "--json")
    assert done.returncode == 2, "one picture cannot be read"
    first, last = json.loads(done.stdout)
    drawn = [tmp_path / "new" / "maps" / name for name in ("a.png", "c.png")]
    assert [first["map"], last["map"]] == list(map(str, drawn))
    assert sorted((tmp_path / "new" / "maps").iterdir()) == drawn
    for prediction, path in zip((first, last), drawn, strict=True):
        with Image.open(path) as image:
            assert (image.format, image.width >= 600, image.height >= 300) == ("PNG", True, True)
        (explained,) = sprat.load(small_run).explain(prediction["file"])
        assert prediction["where"] == explained.where == in_words(explained.map)
        assert prediction["predictions"][0]["class"] == explained.label
    done = here("predict", small_run, pictures / "a.jpg", "--explain", tmp_path / "text")
    assert done.stdout.rstrip().endswith(f"   where: {first['where']}")
    done = here("predict", small_run, pictures, "--explain", tmp_path / "rows", "--csv")
    rows = list(csv.DictReader(done.stdout.splitlines()))
    assert [(row["where"], row["map"]) for row in rows] == [
        (each["where"], str(tmp_path / "rows" / Path(each["map"]).name)) for each in (first, last)
    ]
    assert "where" not in here("predict", small_run, pictures, "--csv").stdout


def test_maps_agree_with_cli_and_keep_predictions(
    here: Here, small_run: Path, pictures: Path, tmp_path: Path
) -> None:
    words = (small_run, pictures / "c.png", "--tta", 2, "--json")
    (shown,) = json.loads(here("predict", *words, "--explain", tmp_path / "command").stdout)
    (found,) = sprat.predict(
        pictures / "c.png", model=small_run, tta=2, explain=tmp_path / "python", quiet=True
    )
    drawn = [Path(each.pop("map")).read_bytes() for each in (shown, found)]
    assert drawn[0] == drawn[1]
    assert shown == found
    del found["where"]
    assert sprat.predict(pictures / "c.png", model=small_run, tta=2, quiet=True) == [found]


def test_pictures_with_the_same_name_do_not_collide(tmp_path: Path) -> None:
    names = ("a/cat.jpg", "b/cat.jpg", "cat-2.png", "b/CAT.jpg", "dog", "cat.jpg", "n" * 250)
    planned = [path.name for path in plan(tmp_path, [Path(name) for name in names])]
    assert planned[:6] == ["cat.png", "cat-2.png", "cat-2-2.png", "CAT-3.png", "dog.png",
                           "cat-4.png"]  # fmt: skip
    assert len({name.casefold() for name in planned}) == len(names)
    assert max(map(len, planned)) < 240


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_existing_files_are_not_overwritten(
    here: Here, pictures: Path, tmp_path: Path, kind: str
) -> None:
    maps = tmp_path / "maps"
    maps.mkdir()
    match kind:
        case "file":
            (maps / "c.png").write_bytes(b"mine")
        case "folder":
            (maps / "c.png").mkdir()
        case _:
            (maps / "c.png").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    done = here("predict", pictures, "--explain", maps)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{maps / 'c.png'} exists already and is not overwritten. Name" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before
    done = here("predict", pictures, "--explain", pictures / "a.jpg")
    assert (done.returncode, done.stdout) == (2, "")
    assert "is not a folder. Name a folder." in done.stderr


def test_network_with_unsupported_head_is_refused(
    here: Here, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "flat.py").write_text(OWN)
    use("flat.py")
    spec = NetworkConfig(name="flat.py:Flat")
    classes, evenly = ("dark", "light"), Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    network = build_network(spec, num_classes=2)
    save_model(Path("flat.safetensors"), Model(network, "Flat", classes, evenly, 32, {}, spec))
    words = (pictures, "--explain", "maps", "--code", "flat.py")
    done = here("predict", "flat.safetensors", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Flat does not end in a mean over the map and one linear layer" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "maps").exists()


class TestClassifier:
    def test_explains_any_class(self) -> None:
        classifier = sprat.load("SpratS", device="cpu")
        pixels = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)
        own = classifier.explain(pixels)
        assert [each.label for each in own] == classifier(pixels).labels
        named = classifier.explain(pixels, [each.label for each in own])
        others = classifier.explain(pixels, ["ship", "frog"])
        for first, same, other in zip(own, named, others, strict=True):
            assert torch.equal(first.map, same.map)
            assert not torch.equal(first.map, other.map)
        assert [each.label for each in others] == ["ship", "frog"]

    def test_refuses_unknown_classes_and_wrong_count(self) -> None:
        classifier = sprat.load("SpratS", device="cpu")
        picture = np.zeros((32, 32, 3), np.uint8)
        with pytest.raises(SpratError, match=r"Unknown class 'shp'; did you mean 'ship'\?"):
            classifier.explain(picture, ["shp"])
        with pytest.raises(SpratError, match="classes has 2 names, but there are 1 pictures"):
            classifier.explain(picture, ["ship", "cat"])


def test_overlay_brightness_follows_evidence_at_any_scale() -> None:
    grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
    activation = torch.tensor([[-9.0, 0.0], [0.5, 1.0]])
    shown = overlay(grey, activation)
    assert (shown.shape, shown.dtype) == ((3, 32, 32), torch.uint8)
    assert torch.equal(shown, overlay(grey, 1_000 * activation))
    brightness = shown.float().mean(0)
    corners = [brightness[0, 0], brightness[0, -1], brightness[-1, 0], brightness[-1, -1]]
    assert corners[0] == corners[1] < corners[2] < corners[3] == brightness.max()
    nothing = overlay(grey, torch.zeros(2, 2))
    assert nothing.unique(dim=2).shape == (3, 32, 1)
