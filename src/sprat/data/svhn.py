"""SVHN, street-view house numbers cropped to their digits (Netzer et al. 2011).

http://ufldl.stanford.edu/housenumbers/
"""

from __future__ import annotations

import importlib.util
import io
from typing import TYPE_CHECKING

from sprat.data.packed import state_of
from sprat.deferred import deferred
from sprat.errors import SpratError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch

    from sprat.data import fetch, imageset, pickles
    from sprat.data.fetch import Log, Progress
    from sprat.data.imageset import ImageSet
else:
    np, torch = deferred("numpy"), deferred("torch")
    fetch, imageset = deferred("sprat.data.fetch"), deferred("sprat.data.imageset")
    pickles = deferred("sprat.data.pickles")

TITLE = "SVHN"
ADDRESS = "http://ufldl.stanford.edu/housenumbers/"  # the official one
TRAIN, TEST = "train_32x32.mat", "test_32x32.mat"
FILE_MD5S = {
    TRAIN: "e26dedcc434d2e4c54c9b2d4a06d8373",
    TEST: "eb5a983be6a315427106f1b164d9cef3",
}
SIZES = {TRAIN: 182_040_794, TEST: 64_275_384}  # bytes
COUNTS = {TRAIN: 73_257, TEST: 26_032}  # images
PLACES = (f"{TRAIN} with {TEST}",)
FETCHED = (TRAIN, TEST)
CLASSES = tuple("0123456789")


def find(folder: Path) -> Path | None:
    """Return `folder` if both files are in it, else None."""
    return folder if all((folder / name).is_file() for name in FILE_MD5S) else None


def load(place: Path) -> tuple[ImageSet, ImageSet]:
    """Read the training and test sets from what `find` returned.

    Returns:
        73,257 training images and 26,032 test images, in the order of the files.

    Raises:
        SpratError: a file is damaged or does not contain SVHN, or scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise SpratError(
            "Reading SVHN needs scipy, which is not installed. Install it with pip install "
            "'sprat[svhn]'"
        )
    return _read(place / TRAIN), _read(place / TEST)


def download(
    folder: Path,
    progress: Progress = lambda done, total: None,
    log: Log = lambda text: None,
) -> Path:
    """Download both files into `folder`; return it.

    Raises:
        SpratError: a file was not available or cannot be written.
    """
    for name, md5 in FILE_MD5S.items():
        fetch.fetch([ADDRESS + name], folder / name, md5, SIZES[name], progress, log)
    return folder


def verify(folder: Path) -> dict[Path, str]:
    """Return the state of both files in `folder`, "ok", "damaged" or "missing", by published md5;
    empty if neither is there."""
    if not any((folder / name).exists() for name in FILE_MD5S):
        return {}
    return {folder / name: state_of(folder / name, md5) for name, md5 in FILE_MD5S.items()}


def _read(path: Path) -> ImageSet:
    """Read a MATLAB file: X is uint8, 32 x 32 x 3 x N; y is N x 1, with 10 for the digit 0."""
    from scipy.io import loadmat

    content = path.read_bytes()
    try:
        held = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    except Exception as error:  # damaged files raise all sorts
        why = f"is damaged or not a MATLAB file ({type(error).__name__}: {error})"
        raise pickles.refusal(str(path), why) from error
    count = COUNTS[path.name]
    pixels, digits = (np.asarray(held.get(name)) for name in ("X", "y"))
    shape = (32, 32, 3, count)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise pickles.refusal(str(path), f"holds an X that is not uint8 of shape {shape}")
    if digits.shape != (count, 1) or not np.isin(digits, np.arange(1, 11)).all():
        raise pickles.refusal(str(path), f"does not hold {count:,} labels y from 1 to 10")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    targets = torch.from_numpy(digits[:, 0].astype(np.int64) % 10)
    return imageset.ImageSet(torch.from_numpy(images), targets, CLASSES)
