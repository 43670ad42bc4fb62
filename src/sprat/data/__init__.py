"""Datasets by name, ready to train on."""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from sprat.data import cifar10, cifar100, pictures, shapes10, svhn
from sprat.data.fetch import Progress, Say
from sprat.data.imageset import PIECE, ImageSet, Normalization
from sprat.errors import SpratError
from sprat.files import cache_dir
from sprat.names import DATASETS, check_dataset, check_published
from sprat.settings.config import PicturesConfig
from sprat.text import command


class Source(Protocol):
    """What the module of a published dataset offers."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """Its name in a sentence."""

    @property
    def PLACES(self) -> tuple[str, ...]:  # noqa: N802
        """The files or folders in which it is found."""

    @property
    def FETCHED(self) -> tuple[str, ...]:  # noqa: N802
        """The files that `download` writes."""

    def find(self, folder: Path) -> Path | None:
        """What `load` reads, in `folder`; or None."""

    def load(self, place: Path) -> tuple[ImageSet, ImageSet]:
        """The training and test sets."""

    def download(self, folder: Path, progress: Progress, say: Say) -> Path:
        """Fetches it into `folder`; gives what `load` reads."""

    def verify(self, folder: Path) -> dict[Path, str]:
        """Each of its files in `folder`, "ok", "damaged" or "missing"."""


SOURCES: dict[str, Source] = {"cifar10": cifar10, "cifar100": cifar100, "svhn": svhn}


@dataclass(frozen=True)
class Dataset:
    """A training and a test set of one name.

    name is that of a dataset, or the path of the folder that own pictures came from.
    md5 is over pixels and labels (training, then test) and `val`, so that it is the same whatever
    file the images came from.
    val: int64, indices of the training images that are set apart as val; None to split it off.
    own: how own pictures were read; None for other datasets.
    """

    name: str
    train: ImageSet
    test: ImageSet
    normalization: Normalization
    md5: str
    val: Tensor | None = None
    own: PicturesConfig | None = None


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    say: Say = lambda text: None,
    progress: Progress = lambda done, total: None,
    note: Say = lambda text: None,
    own: PicturesConfig = PicturesConfig(),  # noqa: B008
) -> Dataset:
    """Loads a dataset, by its name or by the path of a folder of own pictures.

    A published one is looked for in `data_dir` (which, if given, is the only place), then in
    $SPRAT_DATA, then in the user's cache, and then downloaded into the cache. "auto" means
    cifar10 if it can be had by any of these ways, else shapes10, and says so through `say`.
    What a download meets on its way goes to `note`. Own pictures are read by `own`, and only
    mapped into memory.

    Raises:
        SpratError: there is no such dataset, or it cannot be had, or is not what was published, or
            the folder does not hold what own pictures are.
    """
    check_dataset(name)
    if name not in DATASETS:
        folder = Path(name).resolve()
        train, test, val = pictures.load(folder, own, say, progress)
        return assemble(str(folder), train, test, val, own)
    if name == "shapes10":
        return assemble("shapes10", *shapes10.load())
    known = "cifar10" if name == "auto" else name
    try:
        place = _find(known, data_dir, progress, note)
    except SpratError as error:
        if name != "auto":
            raise
        say(
            f"CIFAR-10 cannot be had: {error}.\n"
            "TRAINING ON shapes10 INSTEAD, the built-in dataset of drawn shapes: "
            "its accuracies say nothing about CIFAR-10."
        )
        return assemble("shapes10", *shapes10.load())
    with _reading(place):
        return assemble(known, *SOURCES[known].load(place))


def fetch_dataset(
    name: str,
    data_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
    note: Say = lambda text: None,
) -> Path:
    """Where a dataset lies whole; fetched into `data_dir` or the user's cache if it does nowhere.

    Raises:
        SpratError: it cannot be had, or there is a damaged one that is not ours to replace.
    """
    source = _source(name)
    to = cache_dir() if data_dir is None else data_dir
    for folder in _folders(source, data_dir):
        with _reading(folder):
            place = source.find(folder)
            states = {} if place is None else source.verify(place)
        if place is None:
            continue
        damaged = [path for path, state in states.items() if state == "damaged"]
        if not damaged:
            return place
        if any(path not in {to / file for file in source.FETCHED} for path in damaged):
            names = ", ".join(path.name for path in damaged)
            raise SpratError(f"{place} is damaged ({names}); delete it and fetch again")
    return _download(source, to, progress, note)


def verify_dataset(name: str, data_dir: Path | None = None) -> tuple[Path, dict[Path, str]]:
    """The folder where a dataset is looked for and found, whole or not, and what its published
    md5s say of each file: "ok", "damaged" or "missing".

    Raises:
        SpratError: there is nothing of it.
    """
    source = _source(name)
    folders = _folders(source, data_dir)
    for folder in folders:
        with _reading(folder):
            if states := source.verify(folder):
                return folder, states
    where = [] if data_dir is None else ["--data-dir", data_dir]
    fetching = command("sprat", "data", "fetch", "--dataset", name, *where)
    raise SpratError(
        f"there is nothing to verify: no {' and no '.join(source.PLACES)} in "
        f"{' or '.join(map(str, folders))}; {fetching} fetches it"
    )


def _source(name: str) -> Source:
    check_published(name)
    return SOURCES[name]


def _folders(source: Source, data_dir: Path | None) -> list[Path]:
    """Where a dataset is looked for, in this order: folders, or its archive itself.

    Raises:
        SpratError: what the user gave is neither.
    """
    from_env = os.environ.get("SPRAT_DATA")
    if data_dir is not None:
        places, given_by = [data_dir], "--data-dir"
    else:
        places, given_by = [Path(from_env)] if from_env else [], "SPRAT_DATA"
    for place in places:
        with _reading(place):
            is_archive = place.is_file() and place.name in source.PLACES
            if place.exists() and not place.is_dir() and not is_archive:
                raise SpratError(
                    f"{place} ({given_by}) is not a folder; name the folder that holds the dataset"
                )
    return places if data_dir is not None else [*places, cache_dir()]


def _find(name: str, data_dir: Path | None, progress: Progress, note: Say) -> Path:
    source = SOURCES[name]
    for folder in _folders(source, data_dir):
        with _reading(folder):
            if place := source.find(folder):
                return place
    if data_dir is not None:
        fetching = command("sprat", "data", "fetch", "--dataset", name, "--data-dir", data_dir)
        raise SpratError(
            f"{data_dir} (--data-dir) does not hold {source.TITLE}, expected "
            f"{' or '.join(source.PLACES)}; name the folder that does, leave the option out to "
            f"look elsewhere, or fetch it there with {fetching}"
        )
    return _download(source, cache_dir(), progress, note)


def _download(source: Source, to: Path, progress: Progress, note: Say) -> Path:
    try:
        return source.download(to, progress, note)
    except SpratError as error:
        raise SpratError(
            f"{source.TITLE} could not be fetched: {error.args[0]}",
            *error.args[1:],
            f"Check the network, or give a folder that holds {' or '.join(source.PLACES)} with "
            "--data-dir or SPRAT_DATA",
        ) from error


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Makes an error with a remedy of what the system refuses."""
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)  # or else files that may not be seen seem not to be there
        yield
    except OSError as error:
        raise SpratError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}; see to its "
            "rights, or give another folder with --data-dir or SPRAT_DATA"
        ) from error


def assemble(
    name: str,
    train: ImageSet,
    test: ImageSet,
    val: Tensor | None = None,
    own: PicturesConfig | None = None,
) -> Dataset:
    """A dataset of these parts, with its normalisation and md5, which are computed in pieces."""
    md5 = hashlib.md5(usedforsecurity=False)
    for part in (train, test):
        for piece in part.images.split(PIECE):
            md5.update(piece.numpy().data)
        md5.update(part.targets.numpy().data)
    if val is not None:
        md5.update(val.numpy().data)
    normalization = Normalization.of(train.images)
    return Dataset(name, train, test, normalization, md5.hexdigest(), val, own)
