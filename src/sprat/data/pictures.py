"""Your own pictures: found in whatever form they came, read, split and cached.

They are read once, cropped, resized and cached as pixels. After that they are only listed, to see
whether files were added, removed or changed.
"""

import hashlib
import os
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sprat.data import cache, layout
from sprat.data.fetch import Log, Progress
from sprat.data.found import PARTS, Found, Summary, few
from sprat.data.imageset import (
    ImageSet,
    InChannels,
    Rows,
    Source,
    class_counts,
    is_grey,
    stratified_split,
)
from sprat.data.own import PicturesConfig
from sprat.data.picture import Picture, read_picture, read_size
from sprat.errors import SpratError, shown
from sprat.files import cache_dir, lock, replacing, sweep
from sprat.text import command, visible
from sprat.threads import usable_cores

LISTED = 20  # unreadable files listed in a message
FEW = 4  # coloured pictures kept, to name the first three
_AT_ONCE = 256  # pictures read at once


class Parts(NamedTuple):
    """The parts of your own pictures.

    train: includes val. val: int64, indices into train; None without val.
    groups: int64, group number of each training image; None without groups.
    """

    train: ImageSet
    test: ImageSet
    val: Tensor | None
    groups: Tensor | None


def load(
    place: Path,
    config: PicturesConfig,
    log: Log = lambda text: None,
    progress: Progress = lambda done, total: None,
    *,
    whole: bool = False,
) -> tuple[Parts, Summary]:
    """Read your own pictures, from the cache unless they have changed since.

    Args:
        place: absolute path (the cache depends on it) of a folder, table, archive or parquet file.
        log: called with sentences about what is left out.
        progress: called with the number of pictures read so far, and of all.
        whole: whether to accept pictures that can only be evaluated: a test part alone, or one
            class.

    Returns:
        The parts, and a summary of what was found.

    Raises:
        SpratError: the place has none of these forms, a file is not a picture and config.unreadable
            is "refuse", a picture is coloured and config.channels is 1, or the cache cannot be
            written.
    """
    check = (lambda found: None) if whole else partial(_check_trainable, place)
    found = layout.find(place, config, log, check)
    for sentence in found.left_out:
        log(sentence)
    pixels, about = _cached(place, found, config, log, progress)
    _check_grey(place, about, config)
    if about["unreadable"]:
        first, *more = _unreadable(place, list(map(found.named, about["unreadable"])))
        if config.unreadable == "refuse":
            remedy = (
                "Repair or remove these files, or leave them out with --pictures.unreadable skip."
            )
            raise SpratError(first, *more, remedy)
        log("\n".join([f"left out: {first}", *more]))
    groups = _groups(found, about["skipped"])
    images = InChannels(pixels, 3) if config.channels == 3 else pixels
    parts = split(found.classes, images, about, config, groups)
    if not whole:
        _check_parts(place, parts.train, parts.test, config)
    if count := _count_divided(found):
        of_column = f"{shown(config.group_column)} are in more than one part"
        log(
            f"{count:,} groups of {of_column} of {visible(place)}, so accuracy will look better "
            "than it is. Keep each group in one part, or leave the column of parts out."
        )
    return parts, _summarize(found, parts, config)


def _groups(found: Found, skipped: list[int]) -> Tensor | None:
    """Return the group number of each picture in the cache; None without groups.

    Args:
        skipped: indices of the pictures that are not in the cache.
    """
    if found.together is None:
        return None
    left_out = set(skipped)
    names = [name for place, name in enumerate(found.together) if place not in left_out]
    numbers = {name: number for number, name in enumerate(sorted(set(names)))}
    return torch.tensor([numbers[name] for name in names], dtype=torch.int64)


def _count_divided(found: Found) -> int:
    """Return how many groups are in more than one of the parts that the pictures came in."""
    if found.together is None:
        return 0
    of_picture = (group.part for group in found.groups for _ in range(group.count))
    parts = Counter(name for name, _ in set(zip(found.together, of_picture, strict=True)))
    return sum(count > 1 for count in parts.values())


@dataclass(frozen=True)
class Files:
    """Files of your own pictures.

    names, sizes: path, and width and height, of each picture in the cache, by row.
    unreadable: path of each other file, and what is wrong with it.
    """

    names: list[str]
    sizes: list[tuple[int, int]]
    unreadable: list[tuple[str, str]]


