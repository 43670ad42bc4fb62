"""CIFAR-100, python version, with its 100 fine classes (Krizhevsky 2009).

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sprat.data.packed import Packed
from sprat.deferred import deferred

if TYPE_CHECKING:
    from pathlib import Path

    from sprat.data import fetch, imageset, pickles
    from sprat.data.fetch import Log, Progress
    from sprat.data.imageset import ImageSet
else:
    fetch, imageset = deferred("sprat.data.fetch"), deferred("sprat.data.imageset")
    pickles = deferred("sprat.data.pickles")

TITLE = "CIFAR-100"
MIRRORS = ("https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",)  # the official one
ARCHIVE_SIZE = 169_001_437  # bytes
FILE_MD5S = {
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
    "meta": "7973b15100ade9c7d40fb424638fde48",
}
PYTHON = Packed(
    "cifar-100-python",
    "cifar-100-python.tar.gz",
    "eb9058c3a382ffc7106e4002c42a8d85",
    tuple(FILE_MD5S),
    FILE_MD5S,
)
find, verify = PYTHON.find, PYTHON.verify
PLACES = (PYTHON.folder, PYTHON.archive)
FETCHED = (PYTHON.archive,)
TRAIN_IMAGES, TEST_IMAGES = 50_000, 10_000
CLASSES = 100


def load(place: Path) -> tuple[ImageSet, ImageSet]:
    """Read the training and test sets from what `find` returned.

    Returns:
        50,000 training images and 10,000 test images, in the order of the files.

    Raises:
        SpratError: a file is missing, truncated, or does not contain CIFAR-100.
    """
    files = PYTHON.read(place)
    name = f"{place}: meta"
    classes = _class_names(pickles.read_pickle(files["meta"], name), name)
    train, test = (
        imageset.ImageSet(
            *pickles.read_batch(files[f], f"{place}: {f}", b"fine_labels", count, CLASSES), classes
        )
        for f, count in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES))
    )
    return train, test


def download(
    folder: Path,
    progress: Progress = lambda done, total: None,
    log: Log = lambda text: None,
) -> Path:
    """Download the archive into `folder`; return its path.

    Raises:
        SpratError: no source provided it, or it cannot be written.
    """
    target = folder / PYTHON.archive
    return fetch.fetch(MIRRORS, target, PYTHON.archive_md5, ARCHIVE_SIZE, progress, log)


def _class_names(meta: dict[bytes, Any], name: str) -> tuple[str, ...]:
    given = meta.get(b"fine_label_names")
    names = given if isinstance(given, list) else []
    classes = tuple(each.decode() for each in names if type(each) is bytes and each.isascii())
    if len(set(classes)) != CLASSES or not all(map(str.isprintable, classes)):
        raise pickles.refusal(name, f"does not hold {CLASSES} names of classes")
    return classes
