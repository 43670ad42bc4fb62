"""Tests of grey pictures, from a folder to a one-channel model and its exports."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Here
from PIL import Image

import sprat
from sprat.checkpoint import load_model, metadata, wrong_metadata
from sprat.data import load_dataset
from sprat.data.imageset import to_channels
from sprat.data.picture import read_picture
from sprat.deploy import FORMATS
from sprat.errors import SpratError
from sprat.evaluation.records import read_json
from sprat.models import code, draft_network
from sprat.settings.config import Config

CONFIG = dataclasses.replace(
    SMALL,
    epochs=1,
    kernels="auto",
    tta=1,
    optim=dataclasses.replace(SMALL.optim, warmup_epochs=0),
    augment=dataclasses.replace(SMALL.augment, hue_saturation_value=0.5),
)
OWN = """
from torch import nn

class Coloured(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, 4), nn.Linear(4, num_classes)

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))
"""


@pytest.fixture(scope="module", autouse=True)
def _fast_and_isolated(new_cache: Callable[[], Path]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(new_cache()))
        patch.setattr("sprat.deploy.agreement.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of pictures without colour, some in modes that could have it."""
    folder, rng = tmp_path_factory.mktemp("sets") / "grey", np.random.default_rng(0)
    for darkness, name in enumerate(("bright", "dark")):
        (folder / name).mkdir(parents=True)
        for i in range(25):
            pixels = rng.integers(0, 100, (20, 24), dtype=np.uint8) + 100 * (1 - darkness)
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.convert(("L", "RGB", "LA")[i % 3]).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def mixed(grey: Path) -> Path:
    """Folder of the same pictures and a coloured one."""
    folder = shutil.copytree(grey, grey.with_name("mixed"))
    pixels = np.random.default_rng(1).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "dark" / "colour.png")
    return folder


@pytest.fixture(scope="module")
def run(grey: Path) -> Path:
    config = dataclasses.replace(CONFIG, pictures=dataclasses.replace(CONFIG.pictures, side=16))
    place = grey.parent / "run"
    sprat.train(config, dataset=grey, output=place, quiet=True)
    return place


def test_a_run_trains_and_records_one_channel(run: Path) -> None:
    results, model = read_json(run / "results.json"), load_model(run)
    assert (results["channels"], model.channels) == (1, 1)
    plain = draft_network(SMALL.network, 2, in_channels=1)
    assert results["parameters"] == sum(p.numel() for p in plain.parameters())
    assert read_json(run / "config.json")["config"]["pictures"]["channels"] == 1
    assert sprat.resume(run, quiet=True).results == results
    page = sprat.report(run)
    assert f"{results['parameters']:,}" in Path(page).read_text()


def test_metadata_with_two_means_is_refused(run: Path) -> None:
    about = metadata(load_model(run))
    assert wrong_metadata(about) is None
    assert "expected 1 or 3" in (wrong_metadata(about | {"mean": [0.1, 0.2]}) or "")


def test_evaluation_repeats_and_converts_colour_to_luma(run: Path, mixed: Path) -> None:
    results = read_json(run / "results.json")
    again = sprat.evaluate(run, quiet=True)
    assert again["top1"] == results["val"]["top1"]
    found = sprat.evaluate(run, dataset=mixed, quiet=True)
    assert (found["split"], found["n"]) == ("all", 51)
    classifier = sprat.load(run)
    pictures = sorted(mixed.rglob("*.png"))
    labels = classifier([Image.open(picture) for picture in pictures]).labels
    right = [label == picture.parent.name for label, picture in zip(labels, pictures, strict=True)]
    assert found["top1"] == pytest.approx(sum(right) / 51)


def test_every_form_of_colour_becomes_luma(run: Path, mixed: Path) -> None:
    classifier, file = sprat.load(run), mixed / "dark" / "colour.png"
    image = Image.open(file)
    luma = image.convert("L")
    expected = classifier(luma).probabilities
    pixels = np.asarray(image)
    forms = [file, image, pixels, torch.tensor(pixels).movedim(-1, 0), np.asarray(luma)]
    forms += [np.asarray(luma)[..., None], torch.tensor(np.asarray(luma))[None]]
    for form in forms:
        assert torch.equal(classifier(form).probabilities, expected), type(form)
    (explained,) = classifier.explain(file)
    assert torch.equal(explained.map, classifier.explain(luma)[0].map)


