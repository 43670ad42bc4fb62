"""Hostile folders of pictures: links, pipes, permissions, odd names, odd pictures or none."""

import contextlib
import io
import os
import random
import shutil
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from faults.cases import Kind
from faults.own import Ends, Variant, flip, kind
from faults.pictures import chunk
from faults.sound import Sound
from faults.world import World


def folders(world: World) -> Kind:
    """Folders with something wrong or odd, for every command that reads folders."""
    sound = Sound(world)
    return kind(world, sound, [*_arranged(sound), *_with_a_picture(sound)], "predict")


def _arranged(sound: Sound) -> Iterator[Variant]:
    def variant(name: str, ends: Ends, change: Callable[[Path, random.Random], object]) -> Variant:
        def make(folder: Path, rng: random.Random) -> Path:
            place = sound.copy(folder / "set")
            change(place, rng)
            return place

        return Variant(name, make, ends)

    def picture(place: Path, name: str) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sound.folder / "class-0" / "0.png", place / name)

    def emptied(place: Path) -> Path:
        shutil.rmtree(place)
        place.mkdir()
        return place

    yield variant("as it should be", "same", lambda f, r: None)
    yield variant("empty", "refused", lambda f, r: emptied(f))
    yield variant("one class", "refused", lambda f, r: picture(emptied(f), "one/0.png"))
    yield variant("an empty class", "refused", lambda f, r: (f / "class-3").mkdir())
    yield variant("files alone", "refused", lambda f, r: picture(emptied(f), "0.png"))
    yield variant("a loop", "refused", lambda f, r: (f / "loop").symlink_to(f))
    yield variant("a loop in a class", "refused", lambda f, r: (f / "class-0/l").symlink_to(".."))
    yield variant("a link to itself", "same", lambda f, r: (f / "loop").symlink_to("loop"))
    yield variant(
        "a picture linked to itself",
        "unreadable",
        lambda f, r: (f / "class-0/l.png").symlink_to("l.png"),
    )
    yield variant(
        "a class linked to another", "used", lambda f, r: (f / "link").symlink_to("class-0")
    )
    yield variant(
        "a broken link", "unreadable", lambda f, r: (f / "class-0/l.png").symlink_to("x.png")
    )
    yield variant(
        "a link to a device",
        "unreadable",
        lambda f, r: (f / "class-0/l.png").symlink_to("/dev/zero"),
    )
    yield variant("a pipe", "unreadable", lambda f, r: os.mkfifo(f / "class-0/pipe.png"))
    yield variant("a pipe next to classes", "same", lambda f, r: os.mkfifo(f / "pipe"))
    yield variant("a table that is a pipe", "same", lambda f, r: os.mkfifo(f / "labels.csv"))
    yield variant("pipes alone", "refused", lambda f, r: os.mkfifo(emptied(f) / "labels.csv"))
    yield variant("a shard that is a pipe", "refused", lambda f, r: os.mkfifo(f / "train.parquet"))
    yield variant("a shard that is a folder", "any", lambda f, r: (f / "train.parquet").mkdir())
    yield variant(
        "a shard that is no shard", "refused", lambda f, r: (f / "a.parquet").write_text("x")
    )
    yield variant("a table that is a folder", "refused", lambda f, r: (f / "labels.csv").mkdir())
    yield variant("a socket", "unreadable", lambda f, r: _listen(f / "class-0"))
    yield variant("a socket next to classes", "same", lambda f, r: _listen(f))
    yield variant("a class without rights", "any", lambda f, r: (f / "class-1").chmod(0))
    yield variant("a picture without rights", "any", lambda f, r: (f / "class-1/0.png").chmod(0))
    yield variant("no rights", "any", lambda f, r: f.chmod(0))
    for name in (".hidden", "Thumbs.db", "desktop.ini", "__MACOSX", ".DS_Store", "@eaDir"):
        yield variant(
            f"{name} as a file", "same", lambda f, r, n=name: (f / "class-1" / n).write_text("x")
        )
        yield variant(f"{name} as a folder", "same", lambda f, r, n=name: picture(f, f"{n}/0.png"))
    yield variant(
        "a text in a class", "unreadable", lambda f, r: (f / "class-1/README").write_text("x")
    )
    yield variant("a text next to classes", "same", lambda f, r: (f / "README").write_text("x"))
    yield variant("classes that differ in case", "used", lambda f, r: picture(f, "Class-0/0.png"))
    yield variant("files that differ in case", "used", lambda f, r: picture(f, "class-0/0.PNG"))
    yield variant("a folder in a class", "refused", lambda f, r: picture(f, "class-0/more/0.png"))
    yield variant("parts in a class", "refused", lambda f, r: picture(f, "class-0/train/0.png"))
    yield variant("a part next to classes", "refused", lambda f, r: picture(f, "val/class-0/0.png"))
    yield variant(
        "one part twice",
        "refused",
        lambda f, r: [
            picture(emptied(f), "a"),
            *(picture(f, f"{p}/{c}/0.png") for p in ("val", "Valid", "train") for c in "ab"),
        ],
    )
    yield variant(
        "a class in val alone",
        "refused",
        lambda f, r: [
            emptied(f),
            *(picture(f, n) for n in ("train/a/0.png", "train/b/0.png", "val/c/0.png")),
        ],
    )
    yield variant("test alone", "refused", lambda f, r: picture(emptied(f), "test/a/0.png"))
    yield variant(
        "a part without classes",
        "refused",
        lambda f, r: [
            emptied(f),
            picture(f, "train/a/0.png"),
            picture(f, "train/b/0.png"),
            picture(f, "test/0.png"),
        ],
    )
    yield variant(
        "a picture of each class",
        "any",
        lambda f, r: [emptied(f), picture(f, "a/0.png"), picture(f, "b/0.png")],
    )
    yield variant(
        "two thousand classes",
        "any",
        lambda f, r: [emptied(f), *(picture(f, f"{n}/0.png") for n in range(2_000))],
    )
    yield variant(
        "a folder 60 deep", "refused", lambda f, r: picture(emptied(f), "a/" * 60 + "0.png")
    )
    yield variant("a path of 4,000 bytes", "refused", lambda f, r: _deep(emptied(f)))
    for name in (
        b"\xff\xfe",
        b"\x1b[31m",
        b"a\nb",
        "\u202eabc".encode(),
        b"a" * 255,
        b"-rf",
        b" ",
        b"a,b",
        b'"',
        b"=1+1",
        b"<b>",
        b"CON",
        "é".encode("utf-16-le")[:1] + b"\x80",
    ):

        def named(f: Path, r: random.Random, name: bytes = name) -> None:
            folder = Path(os.fsdecode(os.fsencode(f) + b"/" + name))
            folder.mkdir()
            shutil.copy(f / "class-0" / "0.png", folder)

        def file_named(f: Path, r: random.Random, name: bytes = name) -> None:
            to = os.fsencode(f) + b"/class-2/" + name[:251] + b".png"
            shutil.copy(f / "class-0" / "0.png", os.fsdecode(to))

        yield variant(f"a class {name!r:.40}", "any", named)
        yield variant(f"a picture {name!r:.40}", "used", file_named)


