"""Registry of datasets: where each is looked for, downloaded from and loaded.

To add a dataset, write a module with what `source.Published` or `source.Built` declares, and add a
line to the table here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.data import cifar10, cifar100, shapes10, svhn
from sprat.data.own import OWN, PicturesConfig, is_own
from sprat.deferred import deferred
from sprat.errors import SpratError, did_you_mean, shown
from sprat.files import cache_dir
from sprat.text import command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from sprat.data import imageset as imagesets
    from sprat.data import pictures as own_pictures
    from sprat.data.fetch import Log, Progress
    from sprat.data.found import Summary
    from sprat.data.imageset import ImageSet, Normalization
    from sprat.data.source import Built, Published
else:
    # aliases, because these names are the submodules themselves
    imagesets = deferred("sprat.data.imageset")
    own_pictures = deferred("sprat.data.pictures")

PUBLISHED: dict[str, Published] = {
    "cifar10": cifar10,
    "cifar100": cifar100,
    "svhn": svhn,
}
BUILT: dict[str, Built] = {
    "shapes10": shapes10,
}
DATASETS: dict[str, Published | Built] = {**PUBLISHED, **BUILT}
PREFERRED, FALLBACK = "cifar10", "shapes10"  # what "auto" means; the second needs no download

ACCEPTED = (
    f"{', '.join(DATASETS)}, auto ({DATASETS[PREFERRED].TITLE} if available, else {FALLBACK}), or "
    f"{OWN}"
)


def is_path(name: str) -> bool:
    """Return whether a dataset is given as a path to your own pictures rather than by name."""
    return name != "auto" and name not in DATASETS


def check_dataset(name: str) -> None:
    """Check that `name` is a dataset, or a path that may be your own pictures.

    Raises:
        SpratError: it is neither.
    """
    if is_path(name) and not is_own(Path(name)):
        if Path(name).exists():
            raise SpratError(f"{name} is not a dataset. Give {OWN}.")
        known = ["auto", *DATASETS]
        raise SpratError(
            f"Unknown dataset {shown(name)}{did_you_mean(name, known) or '.'} Available: "
            f"{', '.join(known)}, or the path of {OWN}."
        )


def check_published(name: str) -> None:
    """Check that `name` is a published dataset.

    Raises:
        SpratError: it is not.
    """
    if name not in PUBLISHED:
        raise SpratError(
            f"{shown(name)} is not a published dataset. Available: {', '.join(PUBLISHED)}."
        )


def caution_for(name: str) -> str:
    """Return the warning to print below results on a dataset, or ""."""
    return BUILT[name].CAUTION if name in BUILT else ""


def title_of(name: str) -> str:
    """Return a dataset's name in a sentence: "CIFAR-10"; of your own pictures, their path."""
    return DATASETS[name].TITLE if name in DATASETS else name


@dataclass(frozen=True)
class Dataset:
    """A training and a test set.

    name: name of the dataset, or the path your own pictures were read from.
    md5: of pixels and labels (training, then test), `val` and `groups`, whatever the file format.
    val: int64, indices of the training images that are the dataset's own val; None to split it off.
    groups: int64, group of each training image; no group is ever divided. None without groups.
    own: settings your own pictures were read with. found: what was found. None for other datasets.
    """

    name: str
    train: ImageSet
    test: ImageSet
    normalization: Normalization
    md5: str
    val: Tensor | None = None
    groups: Tensor | None = None
    own: PicturesConfig | None = None
    found: Summary | None = None

    @property
    def channels(self) -> int:
        """Channels of the images: 3, or 1 if they are grey."""
        return self.train.images.shape[1]


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    log: Log = lambda text: None,
    progress: Progress = lambda done, total: None,
    note: Log = lambda text: None,
    own: PicturesConfig = PicturesConfig(),  # noqa: B008
    *,
    whole: bool = False,
) -> Dataset:
    """Load a dataset by its name or by the path of your own pictures.

    A published dataset is looked for only in `data_dir` if that is given, else in $SPRAT_DATA and
    the user's cache, and is downloaded into the cache if it is in neither. "auto" means CIFAR-10 if
    that succeeds, else shapes10, which is reported through `log`. Problems of a download are
    reported through `note`. Your own pictures are read with the settings `own` and stay on disk;
    `whole` also allows pictures that can only be evaluated: a test part alone, or a single class.

    Raises:
        SpratError: there is no such dataset, it is not available, a file differs from the published
            one, or your own pictures are in no supported form.
    """
    check_dataset(name)
    if is_path(name):
        place = Path(name).resolve()
        parts, found = own_pictures.load(place, own, log, progress, whole=whole)
        return assemble(str(place), *parts, own, found)
    if name in BUILT:
        return assemble(name, *BUILT[name].load())
    chosen = PREFERRED if name == "auto" else name
    source = PUBLISHED[chosen]
    try:
        place = _find(chosen, data_dir, progress, note)
    except SpratError as error:
        if name != "auto":
            raise
        built = BUILT[FALLBACK]
        log(
            f"{source.TITLE} is not available: {error}\n"
            f"TRAINING ON {built.TITLE} INSTEAD. {built.CAUTION}"
        )
        return assemble(FALLBACK, *built.load())
    with _reading(place):
        return assemble(chosen, *source.load(place))


