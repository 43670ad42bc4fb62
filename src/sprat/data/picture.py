"""One picture file as a network is to see it: any size and mode."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sprat.errors import SpratError


def read_picture(path: Path, side: int) -> Tensor:
    """A picture file as the network is to see it: uint8, 3 x side x side.

    Raises:
        SpratError: the file is no picture, damaged, or larger than Pillow deems safe.
    """
    try:
        with Image.open(path) as image:
            pixels = image.width * image.height
            if Image.MAX_IMAGE_PIXELS and pixels > Image.MAX_IMAGE_PIXELS:  # Pillow only warns
                raise Image.DecompressionBombError(
                    f"{image.width:,} x {image.height:,}, at most {Image.MAX_IMAGE_PIXELS:,} in all"
                )
            image.load()
            return fit(ImageOps.exif_transpose(image), side)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpratError(f"{path} has too many pixels to be safe: {error}") from error
    except Exception as error:  # a damaged file raises anything
        raise SpratError(f"{path} cannot be read as a picture: {error}") from error


def fit(image: Image.Image, side: int) -> Tensor:
    """An image of any size and mode as the network is to see it: uint8, 3 x side x side.

    Transparency is laid on white, wider greys are brought to 8 bits, the middle square is taken
    and resized with antialiasing. RGB of that size already stays as it is.
    """
    rgb = _to_rgb(image)
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
