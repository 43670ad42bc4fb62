"""Picture files: which files are pictures, and how one is read for a network."""

import io
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, UnidentifiedImageError
from torch import Tensor

from sprat.data.imageset import to_channels
from sprat.errors import SpratError

# Format by suffix; whatever a file contains, none of Pillow's other readers is tried.
SUFFIXES = {
    ".png": "PNG", ".apng": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG",
    ".jfif": "JPEG", ".mpo": "JPEG", ".webp": "WEBP", ".avif": "AVIF", ".gif": "GIF",
    ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM", ".pbm": "PPM",
    ".pnm": "PPM",
}  # fmt: skip
FORMATS = tuple(dict.fromkeys(SUFFIXES.values()))
MAX_SIDE = 65_535  # pixels, as in JPEG; a row of millions would take gigabytes
# Files and folders that operating systems leave among pictures, in lower case.
_LEFT_BY_SYSTEMS = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir"})
_UPRIGHT = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@dataclass(frozen=True)
class Embedded:
    """A picture file inside another file.

    name: where it is, for messages. content: its bytes.
    """

    name: str
    content: bytes

    def __str__(self) -> str:
        return self.name


Picture = Path | Embedded


def is_skipped(name: str) -> bool:
    """Return whether files and folders of this name are ignored: hidden, or left by an operating
    system."""
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def is_picture(path: Path) -> bool:
    """Return whether a file is meant to be a picture, by its suffix or else by its content.

    Also true for a pipe or a device, so that `read_picture` refuses it.
    """
    if path.suffix.lower() in SUFFIXES:
        return True
    try:
        _require_file(path)
        with Image.open(path, formats=FORMATS):
            return True
    except (SpratError, Image.DecompressionBombError):
        return True
    except Exception:  # not a picture, or damaged beyond recognition
        return False


def read_picture(path: Picture, side: int, channels: int = 3) -> Tensor:
    """Read a picture file as network input: uint8, channels x side x side.

    Raises:
        SpratError: the file is not a picture, not a regular file, damaged, or larger than is safe.
    """
    try:
        if isinstance(path, Path):
            _require_file(path)
        file = path if isinstance(path, Path) else io.BytesIO(path.content)
        with Image.open(file, formats=FORMATS) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:  # Pillow only warns
                raise Image.DecompressionBombError(
                    f"{image.width:,} x {image.height:,}, at most {Image.MAX_IMAGE_PIXELS:,} in all"
                )
            if max(image.size) > MAX_SIDE:
                raise Image.DecompressionBombError(
                    f"{image.width:,} x {image.height:,}, at most {MAX_SIDE:,} on a side"
                )
            image.load()
            return fit(upright(image), side, channels)
    except SpratError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpratError(f"{path} has too many pixels to be safe: {error}") from error
    except UnidentifiedImageError as error:  # Pillow's own message repeats the path
        formats = ", ".join(FORMATS)
        raise SpratError(
            f"{path} cannot be read as a picture: it is not one of {formats}"
        ) from error
    except Exception as error:  # damaged files raise all sorts
        why = (isinstance(error, OSError) and error.strerror) or error
        raise SpratError(f"{path} cannot be read as a picture: {why}") from error


def read_size(path: Picture) -> tuple[int, int]:
    """Return width and height of a picture file that `read_picture` can read, from its header."""
    file = path if isinstance(path, Path) else io.BytesIO(path.content)
    with Image.open(file, formats=FORMATS) as image:
        return image.size


def upright(image: Image.Image) -> Image.Image:
    """Return an image rotated as its EXIF says; unchanged if EXIF is absent or damaged."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF raises all sorts; the pixels are sound
        turn = None
    return image if turn is None else image.transpose(turn)


def _require_file(path: Path) -> None:
    """Refuse a file that would block when opened, or that has no end.

    Raises:
        SpratError: it is a pipe, a socket, a device or a folder.
        OSError: it does not exist or is not accessible.
    """
    kind = stat.S_IFMT(path.stat().st_mode)
    if kind != stat.S_IFREG:
        raise SpratError(
            f"{path} cannot be read as a picture: it is {_KINDS.get(kind, 'not a file')}"
        )


def fit(image: Image.Image, side: int, channels: int = 3) -> Tensor:
    """Convert an image of any size and mode to network input: uint8, channels x side x side.

    Transparency is blended onto white, greys of more than 8 bits are scaled to 8, and the central
    square is cropped and resized with antialiasing. For one channel, colour is then converted to
    grey (see `imageset.to_channels`). An RGB image of that size stays as it is.
    """
    rgb = _to_rgb(image)
    if rgb.size != (side, side):
        edge = min(rgb.size)
        left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
        square = rgb.crop((left, top, left + edge, top + edge))
        rgb = square.resize((side, side), Image.Resampling.BICUBIC)
    return to_channels(torch.from_numpy(np.array(rgb)).permute(2, 0, 1), channels)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # white is undefined in these: take the narrowest usual range
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64)).clip(0)
        brightest = grey.max(initial=0)
        ranges = (1, 255, 65535) if image.mode == "F" else (255, 65535)
        white = next((top for top in ranges if brightest <= top), brightest)
        image = Image.fromarray((grey * (255 / white)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
