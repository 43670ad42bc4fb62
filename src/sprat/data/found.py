"""Description of your own pictures, in whatever form they came: pictures, labels and parts."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL

from sprat.data.imageset import ImageSet, class_counts
from sprat.data.picture import Picture
from sprat.text import visible

if TYPE_CHECKING:
    from hashlib import _Hash

PARTS = ("train", "val", "test")
# Other common names of the parts, in lower case.
_SAME_PART = {part: part for part in PARTS} | {
    "training": "train",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "testing": "test",
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Za-z][a-z]*")
_END = 150  # characters kept at each end of a text that is too long for a sentence
_READER = 2  # raise whenever the same files would give other pixels, or other files can be read


@dataclass(frozen=True)
class Group:
    """Consecutive pictures of one class in one part.

    part: one of PARTS, or "" if nothing says which part they belong to.
    """

    part: str
    label: int
    count: int


@dataclass(frozen=True)
class Found:
    """Your own pictures, found and listed but not read.

    layout: the form in words, "a folder for each class".
    pictures: yields every picture in the order of the groups. digest: changes whenever the set
    does.
    sources: where each part was found, in words. left_out: sentences about what was left out.
    together: group name of each picture, from a group column; None without one.
    named: puts the archive's name for the cache's in a path or message.
    has_columns: whether paths and labels come from columns.
    """

    layout: str
    classes: tuple[str, ...]
    groups: list[Group]
    pictures: Callable[[], Iterator[Picture]]
    digest: str
    sources: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    together: list[str] | None = None
    named: Callable[[object], str] = str
    has_columns: bool = True

    def __len__(self) -> int:
        return sum(group.count for group in self.groups)


@dataclass(frozen=True)
class Summary:
    """Summary of a dataset, printed before training.

    sources: where parts were found, in words. parts: the images of each part (None if it has none),
    and where they came from.
    """

    layout: str
    sources: dict[str, str]
    parts: dict[str, tuple[ImageSet | None, str]]

    def whole(self, images: ImageSet) -> "Summary":
        """Return the summary with all images in one row, whatever their part."""
        source = ", ".join(self.sources.values()) or "all of it"
        return Summary(self.layout, self.sources, {"all": (images, source)})

    def rows(self) -> list[list[str]]:
        """Return the rows of a table, headers first."""
        rows = [["part", "pictures", "classes", "fewest", "most", "from"]]
        for part, (images, source) in self.parts.items():
            counts = _present(images)
            cells = ["-"] * 4
            if counts:
                ends = [end(counts, key=counts.__getitem__) for end in (min, max)]
                cells = [f"{sum(counts.values()):,}", f"{len(counts):,}"]
                cells += [f"{name} ({counts[name]:,})" for name in ends]
            rows.append([part, *cells, source])
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        parts = {
            part: {"from": source, "per_class": _present(images)}
            for part, (images, source) in self.parts.items()
        }
        return {"layout": self.layout, "parts": parts}


def part_of(name: str) -> str | None:
    """Return the part that a name such as "Validation" stands for; None if it stands for none."""
    return _SAME_PART.get(name.lower())


def first_part(name: str) -> str | None:
    """Return the part that the name of a file or folder begins with, such as "train" for
    trainLabels.csv, TRAIN-1 and train_2."""
    word = _WORD.match(name)
    return part_of(word[0]) if word else None


def new_digest(place: Path) -> "_Hash":
    """Return the start of a set's digest. It depends on Pillow, as another version may decode
    differently."""
    reader = (_READER, PIL.__version__, place)
    return hashlib.md5(repr(reader).encode(), usedforsecurity=False)


def stamp(file: Path) -> tuple[int, int]:
    """Return size (bytes) and modification time (ns), which identify a version of the file."""
    try:
        stat = file.stat()
    except OSError:  # a dangling link: reported with the other unreadable files
        return -1, -1
    return stat.st_size, stat.st_mtime_ns


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a loop of links
        return False


def is_unicode(name: str) -> bool:
    """Return whether a class can have this name: model files and pages need valid UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def few(names: Sequence[object]) -> str:
    """Return the first three names, joined for a sentence."""
    return ", ".join(map(cut, names[:3])) + (", …" if len(names) > 3 else "")


def cut(text: object) -> str:
    """Return text to quote in a sentence; only both ends of a long one."""
    shown = visible(text)
    return f"{shown[:_END]} … {shown[-_END:]}" if len(shown) > 3 * _END else shown


def _present(images: ImageSet | None) -> dict[str, int]:
    counts = {} if images is None else class_counts(images)
    return {name: count for name, count in counts.items() if count}
