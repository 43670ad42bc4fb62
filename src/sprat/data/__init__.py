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


def fetch_cifar10(
    data_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
    note: Say = lambda text: None,
) -> Path:
    """Where CIFAR-10 lies whole; fetched into `data_dir` or the user's cache if it does nowhere.

    Raises:
        SpratError: it cannot be had, or there is a damaged one that is not ours to replace.
    """
    to = cache_dir() if data_dir is None else data_dir
    for folder in _folders(data_dir):
        place = cifar10.find(folder)
        if place is None:
            continue
        states = cifar10.verify(place)
        damaged = [path.name for path, state in states.items() if state == "damaged"]
        if not damaged:
            return place
        if place != to / cifar10.ARCHIVE:
            raise SpratError(
                f"{place} is damaged ({', '.join(damaged)}); delete it and fetch again"
            )
    return cifar10.download(to, progress, note)


def verify_cifar10(data_dir: Path | None = None) -> tuple[Path, dict[Path, str]]:
    """The folder where CIFAR-10 is looked for and found, whole or not, and what its published
    md5s say of each file: "ok", "damaged" or "missing".

    Raises:
        SpratError: there is nothing of it.
    """
    folders = _folders(data_dir)
    for folder in folders:
        if states := cifar10.verify(folder):
            return folder, states
    raise SpratError(
        f"there is nothing to verify: no {cifar10.FOLDER} and no {cifar10.ARCHIVE} in "
        f"{' or '.join(map(str, folders))}; sprat data fetch fetches it"
    )


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
            "name the folder that does, leave the option out to look elsewhere, or fetch it "
            "there with sprat data fetch"
        )
    return cifar10.download(cache_dir(), progress, note)


def _dataset(name: str, train: ImageSet, test: ImageSet) -> Dataset:
    md5 = hashlib.md5(usedforsecurity=False)
    for tensor in (train.images, train.targets, test.images, test.targets):
        md5.update(tensor.numpy().data)
    return Dataset(name, train, test, Normalization.of(train.images), md5.hexdigest())
