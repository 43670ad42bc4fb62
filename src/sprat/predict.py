"""Names what pictures show: any size and mode, single files or folders."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sprat.checkpoint import Model
from sprat.data.picture import read_picture
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
