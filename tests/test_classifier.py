"""Tests of reading pictures in all forms and of classifying them."""

import os
import socket
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import sprat
from sprat import Classifier, SpratError
from sprat.classifier import find_pictures, to_pixels
from sprat.data.picture import read_picture
from sprat.serve.decoding import decode
from sprat.serve.limits import Limits


def test_picture_of_the_right_size_is_unchanged(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    assert np.array_equal(read_picture(tmp_path / "x.png", 32).permute(1, 2, 0).numpy(), pixels)


def test_16_bit_grey_is_scaled_to_8_bits(tmp_path: Path) -> None:
    grey = np.full((32, 32), 300 * 100, dtype=np.uint16)
    Image.fromarray(grey).save(tmp_path / "x.png")
    assert (read_picture(tmp_path / "x.png", 32) == 30000 >> 8).all()


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [("I", 200, 200), ("I", 60_000, 233), ("F", 0.9, 229), ("F", 200, 200), ("F", 60_000, 233)],
)
def test_int_and_float_greys_use_narrowest_fitting_range(
    tmp_path: Path, mode: str, value: float, expected: int
) -> None:
    Image.new(mode, (32, 32), value).save(tmp_path / "x.tif")
    assert (read_picture(tmp_path / "x.tif", 32) == expected).all()


def test_transparency_is_composited_onto_white(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert (read_picture(tmp_path / "x.png", 32) == 255).all()
    palette = Image.new("P", (32, 32), 0)
    palette.putpalette([0, 0, 0, 10, 10, 10])
    palette.save(tmp_path / "p.png", transparency=0)
    assert (read_picture(tmp_path / "p.png", 32) == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), "black")
    image.paste("white", (0, 0, 64, 32))  # bright upper half
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "x.png", exif=exif)
    seen = read_picture(tmp_path / "x.png", 32)
    assert seen[:, :16].float().mean() < 5
    assert seen[:, 16:].float().mean() > 250


def _tiff(*entries: bytes, count: int | None = None) -> bytes:
    """Return EXIF data of one directory with these entries."""
    count = len(entries) if count is None else count
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", count) + b"".join(entries) + bytes(4)


UPSIDE_DOWN = struct.pack("<HHIHH", 0x0112, 3, 1, 3, 0)
DAMAGED = {
    "no TIFF": b"Exif\0\0no TIFF at all",
    "nothing": b"",
    "cut in the header": b"Exif\0\0II*",
    "cut in an entry": _tiff(UPSIDE_DOWN)[:-12],
    "beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "more entries than there are": _tiff(count=60_000),
    "a folder that is its own part": _tiff(struct.pack("<HHII", 0x8769, 4, 1, 8)),
    "an orientation of text": _tiff(struct.pack("<HHI4s", 0x0112, 2, 4, b"abc")),
    "of two numbers": _tiff(struct.pack("<HHIHH", 0x0112, 3, 2, 3, 3)),
    "of 99": _tiff(struct.pack("<HHIHH", 0x0112, 3, 1, 99, 0)),
}


@pytest.mark.filterwarnings("ignore:.*EXIF:UserWarning")  # from Pillow; the CLI hides it
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
@pytest.mark.parametrize("exif", DAMAGED.values(), ids=list(DAMAGED))
def test_damaged_exif_is_ignored(tmp_path: Path, suffix: str, exif: bytes) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.save(tmp_path / f"plain.{suffix}", lossless=True)
    image.save(tmp_path / f"x.{suffix}", exif=exif, lossless=True)
    plain = read_picture(tmp_path / f"plain.{suffix}", 16)
    assert torch.equal(read_picture(tmp_path / f"x.{suffix}", 16), plain)
    content = (tmp_path / f"x.{suffix}").read_bytes()
    assert torch.equal(decode(content, 16, Limits()), plain)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_valid_orientation_applies_in_damaged_exif(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16))
    image.putpixel((0, 0), (255, 255, 255))
    beyond = struct.pack("<HHII", 0x010F, 2, 4_000, 4_000_000)
    image.save(tmp_path / "x.png", exif=_tiff(UPSIDE_DOWN, beyond))
    assert read_picture(tmp_path / "x.png", 16)[:, 15, 15].tolist() == [255] * 3