def files_of(place: Path, config: PicturesConfig) -> Files:
    """Return the files of your own pictures, in the order that `load` reads them.

    Args:
        place: an absolute path.

    Raises:
        SpratError: as `load`.
    """
    found = layout.find(place, config, lambda text: None)
    _, about = _cached(place, found, config, lambda text: None, lambda done, total: None)
    wrong = dict(zip(about["skipped"], about["unreadable"], strict=True))
    files = Files([], [], [])
    pictures, places = found.pictures(), iter(range(len(found)))
    with ThreadPoolExecutor(usable_cores()) as pool:
        while some := list(islice(pictures, _AT_ONCE)):
            numbered = list(zip(some, places, strict=False))
            read = [picture for picture, place in numbered if place not in wrong]
            files.names.extend(map(found.named, read))
            files.sizes.extend(pool.map(read_size, read))
            files.unreadable.extend(
                (found.named(picture), found.named(wrong[place]))
                for picture, place in numbered
                if place in wrong
            )
    return files


def names_of(place: Path, config: PicturesConfig) -> list[str]:
    """Return the path of each picture in the cache, by row.

    Args:
        place: an absolute path.

    Raises:
        SpratError: as `load`.
    """
    found = layout.find(place, config)
    _, about = _cached(place, found, config, lambda text: None, lambda done, total: None)
    skipped = set(about["skipped"])
    return [str(picture) for n, picture in enumerate(found.pictures()) if n not in skipped]


def split(
    classes: tuple[str, ...],
    images: Source,
    about: dict[str, Any],
    config: PicturesConfig,
    groups: Tensor | None = None,
) -> Parts:
    """Divide a set in the cache into its parts.

    Args:
        about: description of the cache; "counts" has [part, label, count] of each run of images.
        groups: int64, group number of each image; a group is in test as a whole or not at all.
    """
    counts = torch.tensor([count for _, _, count in about["counts"]], dtype=torch.int64)
    labels = torch.tensor([label for _, label, _ in about["counts"]], dtype=torch.int64)
    parts = torch.tensor([(*PARTS, "").index(part) for part, _, _ in about["counts"]])
    targets, parts = labels.repeat_interleave(counts), parts.repeat_interleave(counts)
    whole = ImageSet(Rows(images, torch.arange(len(targets))), targets, classes)

    in_test, in_val = (parts == PARTS.index(part) for part in ("test", "val"))
    if all(part != "test" for part, _, _ in about["counts"]):
        rest = (~in_val).nonzero().flatten()
        held_out = round(len(rest) * config.test_fraction)
        if held_out:
            of_rest = None if groups is None else groups[rest]
            _, chosen = stratified_split(targets[rest], held_out, config.test_seed, of_rest)
            in_test[rest[chosen]] = True
    return Parts(
        train=whole.subset((~in_test).nonzero().flatten()),
        test=whole.subset(in_test.nonzero().flatten()),
        val=in_val[~in_test].nonzero().flatten() if in_val.any() else None,
        groups=None if groups is None else groups[~in_test],
    )


def _check_trainable(place: Path, found: Found) -> None:
    """Raise a SpratError if there is nothing to train on, or only one class."""
    parts = {group.part for group in found.groups}
    if not parts & {"", "train"}:
        have = " and ".join(part for part in PARTS if part in parts)
        raise SpratError(
            f"{place} contains {have} but no train, so there is nothing to train on. Add training "
            f"pictures, or evaluate a model on it: sprat evaluate MODEL --dataset {command(place)}"
        )
    if len(found.classes) < 2:
        raise SpratError(
            f"{place} has only the class {found.classes[0]!r}, expected at least two. Add pictures "
            "of another class."
        )


def _check_parts(place: Path, train: ImageSet, test: ImageSet, config: PicturesConfig) -> None:
    """Raise a SpratError if no picture is left to test on, or none of a class to train on."""
    if not len(test):
        raise SpratError(
            f"None of the {len(train)} pictures in {place} is left to test on. Add pictures, or "
            f"raise pictures.test_fraction (= {config.test_fraction})."
        )
    for name, count in class_counts(train).items():
        if not count:
            raise SpratError(
                f"No picture of {name!r} in {place} is left to train on. Add pictures of that "
                "class, or remove it."
            )


def _summarize(found: Found, parts: Parts, config: PicturesConfig) -> Summary:
    train, test, val, _ = parts
    sources = {
        "train": found.sources.get("", "all of it"),
        "val": "held out of train by each run (val_fraction), unless --final",
        "test": f"split off train (pictures.test_fraction {config.test_fraction:g})",
    }
    sources = (sources if len(train) else dict.fromkeys(PARTS, "-")) | found.sources
    kept = torch.ones(len(train), dtype=torch.bool)
    if val is not None:
        kept[val] = False
    images = {
        "train": train.subset(kept.nonzero().flatten()),
        "val": None if val is None else train.subset(val),
        "test": test,
    }
    of_parts = {part: (of_part, sources[part]) for part, of_part in images.items()}
    grey = ", all grey: 1 channel" if test.images.shape[1] == 1 else ""
    return Summary(found.layout + grey, found.sources, of_parts)


