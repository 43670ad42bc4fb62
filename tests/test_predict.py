"""Pictures on their way to the network."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sprat.data.picture import read_picture
from sprat.errors import SpratError


def test_a_picture_of_the_right_size_stays_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png", 32).permute(1, 2, 0).numpy(), pixels)


def test_16_bit_grey_keeps_its_greys(tmp_path: Path) -> None:
    grey = np.full((32, 32), 300 * 100, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert (read_picture(tmp_path / "x.png", 32) == 30000 >> 8).all()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("I", 200, 200), ("I", 60_000, 233), ("F", 0.9, 229), ("F", 200, 200), ("F", 60_000, 233)],
)
def test_wide_greys_are_read_in_the_narrowest_usual_range(
    tmp_path: Path, mode: str, value: float, expected: int
) -> None:
    Image.new(mode, (32, 32), value).save(tmp_path / "x.tif")
    assert (read_picture(tmp_path / "x.tif", 32) == expected).all()


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (read_picture(tmp_path / "x.png", 32) == 255).all()
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 10, 10, 10])
    palette.save(tmp_path / "p.png", transparency=0)
    assert (read_picture(tmp_path / "p.png", 32) == 255).all()


def test_a_turned_photograph_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))  # bright above
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    seen = read_picture(tmp_path / "x.png", 32)
    assert seen[:, :16].float().mean() < 5
    assert seen[:, 16:].float().mean() > 250


def test_the_middle_square_of_an_oblong_picture_is_seen(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    image.save(tmp_path / "x.png")
    seen = read_picture(tmp_path / "x.png", 16)
    assert seen.shape == (3, 16, 16)
    assert torch.equal(
        seen, torch.tensor([0, 0, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    )


def test_a_picture_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (2_000, 2_000)).save(tmp_path / "x.png")
    for allowed in (3_000_000, 1_000_000):  # Pillow warns above it and raises above its double
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
        with pytest.raises(SpratError, match="too many pixels"):
            read_picture(tmp_path / "x.png", 32)
