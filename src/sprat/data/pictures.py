"""Own pictures: a folder for each class, directly or within train/, val/ and test/.

    flowers/daisy/1.jpg         flowers/train/daisy/1.jpg
    flowers/rose/2.png          flowers/test/rose/2.png

They are read once, cropped and resized, and kept as pixels in the user's cache; after that the
folder is only listed, to see whether a file has come, gone or changed.
"""

import hashlib
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import PIL
import torch
from torch import Tensor

from sprat.data import cache
from sprat.data.fetch import Progress, Say
from sprat.data.imageset import ImageSet, Rows, stratified_split
from sprat.data.own import PicturesConfig
from sprat.data.picture import is_skipped, read_picture
from sprat.errors import SpratError, did_you_mean
from sprat.files import cache_dir, lock, replacing, sweep
from sprat.text import command, visible
from sprat.threads import usable_cores

PARTS = ("train", "val", "test")
# Other names that folders of parts go by elsewhere, in lower case.
_SAME_PART = {part: part for part in PARTS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
LISTED = 20  # unreadable files named in a message
_READER = 2  # raised whenever the same files give other pixels, or others can be read
_AT_ONCE = 256  # pictures in memory while they are read


@dataclass(frozen=True)
class ClassFolder:
    """The files of one class in one part."""

    part: str  # one of PARTS, or "" where the parts are to be split
    label: int
    path: Path
    names: list[str]


@dataclass(frozen=True)
class Listing:
    """What lies in a folder of own pictures."""

    folders: list[ClassFolder]
    classes: tuple[str, ...]
    digest: str  # over every file's name, size and time of change
    beside: list[str]  # files that are in no class folder

    def __len__(self) -> int:
        return sum(len(folder.names) for folder in self.folders)


def load(
    folder: Path,
    config: PicturesConfig,
    say: Say = lambda text: None,
    progress: Progress = lambda done, total: None,
) -> tuple[ImageSet, ImageSet, Tensor | None]:
    """Reads own pictures, out of the cache where they have not changed since they came there.

    Args:
        folder: absolute, since the cache goes by it.
        say: is told what is left out.
        progress: is told how many pictures are read, and of how many.

    Returns:
        Training images (those of val/ among them), test images, and the indices of the training
        images that are val/'s, or None where there is no val/.

    Raises:
        SpratError: the folder is not of that form, a file is no picture and
            config.unreadable is "refuse", or the cache cannot be written.
    """
    listing = list_folder(folder)
    if listing.beside:
        place = visible(folder)
        say(f"left out, since they are in no class folder of {place}: {_few(listing.beside)}")
    images, about = _cached(folder, listing, config.side, say, progress)
    if about["unreadable"]:
        first, *more = _unreadable(folder, about["unreadable"])
        if config.unreadable == "refuse":
            remedy = "Mend or remove them, or leave them out by --pictures.unreadable skip"
            raise SpratError(first, *more, remedy)
        say("\n".join([f"left out: {first}", *more]))
    return split(folder, listing.classes, images, about, config)


@dataclass(frozen=True)
class Files:
    """The files of own pictures.

    read: of each picture that was read, by its row in the cache. unreadable: the others, each with
    what is wrong with it.
    """

    read: list[Path]
    unreadable: list[tuple[Path, str]]


def files_of(folder: Path, config: PicturesConfig) -> Files:
    """Return the files of own pictures as `load` has read them.

    Args:
        folder: absolute.

    Raises:
        SpratError: as `load`.
    """
    listing = list_folder(folder)
    _, about = _cached(folder, listing, config.side, lambda text: None, lambda done, total: None)
    paths = [each.path / name for each in listing.folders for name in each.names]
    wrong = dict(zip(about["skipped"], about["unreadable"], strict=True))
    return Files(
        read=[path for place, path in enumerate(paths) if place not in wrong],
        unreadable=[(paths[place], error) for place, error in wrong.items()],
    )


def split(
    folder: Path,
    classes: tuple[str, ...],
    images: cache.Mapped,
    about: dict[str, Any],
    config: PicturesConfig,
) -> tuple[ImageSet, ImageSet, Tensor | None]:
    """The parts of a set that is in the cache; see `load`.

    Args:
        about: "counts", the images of each class folder, [part, label, count] in their order.
    """
    counts = torch.tensor([count for _, _, count in about["counts"]])
    labels = torch.tensor([label for _, label, _ in about["counts"]])
    parts = torch.tensor([(*PARTS, "").index(part) for part, _, _ in about["counts"]])
    targets, parts = labels.repeat_interleave(counts), parts.repeat_interleave(counts)
    whole = ImageSet(Rows(images, torch.arange(len(targets))), targets, classes)

    in_test, in_val = (parts == PARTS.index(part) for part in ("test", "val"))
    if about["counts"][0][0] == "":
        held_out = round(len(whole) * config.test_fraction)
        in_test[stratified_split(targets, held_out, config.test_seed)[1]] = True
    if not in_test.any():
        raise SpratError(
            f"none of the {len(whole)} pictures in {folder} is there to test on; add some, or "
            f"raise pictures.test_fraction (= {config.test_fraction})"
        )
    train = whole.subset((~in_test).nonzero().flatten())
    for label, count in enumerate(train.targets.bincount(minlength=len(classes)).tolist()):
        if not count:
            raise SpratError(
                f"no picture of {classes[label]!r} in {folder} is left to train on; add some, or "
                "remove that class"
            )
    val = in_val[~in_test].nonzero().flatten() if in_val.any() else None
    return train, whole.subset(in_test.nonzero().flatten()), val


def list_folder(folder: Path) -> Listing:
    """Looks at a folder's class folders and their files, without reading a picture.

    What is hidden or was left by a system (see `is_skipped`) is none of it.

    Raises:
        SpratError: it does not hold a folder for each class, at least two, directly or in train/
            and test/.
    """
    found, beside = _find_classes(folder)
    root = folder / next(iter(found))  # where the training pictures are
    classes = tuple(next(iter(found.values())))
    if len(classes) < 2:
        names = f"only {classes[0]!r}" if classes else "no folder"
        raise SpratError(
            f"{root} holds {names}; expected a folder of pictures for each class, at least two"
        )
    # another Pillow may read other pixels
    reader = (_READER, PIL.__version__, folder)
    digest = hashlib.md5(repr(reader).encode(), usedforsecurity=False)
    folders = []
    for part, names_in_part in found.items():
        for name in names_in_part:
            path = folder / part / name
            if name not in classes:
                raise SpratError(
                    f"{path} is a class that {root} lacks{did_you_mean(name, classes)}; add its "
                    "training pictures, or remove it"
                )
            files = _files_of_class(path)
            stamps = [(file, *_stamp(path / file)) for file in files]
            digest.update(repr((part, name, stamps)).encode())
            folders.append(ClassFolder(part, classes.index(name), path, files))
    return Listing(folders, classes, digest.hexdigest(), beside)


def _find_classes(folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Names of the class folders by part, training first, and those of the files beside them."""
    inside, beside = _scan(folder)
    _check_part_names(folder, inside)
    parts = [part for part in PARTS if part in inside]
    if not parts:
        return {"": inside}, beside
    if others := [name for name in inside if name not in parts]:
        raise SpratError(
            f"{folder} holds {', '.join(parts)} and beside them {_few(others)}; expected a folder "
            "for each class, or train/, test/ and perhaps val/ alone: move or rename the others"
        )
    for part in ("train", "test"):
        if part not in parts:
            remedy = "add it"
            if parts == ["train"]:
                remedy += f", or move the class folders up into {folder} to have the test part "
                remedy += "split off"
            elif parts == ["train", "val"]:
                remedy += ", or rename val/ to test/ to have val split off the training pictures"
            raise SpratError(f"{folder} holds {'/, '.join(parts)}/ but no {part}/; {remedy}")
    found = {}
    for part in parts:
        found[part], more = _scan(folder / part)
        beside += [f"{part}/{name}" for name in more]
    return found, beside


def _check_part_names(folder: Path, names: list[str]) -> None:
    """Refuses parts under other names, such as Train/ and Test/: they would be taken for classes.

    Where only one of many folders is called like a part, it is a class: trains beside buses.
    """
    meant = {name: _SAME_PART[name.lower()] for name in names if name.lower() in _SAME_PART}
    parts = set(meant.values())
    other = {name: part for name, part in meant.items() if name != part}
    if not other or (len(parts) == 1 and len(meant) < len(names)):
        return
    remedy = ", ".join(f"rename {name}/ to {part}/" for name, part in other.items())
    if len(parts) < len(meant):
        remedy = "several of them are the same part, so merge or rename them"
    raise SpratError(
        f"{folder} holds {', '.join(f'{name}/' for name in meant)}, but the parts of a set are "
        f"called train/, test/ and val/; {remedy}"
    )


def _files_of_class(path: Path) -> list[str]:
    folders, files = _scan(path)
    if any(name.lower() in _SAME_PART for name in folders):
        raise SpratError(
            f"the class folder {path} holds folders ({_few(folders)}) that are parts of a set; "
            "give that folder itself as the dataset"
        )
    if folders:
        raise SpratError(
            f"the class folder {path} holds folders ({_few(folders)}); expected pictures alone: "
            "move them up into it, or make each folder a class"
        )
    if not files:
        raise SpratError(
            f"the class folder {path} is empty; put pictures into it, or remove that class"
        )
    return files


def _scan(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders and of the files in `folder`, sorted.

    Raises:
        SpratError: it cannot be read, or a folder's name cannot be a class's.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_skipped(entry.name):
                    (folders if entry.is_dir() else files).append(entry.name)
    except PermissionError as error:
        raise SpratError(
            f"{folder} cannot be read: {error.strerror}; give yourself the right to: "
            f"{command('chmod', 'u+rx', folder)}"
        ) from error
    for name in folders:
        if not _is_unicode(name):  # models, pages and other programs hold names in UTF-8
            raise SpratError(f"{folder / name} has a name that is not UTF-8; rename that folder")
    return sorted(folders), sorted(files)


def _stamp(file: Path) -> tuple[int, int]:
    """Size (bytes) and time of change (ns); another of either is another picture."""
    try:
        stat = file.stat()
    except OSError:  # a link to nowhere: told as unreadable with the others
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def cache_file(folder: Path, side: int) -> Path:
    """Where a folder's pictures are kept as pixels, one file for each side."""
    place = hashlib.md5(os.fsencode(folder), usedforsecurity=False).hexdigest()[:12]
    return cache_dir() / "pictures" / f"{place}-{side}.pixels"


def _cached(
    folder: Path, listing: Listing, side: int, say: Say, progress: Progress
) -> tuple[cache.Mapped, dict[str, Any]]:
    """The pictures and what is known of them; read anew unless they are cached as they are now."""
    path = cache_file(folder, side)
    lock_file = path.with_name(f".{path.name}.lock")

    def unchanged(about: dict[str, Any]) -> bool:
        return about["digest"] == listing.digest and "skipped" in about

    if found := cache.read(path, unchanged):
        sweep(path.parent, lock_file.name)  # left by a process killed as it ended
        return found
    size = len(listing) * 3 * side**2
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is reading {folder}; waiting for it"
        with lock(lock_file, lambda holder: say(waiting)):
            if found := cache.read(path, unchanged):  # another process has made it
                return found
            free = shutil.disk_usage(path.parent).free
            if free < size:
                raise OSError(f"{free:,} bytes are free")
            _read_into(path, listing, side, progress)
    except OSError as error:
        raise SpratError(
            f"the pictures in {folder} cannot be kept in {path.parent}, where they need "
            f"{size:,} bytes: {error.strerror or error}; make room there, or name a folder with "
            "room by XDG_CACHE_HOME"
        ) from error
    found = cache.read(path, unchanged)
    if found is None:
        raise SpratError(f"{path} was damaged as it was written; is the disk sound? try again")
    return found


def _read_into(path: Path, listing: Listing, side: int, progress: Progress) -> None:
    """Reads all pictures into the cache file `path`, which appears whole or not at all."""
    counts: list[tuple[str, int, int]] = []
    unreadable: list[str] = []
    skipped: list[int] = []  # places of these in the listing
    done = 0
    with (
        replacing(path) as beside,
        beside.open("wb") as file,
        ThreadPoolExecutor(usable_cores()) as pool,
    ):
        writer = cache.Writer(file, side)
        for folder in listing.folders:
            kept, names = 0, iter(folder.names)
            while some := list(islice(names, _AT_ONCE)):
                paths = [folder.path / name for name in some]
                images = []
                for outcome in pool.map(lambda path: _read_or_error(path, side), paths):
                    if isinstance(outcome, Tensor):
                        images.append(outcome)
                    else:
                        unreadable.append(str(outcome))
                        skipped.append(done)
                    done += 1
                    progress(done, len(listing))
                if images:
                    writer.add(torch.stack(images))
                kept += len(images)
            counts.append((folder.part, folder.label, kept))
        writer.finish(
            {
                "digest": listing.digest,
                "counts": counts,
                "unreadable": unreadable,
                "skipped": skipped,
            }
        )


def _read_or_error(path: Path, side: int) -> Tensor | SpratError:
    try:
        return read_picture(path, side)
    except SpratError as error:
        return error


def _unreadable(folder: Path, errors: list[str]) -> list[str]:
    """Lines of a message."""
    lines = [f"{len(errors):,} of the files in {visible(folder)} cannot be read as pictures:"]
    lines += [f"  {error}" for error in errors[:LISTED]]
    if len(errors) > LISTED:
        lines.append(f"  and {len(errors) - LISTED:,} more")
    return lines


def _is_unicode(name: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _few(names: list[str]) -> str:
    return ", ".join(map(visible, names[:3])) + (", …" if len(names) > 3 else "")