def fetch_dataset(
    name: str,
    data_dir: Path | None = None,
    progress: Progress = lambda done, total: None,
    note: Log = lambda text: None,
) -> Path:
    """Return where an intact copy of a published dataset is; if there is none, download it into
    `data_dir` or the user's cache.

    Raises:
        SpratError: no source provided it, or there is a damaged copy that sprat did not download.
    """
    source = _published(name)
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
            raise SpratError(f"{place} is damaged ({names}). Delete it and download it again.")
    return _download(source, to, progress, note)


def verify_dataset(name: str, data_dir: Path | None = None) -> tuple[Path, dict[Path, str]]:
    """Compare the files of a published dataset with their published md5s.

    Returns:
        The first folder that contains a file of it; each file's state: "ok", "damaged" or
        "missing".

    Raises:
        SpratError: no folder contains any.
    """
    source = _published(name)
    folders = _folders(source, data_dir)
    for folder in folders:
        with _reading(folder):
            if states := source.verify(folder):
                return folder, states
    where = [] if data_dir is None else ["--data-dir", data_dir]
    fetching = command("sprat", "data", "fetch", "--dataset", name, *where)
    raise SpratError(
        f"There is nothing to verify: no {' and no '.join(source.PLACES)} in "
        f"{' or '.join(map(str, folders))}. Download the dataset with {fetching}"
    )


def _published(name: str) -> Published:
    check_published(name)
    return PUBLISHED[name]


def _folders(source: Published, data_dir: Path | None) -> list[Path]:
    """Return the places to look for a dataset in, in order: folders, or the archive itself.

    Raises:
        SpratError: the path the user gave is neither.
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
                    f"{place} ({given_by}) is not a folder. Name the folder that contains the "
                    "dataset."
                )
    return places if data_dir is not None else [*places, cache_dir()]


def _find(name: str, data_dir: Path | None, progress: Progress, note: Log) -> Path:
    source = PUBLISHED[name]
    for folder in _folders(source, data_dir):
        with _reading(folder):
            if place := source.find(folder):
                return place
    if data_dir is not None:
        fetching = command("sprat", "data", "fetch", "--dataset", name, "--data-dir", data_dir)
        raise SpratError(
            f"{data_dir} (--data-dir) does not contain {source.TITLE}, expected "
            f"{' or '.join(source.PLACES)}. Name the folder that does, leave --data-dir out to "
            f"look elsewhere, or download it there with {fetching}"
        )
    return _download(source, cache_dir(), progress, note)


def _download(source: Published, to: Path, progress: Progress, note: Log) -> Path:
    try:
        return source.download(to, progress, note)
    except SpratError as error:
        raise SpratError(
            f"{source.TITLE} could not be downloaded: {error.args[0]}",
            *error.args[1:],
            "Check the network connection, or name a folder that contains "
            f"{' or '.join(source.PLACES)} with --data-dir or SPRAT_DATA.",
        ) from error


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn a failure to read into an error with a remedy."""
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)  # without permission, files would just seem missing
        yield
    except OSError as error:
        raise SpratError(
            f"{error.filename or folder} cannot be read: {error.strerror or error}. Change its "
            "permissions, or name another folder with --data-dir or SPRAT_DATA."
        ) from error


def assemble(
    name: str,
    train: ImageSet,
    test: ImageSet,
    val: Tensor | None = None,
    groups: Tensor | None = None,
    own: PicturesConfig | None = None,
    found: Summary | None = None,
) -> Dataset:
    """Return the dataset made of these parts, with its normalisation and md5."""
    md5 = hashlib.md5(usedforsecurity=False)
    for part in (train, test):
        for piece in part.images.split(imagesets.PIECE):
            md5.update(piece.numpy().data)
        md5.update(part.targets.numpy().data)
    for indices in (val, groups):
        if indices is not None:
            md5.update(indices.numpy().data)
    # with a test part alone any will do: a model that is evaluated brings its own
    normalization = imagesets.Normalization.of((train if len(train) else test).images)
    return Dataset(name, train, test, normalization, md5.hexdigest(), val, groups, own, found)