def test_special_files_are_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "link.png").symlink_to(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    kinds = {"pipe": "named pipe", "link": "named pipe", "zero": "device", "folder": "folder"}
    for name, kind in kinds.items():
        with pytest.raises(SpratError, match=f"{name}.png cannot be .*: it is a {kind}"):
            read_picture(tmp_path / f"{name}.png", 16)
    with pytest.raises(SpratError, match=r"socket cannot be .*: it is a socket"):
        read_picture(tmp_path / "socket", 16)
    found = [path.name for path in find_pictures([tmp_path])]
    assert found == ["link.png", "pipe.png", "socket", "zero.png"], "refused, not skipped"


def test_side_above_65535_pixels_is_refused(tmp_path: Path) -> None:
    Image.new("1", (1, 100_000)).save(tmp_path / "x.png")
    with pytest.raises(SpratError, match=r"too many pixels .*: 1 x 100,000, at most 65,535 on a"):
        read_picture(tmp_path / "x.png", 16)


def test_large_compressed_png_text_is_refused(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("x", "0" * 5_000_000, zip=True)
    Image.new("1", (9, 9)).save(tmp_path / "x.png", pnginfo=text)
    with pytest.raises(SpratError, match="cannot be read as a picture: "):
        read_picture(tmp_path / "x.png", 16)


def test_unsupported_formats_named_png_are_refused(tmp_path: Path) -> None:
    for name in ("x.tga", "x.ico", "x.jp2", "x.eps", "x.pcx"):
        Image.new("RGB", (32, 32)).save(tmp_path / name)
        (tmp_path / name).rename(tmp_path / "x.png")
        with pytest.raises(SpratError, match="it is not one of PNG, JPEG, "):
            read_picture(tmp_path / "x.png", 16)


def test_oblong_picture_is_centre_cropped(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    image.save(tmp_path / "x.png")
    seen = read_picture(tmp_path / "x.png", 16)
    assert seen.shape == (3, 16, 16)
    assert torch.equal(
        seen, torch.tensor([0, 0, 255], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16)
    )


def test_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (2_000, 2_000)).save(tmp_path / "x.png")
    for allowed in (3_000_000, 1_000_000):  # Pillow warns above this and raises above twice this
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", allowed)
        with pytest.raises(SpratError, match="too many pixels"):
            read_picture(tmp_path / "x.png", 32)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3_000_000)
    warnings.simplefilter("ignore")  # pytest sets "error"
    with pytest.raises(SpratError, match="too many pixels"):
        read_picture(tmp_path / "x.png", 32)


PIXELS = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
BATCH = torch.from_numpy(PIXELS).permute(2, 0, 1)[None]  # 1 x 3 x 32 x 32


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Same picture in every form that a classifier accepts."""
    path = tmp_path_factory.mktemp("pictures") / "x.png"
    Image.fromarray(PIXELS).save(path)
    return {
        "path": path,
        "str": str(path),
        "PIL": Image.fromarray(PIXELS),
        "array": PIXELS,
        "arrays": PIXELS[None],
        "tensor": BATCH[0],
        "tensors": BATCH,
        "list": [PIXELS],
        "generator": (each for each in [path]),
        "not contiguous": np.asfortranarray(PIXELS),
        "read-only": np.frombuffer(PIXELS.tobytes(), np.uint8).reshape(32, 32, 3),
    }


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return sprat.load(device="cpu")


def test_every_form_of_a_picture_gives_the_same_pixels(forms: dict[str, Any]) -> None:
    for name, form in forms.items():
        assert torch.equal(to_pixels(form, 32), BATCH), name


def test_forms_and_sizes_can_be_mixed(forms: dict[str, Any], classifier: Classifier) -> None:
    big = np.zeros((50, 70, 3), dtype=np.uint8)
    labels, probabilities = classifier([forms["path"], big, BATCH, Image.new("L", (9, 9))])
    assert len(labels) == 4
    assert probabilities.shape == (4, 10)
    assert probabilities.dtype == torch.float32
    assert torch.allclose(probabilities.sum(1), torch.ones(4))
    assert labels == [classifier.classes[i] for i in probabilities.argmax(1)]
    assert labels[0] == labels[2]


def test_every_form_is_resized_alike(tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    expected = read_picture(tmp_path / "x.png", 32)
    for form in (pixels, torch.from_numpy(pixels).permute(2, 0, 1), Image.fromarray(pixels)):
        assert torch.equal(to_pixels(form, 32)[0], expected)


def test_grey_arrays_are_accepted() -> None:
    grey = np.arange(1024, dtype=np.uint32).reshape(32, 32).astype(np.uint8)
    expected = torch.from_numpy(grey).expand(1, 3, 32, 32)
    assert torch.equal(to_pixels(grey, 32), expected)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (PIXELS / 255, "float64 of shape"),
        (BATCH.float(), "float32 of shape"),
        (PIXELS.transpose(2, 0, 1), "height x width x 3"),
        (torch.from_numpy(PIXELS), "3 x height x width"),
        (np.zeros((0, 0, 3), np.uint8), "no pixel"),
        (BATCH[:0], "no pixel"),
        ([], "no picture to classify"),
        (7, "7 is not a picture"),
        ([None], "None is not a picture"),
        ("not-there.png", "not-there.png"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_invalid_pictures_are_refused(images: Any, message: str) -> None:
    with pytest.raises(SpratError, match=message):
        to_pixels(images, 32)


def test_tta_averages_the_views(classifier: Classifier) -> None:
    mirrored = (classifier(BATCH).probabilities + classifier(BATCH.flip(3)).probabilities) / 2
    assert torch.allclose(classifier(BATCH, tta=2).probabilities, mirrored, atol=1e-6)
    with pytest.raises(SpratError, match="views"):
        classifier(BATCH, tta=3)


def test_threads_share_a_classifier(classifier: Classifier, forms: dict[str, Any]) -> None:
    asked = [BATCH.roll(shift, 3) for shift in range(24)]
    alone = [classifier(each).probabilities for each in asked]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda each: classifier(each).probabilities, asked))
        paths = list(pool.map(lambda _: classifier(forms["path"]).labels, range(24)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert paths == [classifier(BATCH).labels] * 24


def test_model_loads_by_run_file_or_name(small_run: Path) -> None:
    by_run, by_file = sprat.load(small_run), sprat.load(str(small_run / "model.safetensors"))
    assert torch.equal(by_run(BATCH).probabilities, by_file(BATCH).probabilities)
    assert sprat.load("optimized-cifar10-net-200k").name == "OptimizedCIFAR10Net200K"
    assert by_run.about["recipe"] == "small"
    with pytest.raises(SpratError, match="did you mean 'OptimizedCIFAR10Net200K'"):
        sprat.load("OptimizedCIFAR10Net")
