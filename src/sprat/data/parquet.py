"""CIFAR-10 in Hugging Face's parquet files, with a column of PNG files and one of labels."""

import importlib.util
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sprat.data.pickles import refusal
from sprat.errors import SpratError

SPLITS = ("train", "test")
SIDE = 32  # pixels


def find(folder: Path) -> Path | None:
    """Return the folder with `train-*.parquet` and `test-*.parquet`: `folder` or its plain_text,
    else None."""
    places = (folder, folder / "plain_text")
    return next((p for p in places if all(files_of(p, split) for split in SPLITS)), None)


def files_of(place: Path, split: str) -> list[Path]:
    """Return one split's files in a folder, sorted."""
    return sorted(path for path in place.glob(f"{split}-*.parquet") if path.is_file())


def read(place: Path, split: str, count: int, classes: int) -> tuple[Tensor, Tensor]:
    """Read the images of one split, in the order of the files.

    Args:
        count: number of images that the split must have.
        classes: number of classes.

    Returns:
        images: uint8, count x 3 x 32 x 32. targets: int64, count.

    Raises:
        SpratError: a file is damaged or contains something else, or pyarrow is not installed.
    """
    require_pyarrow()
    rows: list[tuple[np.ndarray, int]] = []
    for path in files_of(place, split):
        content = path.read_bytes()
        try:
            rows += [_decode(row) for row in _rows(content, count)]
        except Exception as error:  # damaged files raise all sorts
            why = f"is damaged or of another kind ({type(error).__name__}: {error})"
            raise refusal(str(path), why) from error
    if len(rows) != count:
        raise refusal(f"{place}/{split}-*.parquet", f"hold {len(rows):,} images, not {count:,}")
    if not all(0 <= label < classes for _, label in rows):
        raise refusal(f"{place}/{split}-*.parquet", f"hold labels beyond 0 to {classes - 1}")
    images = np.stack([image for image, _ in rows]).transpose(0, 3, 1, 2)
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    return torch.from_numpy(np.ascontiguousarray(images)), labels


def require_pyarrow() -> None:
    """Check that pyarrow is installed; raise a SpratError that says how to install it."""
    if importlib.util.find_spec("pyarrow") is None:
        raise SpratError(
            "Reading parquet files needs pyarrow, which is not installed. Give another form of "
            "the dataset, or install pyarrow with pip install 'sprat[parquet]'"
        )


def _rows(content: bytes, most: int) -> list[dict[str, Any]]:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(pyarrow.BufferReader(content)) as file:
        if file.metadata.num_rows > most:
            raise ValueError(f"{file.metadata.num_rows:,} rows, expected at most {most:,}")
        return file.read(columns=["img", "label"]).to_pylist()


def _decode(row: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Return the pixels of a row, uint8 32 x 32 x 3, and its label."""
    label = row["label"]
    if type(label) is not int:
        raise ValueError(f"a label is {label!r}")
    with Image.open(io.BytesIO(row["img"]["bytes"]), formats=["PNG"]) as image:
        if image.size != (SIDE, SIDE) or image.mode != "RGB":
            raise ValueError(f"a picture is {image.mode} {image.size}, expected RGB {SIDE, SIDE}")
        return np.array(image), label
