"""Datasets by name, ready to train on."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sprat.data import cifar10, shapes10
from sprat.data.fetch import Progress, Say
from sprat.data.imageset import ImageSet, Normalization
from sprat.errors import SpratError
from sprat.runtime import cache_dir

DATASETS = ("auto", "cifar10", "shapes10")


@dataclass(frozen=True)
class Dataset:
    """A training and a test set of one name.

    md5 is over pixels and labels (training, then test), so that it is the same whatever file
    the images came from.
    """

    name: str
    train: ImageSet
    test: ImageSet
    normalization: Normalization
    md5: str


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    say: Say = lambda text: None,
    progress: Progress = lambda done, total: None,
    note: Say = lambda text: None,
) -> Dataset:
    """Loads a dataset into memory.

    CIFAR-10 is looked for in `data_dir` (which, if given, is the only place), then in
    $SPRAT_DATA, then in the user's cache, and then downloaded into the cache. "auto" means
    cifar10 if it can be had by any of these ways, else shapes10, and says so through `say`.
    What a download meets on its way goes to `note`.

    Raises:
        SpratError: there is no such dataset, or CIFAR-10 was asked for and cannot be had.
    """
    if name not in DATASETS:
        raise SpratError(f"there is no dataset {name!r}; there are {', '.join(DATASETS)}")
    if name == "shapes10":
        return _dataset("shapes10", *shapes10.load())
    try:
        place = _find_cifar10(data_dir, progress, note)
    except SpratError as error:
        if name == "cifar10":
            raise
        say(
            f"CIFAR-10 cannot be had: {error}.\n"
            "TRAINING ON shapes10 INSTEAD, the built-in dataset of drawn shapes: "
            "its accuracies say nothing about CIFAR-10."
        )
        return _dataset("shapes10", *shapes10.load())
    return _dataset("cifar10", *cifar10.load(place))


def _folders(data_dir: Path | None) -> list[Path]:
    """Where CIFAR-10 is looked for, in this order."""
    if data_dir is not None:
        return [data_dir]
    from_env = os.environ.get("SPRAT_DATA")
    return [*([Path(from_env)] if from_env else []), cache_dir()]


def _find_cifar10(data_dir: Path | None, progress: Progress, note: Say) -> Path:
    for folder in _folders(data_dir):
        if place := cifar10.find(folder):
            return place
    if data_dir is not None:
        raise SpratError(
            f"{data_dir} (--data-dir) holds neither {cifar10.FOLDER} nor {cifar10.ARCHIVE}; "
            "name the folder that does, or leave the option out to look elsewhere"
        )
    return cifar10.download(cache_dir(), progress, note)


def _dataset(name: str, train: ImageSet, test: ImageSet) -> Dataset:
    md5 = hashlib.md5(usedforsecurity=False)
    for tensor in (train.images, train.targets, test.images, test.targets):
        md5.update(tensor.numpy().data)
    return Dataset(name, train, test, Normalization.of(train.images), md5.hexdigest())
