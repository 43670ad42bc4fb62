"""One picture file as a network is to see it: any size and mode."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sprat.errors import SpratError


def read_picture(path: Path, side: int) -> Tensor:
    """A picture as the network is to see it: uint8, 3 x side x side.

    Turned as its EXIF says, transparency laid on white, wider greys brought to 8 bits, the middle
    square taken and resized with antialiasing. A picture of that size already stays as it is.

    Raises:
        SpratError: the file is no picture, damaged, or larger than Pillow deems safe.
    """
    with bombs_as_errors():
        return decode(path, side)


@contextmanager
def bombs_as_errors() -> Iterator[None]:
    """Within it `decode` refuses what Pillow only warns of; for all threads of the process."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode(path: Path, side: int) -> Tensor:
    """`read_picture` for threads, which must not each set the process's warnings: call it within
    one `bombs_as_errors`."""
    try:
        with Image.open(path) as image:
            image.load()
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpratError(f"{path} has too many pixels to be safe: {error}") from error
    except Exception as error:  # a damaged file raises anything
        raise SpratError(f"{path} cannot be read as a picture: {error}") from error
    edge = min(rgb.size)
    left, top = (rgb.width - edge) // 2, (rgb.height - edge) // 2
    square = rgb.crop((left, top, left + edge, top + edge))
    resized = square.resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):  # these do not say what white is: the narrowest usual range
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