def test_luma_equals_pillows(mixed: Path) -> None:
    picture = Image.open(mixed / "dark" / "colour.png")
    seen = read_picture(mixed / "dark" / "colour.png", 16, channels=1)
    assert np.array_equal(seen[0].numpy(), np.asarray(picture.convert("L")))
    greys = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(to_channels(to_channels(greys, 3), 1), greys)


def test_maps_are_drawn(run: Path, mixed: Path, tmp_path: Path) -> None:
    (found,) = sprat.predict(mixed / "dark" / "colour.png", model=run, explain=tmp_path, quiet=True)
    with Image.open(found["map"]) as drawn:
        assert drawn.size[0] > 100


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_format_agrees_with_torch(run: Path, format: str, tmp_path: Path) -> None:
    """Check the largest difference: `export` itself refuses exact formats that do not agree."""
    output = tmp_path / f"model{FORMATS[format].ending}"
    exported = sprat.export(
        run, format=format, output=output, max_drop=100, max_class_drop=100, quiet=True
    )
    assert exported.n > 0
    assert exported.largest_difference < (1e-4 if FORMATS[format].exact else 0.1)
    if format == "c":
        assert "#define MODEL_INPUT 256 " in (output / "model.h").read_text()


class TestChannels:
    def test_three_repeat_the_grey_channel(self, grey: Path) -> None:
        one, three = (
            load_dataset(str(grey), own=dataclasses.replace(CONFIG.pictures, channels=n))
            for n in (1, 3)
        )
        assert (one.channels, three.channels) == (1, 3)
        assert torch.equal(one.train.images[:].expand(-1, 3, -1, -1), three.train.images[:])
        assert three.normalization.mean == one.normalization.mean * 3

    def test_colour_among_grey_pictures_is_cached_correctly(self, mixed: Path) -> None:
        loaded = load_dataset(str(mixed))
        assert loaded.channels == 3
        seen = {
            image.numpy().tobytes()
            for part in (loaded.train, loaded.test)
            for image in part.images[:]
        }
        assert seen == {read_picture(p, 32).numpy().tobytes() for p in mixed.rglob("*.png")}

    @pytest.mark.parametrize("cached", [False, True])
    def test_colour_for_one_channel_is_refused(
        self,
        mixed: Path,
        cached: bool,
        here: Here,
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        if cached:
            load_dataset(str(mixed))
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pixels")}
        done = here("train", "--dataset", mixed, "--pictures.channels", 1)
        assert done.returncode == 2
        assert "contains 1 coloured picture: dark/colour.png" in " ".join(done.stderr.split())
        assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.pixels")}

    def test_network_without_in_channels_gets_three(
        self, grey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(code, "_used", {})
        file = tmp_path / "my_nets.py"
        file.write_text(OWN)
        network = {"model": f"{file}:Coloured", "kernels": "torch"}
        made = sprat.train(CONFIG, network, dataset=grey, output=tmp_path / "run", quiet=True)
        assert made.results["channels"] == 3
        with pytest.raises(SpratError, match="so that its constructor takes in_channels"):
            sprat.train(
                CONFIG, network | {"pictures.channels": 1}, dataset=grey, output=tmp_path / "no",
                quiet=True,
            )  # fmt: skip

    def test_teacher_with_other_channels_is_refused(
        self, run: Path, mixed: Path, tmp_path: Path
    ) -> None:
        taught = {"distill.teacher": [str(run)], "pictures.side": 16}
        with pytest.raises(SpratError, match="expects 1-channel images, but those of"):
            sprat.train(CONFIG, taught, dataset=mixed, output=tmp_path / "run", quiet=True)

    def test_older_runs_have_three(self) -> None:
        values = CONFIG.to_dict()
        assert Config.recorded(values, "here").pictures.channels == "auto"
        del values["pictures"]["channels"]
        assert Config.recorded(values, "here").pictures.channels == 3


def test_summary_and_check_support_one_channel(run: Path, here: Here) -> None:
    found = json.loads(here("summary", "SpratT", "--channels", 1, "--json").stdout)
    assert (found["channels"], found["image_bytes"]) == (1, 1024)
    done = here("check", "SpratT", "--channels", 1, "--side", 16, "--max-ram", "64K")
    assert done.returncode == 0
    assert "The image (256 bytes)" in " ".join(done.stdout.split())
    assert "expects 1-channel images" in here("summary", run, "--channels", 3).stderr
