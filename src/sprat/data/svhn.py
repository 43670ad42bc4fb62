"""SVHN, house numbers cropped to their digits (Netzer et al. 2011).

http://ufldl.stanford.edu/housenumbers/
"""

import importlib.util
import io
from pathlib import Path

import numpy as np
import torch

from sprat.data.fetch import Progress, Say, fetch
from sprat.data.imageset import ImageSet
from sprat.data.packed import judge
from sprat.data.pickles import refusal
from sprat.errors import SpratError

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
    """`folder`, if both files are in it; or None."""
    return folder if all((folder / name).is_file() for name in FILE_MD5S) else None


def load(place: Path) -> tuple[ImageSet, ImageSet]:
    """Reads the training and test sets from what `find` returned.

    Returns:
        73,257 training images and 26,032 test images, in the files' order.

    Raises:
        SpratError: a file is damaged or not what SVHN holds; or scipy is not installed.
    """
    if importlib.util.find_spec("scipy") is None:
        raise SpratError(
            "SVHN is read through scipy, which is not installed; install it with "
            "pip install 'sprat[svhn]'"
        )
    return _read(place / TRAIN), _read(place / TEST)


def download(
    folder: Path,
    progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
) -> Path:
    """Fetches both files into `folder`; returns it.

    Raises:
        SpratError: one cannot be had, or not be written.
    """
    for name, md5 in FILE_MD5S.items():
        fetch([ADDRESS + name], folder / name, md5, SIZES[name], progress, say)
    return folder


def verify(folder: Path) -> dict[Path, str]:
    """Both files in `folder`, "ok", "damaged" or "missing" by its published md5; nothing if
    neither is there."""
    if not any((folder / name).exists() for name in FILE_MD5S):
        return {}
    return {folder / name: judge(folder / name, md5) for name, md5 in FILE_MD5S.items()}


def _read(path: Path) -> ImageSet:
    """One MATLAB file: X is uint8, 32 x 32 x 3 x N; y is N x 1, and 10 stands for the digit 0."""
    from scipy.io import loadmat

    content = path.read_bytes()
    try:
        held = loadmat(io.BytesIO(content), variable_names=("X", "y"))
    except Exception as error:  # a damaged file raises anything
        why = f"is damaged or no MATLAB file ({type(error).__name__}: {error})"
        raise refusal(str(path), why) from error
    count = COUNTS[path.name]
    pixels, digits = (np.asarray(held.get(name)) for name in ("X", "y"))
    shape = (32, 32, 3, count)
    if pixels.dtype != np.uint8 or pixels.shape != shape:
        raise refusal(str(path), f"holds an X that is not uint8 of shape {shape}")
    if digits.shape != (count, 1) or not np.isin(digits, np.arange(1, 11)).all():
        raise refusal(str(path), f"does not hold {count:,} labels y from 1 to 10")
    images = np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))
    targets = torch.from_numpy(digits[:, 0].astype(np.int64) % 10)
    return ImageSet(torch.from_numpy(images), targets, CLASSES)
