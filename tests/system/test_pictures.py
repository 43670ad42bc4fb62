"""Test of the docs' pictures, drawn again."""

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pages import ROOT
from PIL import Image

from sprat.zoo import cards

SCRIPT = ROOT / "docs" / "pictures.py"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the pictures that the script draws without data."""
    if shutil.which("chromium") is None:
        pytest.skip("needs a browser: install Debian's package chromium")
    folder = tmp_path_factory.mktemp("drawn")
    subprocess.run(
        [sys.executable, str(SCRIPT), str(folder)], check=True, env=os.environ | {"SPRAT_DATA": ""}
    )
    return folder


def test_every_picture_is_drawn_and_shows_something(drawn: Path) -> None:
    committed = runpy.run_path(str(SCRIPT))["PICTURES"]
    assert {path.name for path in drawn.iterdir()} == {Path(name).name for name in committed}
    for name in committed:
        path = drawn / Path(name).name
        assert path.stat().st_size < 200_000, path
        with Image.open(path) as image, Image.open(ROOT / name) as before:
            # other fonts break lines differently
            for now, then in zip(image.size, before.size, strict=True):
                assert 0.8 * then < now < 1.25 * then, path
            shades = image.convert("L").getcolors()
            assert shades is not None
            assert max(count for count, _ in shades) < 0.97 * image.width * image.height, path
            assert len(shades) > 50, path


def test_pictures_name_the_best_model_and_its_accuracy(drawn: Path) -> None:
    best = cards()[0]
    for name in ("serve", "serve-phone", "report"):
        with Image.open(drawn / f"{name}.png") as image:
            words = image.text["Description"]  # type: ignore[attr-defined]
        assert best["name"] in words
        assert f"{100 * best['test']['top1']:.2f} %" in words
        assert f"{best['parameters']:,}" in words