def cache_file(place: Path, side: int) -> Path:
    """Return the file that caches the pixels of your own pictures at a side."""
    name = hashlib.md5(os.fsencode(place), usedforsecurity=False).hexdigest()[:12]
    return cache_dir() / "pictures" / f"{name}-{side}.pixels"


def _cached(
    place: Path, found: Found, config: PicturesConfig, log: Log, progress: Progress
) -> tuple[cache.Mapped, dict[str, Any]]:
    """Return the cached pictures and their description; read the pictures again if it is out of
    date.

    The cache has one plane per picture if all are grey, else three, whatever config.channels is.
    """
    path = cache_file(place, config.side)
    lock_file = path.with_name(f".{path.name}.lock")

    def unchanged(about: dict[str, Any]) -> bool:
        return about["digest"] == found.digest and "coloured" in about

    if kept := cache.read(path, unchanged):
        sweep(path.parent, lock_file.name)  # temporary files of a killed process
        return kept
    size = len(found) * 3 * config.side**2
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is reading {place}; waiting for it"
        with lock(lock_file, lambda holder: log(waiting)):
            if kept := cache.read(path, unchanged):  # another process has made it
                return kept
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise OSError(f"{free:,} bytes are free")
            _read_into(path, place, found, config, progress)
    except OSError as error:
        raise SpratError(
            f"The pictures in {place} cannot be cached in {path.parent}, where they need {size:,} "
            f"bytes: {error.strerror or error}. Free some space there, or name another folder with "
            "XDG_CACHE_HOME."
        ) from error
    kept = cache.read(path, unchanged)
    if kept is None:
        raise SpratError(f"{path} was damaged while it was written. Check the disk and try again.")
    return kept


def _read_into(
    path: Path, place: Path, found: Found, config: PicturesConfig, progress: Progress
) -> None:
    """Read all pictures into the cache file `path`, which appears complete or not at all."""
    kept: list[int] = [0] * len(found.groups)
    unreadable: list[str] = []
    coloured: list[str] = []  # the first few
    count_coloured, side = 0, config.side
    skipped: list[int] = []  # indices of the unreadable pictures
    of_picture = (n for n, group in enumerate(found.groups) for _ in range(group.count))
    pictures, done = found.pictures(), 0
    with (
        replacing(path) as temporary,
        temporary.open("w+b") as file,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        writer = cache.Writer(file, side)
        while some := list(islice(pictures, _AT_ONCE)):
            images = []
            read = pool.map(lambda picture: _read_or_error(picture, side), some)
            for picture, outcome in zip(some, read, strict=True):
                group = next(of_picture)
                if isinstance(outcome, Tensor):
                    images.append(outcome)
                    kept[group] += 1
                    if not is_grey(outcome):
                        count_coloured += 1
                        coloured += [str(picture)] * (len(coloured) < FEW)
                else:
                    unreadable.append(str(outcome))
                    skipped.append(done)
                done += 1
                progress(done, len(found))
            if images:
                writer.add(torch.stack(images))
        counts = [(g.part, g.label, count) for g, count in zip(found.groups, kept, strict=True)]
        about = {"digest": found.digest, "counts": counts, "coloured": [count_coloured, coloured]}
        _check_grey(place, about, config)
        writer.finish(about | {"unreadable": unreadable, "skipped": skipped})


def _check_grey(place: Path, about: dict[str, Any], config: PicturesConfig) -> None:
    """Raise a SpratError if there are coloured pictures but the settings ask for grey ones."""
    count, first = about["coloured"]
    if config.channels == 1 and count:
        names = few([name.removeprefix(f"{place}{os.sep}") for name in first])
        pictures = "1 coloured picture" if count == 1 else f"{count:,} coloured pictures"
        raise SpratError(
            f"pictures.channels is 1, but {visible(place)} contains {pictures}: {names}. Remove "
            "the coloured pictures, or use --pictures.channels auto or 3."
        )


def _read_or_error(picture: Picture, side: int) -> Tensor | SpratError:
    try:
        return read_picture(picture, side)
    except SpratError as error:
        return error


def _unreadable(place: Path, errors: list[str]) -> list[str]:
    """Return the lines of a message about unreadable files."""
    lines = [f"{len(errors):,} of the files in {visible(place)} cannot be read as pictures:"]
    lines += [f"  {error}" for error in errors[:LISTED]]
    if len(errors) > LISTED:
        lines.append(f"  and {len(errors) - LISTED:,} more")
    return lines
