"""Names what pictures show: any size and mode, single files or folders."""

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from sprat.checkpoint import Model
from sprat.errors import SpratError
from sprat.evaluate import BATCH, predict_probabilities

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm"})


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the pictures (by suffix) directly in each folder, sorted.

    Raises:
        SpratError: a path does not exist, or a folder holds no picture.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise SpratError(
                    f"the folder {path} holds no picture ({', '.join(sorted(SUFFIXES))})"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise SpratError(f"there is no file or folder {path}")
    return found


def read_picture(path: Path, side: int) -> Tensor:
    """A picture as the network is to see it: uint8, 3 x side x side.

    Turned as its EXIF says, transparency laid on white, wider greys brought to 8 bits, the middle
    square taken and resized with antialiasing. A picture of that size already stays as it is.

    Raises:
        SpratError: the file is no picture, damaged, or larger than Pillow deems safe.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                image.load()
                rgb = _to_rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise SpratError(f"{path} cannot be read as a picture: {error}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise SpratError(f"{path} has too many pixels to be safe: {error}") from error
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


def predict_pictures(
    model: Model, paths: Sequence[Path], top: int
) -> Iterator[dict[str, Any] | SpratError]:
    """Yields for each path, in order, what it shows or why it could not be read.

    Args:
        top: how many classes, the most probable first.

    Yields:
        {"file": str, "predictions": [{"class": str, "probability": float}, …]}, or the error.
    """
    remaining = iter(paths)
    while chunk := list(islice(remaining, BATCH)):
        outcomes = [_read_or_error(path, model.side) for path in chunk]
        pictures = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
        if pictures:
            stacked = torch.stack(pictures)
            rows = iter(predict_probabilities(model.network, stacked, model.normalization))
        for path, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, SpratError):
                yield outcome
                continue
            probabilities, labels = next(rows).topk(min(top, len(model.classes)))
            yield {
                "file": str(path),
                "predictions": [
                    {"class": model.classes[label], "probability": probability}
                    for probability, label in zip(
                        probabilities.tolist(), labels.tolist(), strict=True
                    )
                ],
            }


def _read_or_error(path: Path, side: int) -> Tensor | SpratError:
    try:
        return read_picture(path, side)
    except SpratError as error:
        return error