def _listen(folder: Path) -> None:
    """Leave a socket in a folder, even if its full path is too long for a socket."""
    with contextlib.chdir(folder), socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")


def _deep(folder: Path) -> None:
    with contextlib.chdir(folder):
        for _ in range(40):
            Path("a" * 200).mkdir()
            os.chdir("a" * 200)


# --- pictures -----------------------------------------------------------------------------------


def _saved(image: Image.Image, kind: str, **more: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **more)
    return file.getvalue()


def _noise(mode: str = "RGB", size: tuple[int, int] = (20, 30)) -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode)


def _exif(orientation: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _frames(kind: str) -> bytes:
    frames = [Image.new("RGB", (8, 8), (n * 40, 0, 0)) for n in range(5)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def _png_of(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and has no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"x\x9c\3\0\0\0\0\1") + chunk(b"IEND", b"")
    )


PICTURES: list[tuple[str, Ends, bytes]] = [
    ("1 x 1.png", "used", _saved(Image.new("RGB", (1, 1)), "PNG")),
    ("50,000 x 1.png", "used", _saved(Image.new("L", (50_000, 1)), "PNG")),
    ("70,000 x 1.png", "unreadable", _saved(Image.new("L", (70_000, 1)), "PNG")),
    ("0 bytes.jpg", "unreadable", b""),
    ("text.png", "unreadable", b"not a picture"),
    ("png.jpg", "used", _saved(_noise(), "PNG")),
    ("a PDF.png", "unreadable", b"%PDF-1.4\n" + bytes(500)),
    ("PostScript.png", "unreadable", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
    ("an icon.png", "unreadable", _saved(_noise(size=(16, 16)), "ICO")),
    ("a PSD.jpg", "unreadable", b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3)),
    ("an SVG.png", "unreadable", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    ("a huge header.png", "unreadable", _png_of(2**31 - 1, 2**31 - 1)),
    ("a header of 0 pixels.png", "unreadable", _png_of(0, 0)),
    ("no pixels.png", "any", _png_of(10, 10)),
    ("animated.gif", "used", _frames("GIF")),
    ("animated.webp", "used", _frames("WEBP")),
    ("animated.png", "used", _frames("PNG")),
    ("pages.tif", "used", _frames("TIFF")),
    ("CMYK.jpg", "used", _saved(_noise("CMYK"), "JPEG")),
    ("grey.jpg", "used", _saved(_noise("L"), "JPEG")),
    ("bits.png", "used", _saved(_noise("1"), "PNG")),
    ("palette with transparency.png", "used", _saved(_noise("P"), "PNG", transparency=3)),
    ("transparent.png", "used", _saved(_noise("RGBA"), "PNG")),
    ("LA.png", "used", _saved(_noise("LA"), "PNG")),
    ("16 bits.png", "used", _saved(Image.new("I;16", (9, 9), 40_000), "PNG")),
    ("32 bits.tif", "used", _saved(Image.new("I", (9, 9), -70_000), "TIFF")),
    ("float.tif", "used", _saved(Image.fromarray(np.full((9, 9), np.nan, np.float32)), "TIFF")),
    ("infinite.tif", "used", _saved(Image.fromarray(np.full((9, 9), np.inf, np.float32)), "TIFF")),
    ("Lab.tif", "used", _saved(_noise().convert("RGB"), "TIFF")),
    ("damaged ICC.jpg", "used", _saved(_noise(), "JPEG", icc_profile=b"nonsense" * 20)),
    ("damaged ICC.png", "used", _saved(_noise(), "PNG", icc_profile=b"\xff" * 99)),
    (
        "damaged EXIF.jpg",
        "used",
        _saved(_noise(), "JPEG", exif=b"Exif\0\0" + b"II*\0\xff\xff\xff\xff"),
    ),
    *(
        (f"turned {n}.jpg", "used", _saved(_noise(), "JPEG", exif=_exif(n)))
        for n in (1, 6, 8, 0, 99)
    ),
    ("a long comment.png", "any", _saved(_noise(), "PNG") + bytes(1_000)),
]
SPOILT = {
    kind: _saved(_noise(), name)
    for kind, name in (
        ("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("webp", "WEBP"), ("bmp", "BMP"),
        ("tif", "TIFF"), ("ppm", "PPM"), ("avif", "AVIF"),
    )
}  # fmt: skip


def _with_a_picture(sound: Sound) -> Iterator[Variant]:
    def variant(name: str, ends: Ends, content: Callable[[random.Random], bytes]) -> Variant:
        def make(folder: Path, rng: random.Random) -> Path:
            place = sound.copy(folder / "set")
            (place / "class-0" / name).write_bytes(content(rng))
            return place

        return Variant(name, make, ends)

    for name, ends, content in PICTURES:
        yield variant(name, ends, lambda rng, content=content: content)
    for suffix, content in SPOILT.items():
        yield variant(f"cut.{suffix}", "any", lambda rng, content=content: _cut(content, rng))
        yield variant(
            f"changed.{suffix}",
            "any",
            lambda rng, content=content: flip(content, rng, rng.randrange(1, 5)),
        )
