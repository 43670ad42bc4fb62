"""Your own pictures in folders: one per class, directly or inside folders of parts.

flowers/daisy/1.jpg         flowers/Training/daisy/1.jpg
flowers/rose/2.png          flowers/valid/rose/2.png
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sprat.data.found import (
    PARTS,
    Found,
    Group,
    few,
    is_folder,
    is_unicode,
    new_digest,
    part_of,
    stamp,
)
from sprat.data.picture import is_skipped
from sprat.errors import SpratError, did_you_mean
from sprat.readers import unlisted


@dataclass(frozen=True)
class Contents:
    """Sorted names of the folders and files in a folder, except those that `is_skipped`."""

    folders: list[str]
    files: list[str]


def find(folder: Path) -> Found:
    """List the class folders in a folder and their files, without reading a picture.

    Raises:
        SpratError: there is not a folder per class, directly or inside folders of parts.
    """
    inside = scan(folder)
    parts = find_parts(folder, inside.folders)
    stray = list(inside.files)
    found = {} if parts else {"": ("", inside.folders)}
    for part, name in parts.items():
        within = scan(folder / name)
        if not within.folders:
            raise SpratError(
                f"{folder / name} contains no class folders, so the labels of its "
                f"{len(within.files):,} files are unknown. Sort the files into one folder per "
                "class, add a table of their labels, or move that folder away."
            )
        found[part] = (name, within.folders)
        stray += [f"{name}/{file}" for file in within.files]
    classes = _classes(folder, found)
    digest, groups, files = new_digest(folder), [], []
    for part, (name, names) in found.items():
        for of_class in names:
            path = folder / name / of_class
            pictures = _files_of_class(path)
            stamps = [(file, *stamp(path / file)) for file in pictures]
            digest.update(repr((part, of_class, stamps)).encode())
            groups.append(Group(part, classes.index(of_class), len(pictures)))
            files.append((path, pictures))

    def pictures_of_all() -> Iterator[Path]:
        return (path / name for path, names in files for name in names)

    return Found(
        "a folder for each class" + (" in each part" if parts else ""),
        classes,
        groups,
        pictures_of_all,
        digest.hexdigest(),
        {part: f"{name}/" for part, (name, _) in found.items() if part},
        [f"left out, not in a class folder of {folder}: {few(stray)}"] if stray else [],
        has_columns=False,
    )


def find_parts(folder: Path, names: list[str]) -> dict[str, str]:
    """Map those of `names` (folders in `folder`) that are parts to them, in the order of PARTS;
    empty if they are classes. A single folder named like a part among others, without folders in
    it, is a class: trains next to buses.

    Raises:
        SpratError: two of them are the same part, or there are other folders next to them.
    """
    meant = {name: part for name in names if (part := part_of(name))}
    parts = {part: name for name, part in meant.items()}
    others = [name for name in names if name not in meant]
    if not parts or (len(parts) == 1 and others and not _holds_folders(folder, meant)):
        return {}
    if len(parts) < len(meant):
        raise SpratError(
            f"{folder} contains {', '.join(f'{name}/' for name in meant)}, several of which are "
            "the same part. Merge or rename them."
        )
    if others:
        raise SpratError(
            f"{folder} contains {', '.join(f'{name}/' for name in meant)} and next to them "
            f"{few(others)}, expected one folder per class, or only folders of parts. Move or "
            "rename the others."
        )
    return {part: parts[part] for part in PARTS if part in parts}


def scan(folder: Path) -> Contents:
    """Return what is in a folder.

    Raises:
        SpratError: the folder cannot be read, or the name of a folder in it is not UTF-8.
    """
    folders: list[str] = []
    files: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not is_skipped(entry.name):
                    (folders if is_folder(entry) else files).append(entry.name)
    except OSError as error:
        raise unlisted(folder, error) from error
    for name in folders:
        if not is_unicode(name):
            raise SpratError(f"{folder / name} has a name that is not UTF-8. Rename that folder.")
    return Contents(sorted(folders), sorted(files))


def _classes(folder: Path, found: dict[str, tuple[str, list[str]]]) -> tuple[str, ...]:
    """Return the names of the classes: those of the training part, else those of all parts."""
    first, names = next(iter(found.values()))
    if not next(iter(found)) or "train" in found:
        for name, others in found.values():
            for other in others:
                if other not in names:
                    meant = did_you_mean(other, names)
                    raise SpratError(
                        f"{folder / name / other} is a class that {folder / first} "
                        f"lacks{meant or '.'} Add training pictures of that class, or remove it."
                    )
        classes = tuple(names)
    else:
        classes = tuple(sorted({name for _, names in found.values() for name in names}))
    if not classes:
        raise SpratError(
            f"{folder} contains no folders, expected one folder of pictures for each of at least "
            "two classes. Sort the pictures into folders, or add a table of their labels."
        )
    return classes


def _files_of_class(path: Path) -> list[str]:
    inside = scan(path)
    if any(part_of(name) for name in inside.folders):
        raise SpratError(
            f"The class folder {path} contains folders ({few(inside.folders)}) that are parts of a "
            "dataset. Give the class folder itself as the dataset."
        )
    if inside.folders:
        raise SpratError(
            f"The class folder {path} contains folders ({few(inside.folders)}), expected only "
            "pictures. Move the pictures up, or make each folder a class."
        )
    if not inside.files:
        raise SpratError(
            f"The class folder {path} is empty. Put pictures into it, or remove that class."
        )
    return inside.files


def _holds_folders(folder: Path, names: dict[str, str]) -> bool:
    return any(scan(folder / name).folders for name in names)
