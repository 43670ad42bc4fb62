"""Columns of a table or of parquet files that describe a picture, and the classes in them."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from sprat.data.found import is_unicode, part_of
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError, did_you_mean, plain, shown
from sprat.shapes import MOST_CLASSES

# Usual names of columns, the likeliest first, as `plain` spells them.
PATHS = (
    "path", "filepath", "imagepath", "filename", "file", "imagefile", "imagename", "image", "img",
    "picture", "photo", "imageid", "idcode", "id", "name",
)  # fmt: skip
LABELS = (
    "label", "labels", "class", "classname", "category", "target", "species", "breed", "diagnosis",
    "level", "y",
)  # fmt: skip
SPLITS = ("split", "part", "subset", "set", "partition")
LONGEST = 255  # characters of a class name


class Columns(NamedTuple):
    """Names of the columns of paths or pictures, labels, and parts; "" for no column of parts."""

    path: str
    label: str
    split: str = ""

    def __str__(self) -> str:
        named = f"pictures in {shown(self.path)}, labels in {shown(self.label)}"
        return named + (f", parts in {shown(self.split)}" if self.split else "")


class Labelled(NamedTuple):
    """Part (or "") and label of a picture."""

    part: str
    label: str


def find_columns(
    place: Path,
    names: Sequence[str],
    config: PicturesConfig,
    paths: Sequence[str] | None = None,
) -> Columns:
    """Return the columns that the settings name, else those with a usual name; if there are only
    two columns and one has been found, the other one is its counterpart.

    Args:
        names: all columns.
        paths: columns that can hold paths or pictures, the likeliest first; any by default.

    Raises:
        SpratError: a column cannot be guessed, or the settings name one that does not exist.
    """
    path = _asked(place, names, config.path_column, "path")
    label = _asked(place, names, config.label_column, "label")
    names = [name for name in names if name != config.group_column or not name]
    able = names if paths is None else paths
    path = path or _usual([name for name in able if name != label], PATHS)
    label = label or _usual([name for name in names if name != path], LABELS)
    if paths:
        path = path or paths[0]
    if len(names) == 2 and paths is None:
        path = path or next((name for name in names if label and name != label), "")
    if len(names) == 2:
        label = label or next((name for name in names if path and name != path), "")
    for found, kind, what in (
        (path, "path", "names the pictures"),
        (label, "label", "labels the pictures"),
    ):
        if not found:
            raise SpratError(
                f"{place} has no column that clearly {what}: its columns are {_all(names)}. Name "
                f"the column with --pictures.{kind}-column."
            )
    others = [name for name in names if name not in (path, label)]
    return Columns(path, label, _usual(others, SPLITS))


def find_group(place: Path, names: Sequence[str], config: PicturesConfig) -> str:
    """Return the column that groups pictures; "" if the settings name none.

    Raises:
        SpratError: the settings name one that does not exist.
    """
    return _asked(place, names, config.group_column, "group")


def classes_of(place: Path, found: Iterable[Labelled]) -> tuple[str, ...]:
    """Return the classes of the training part, or of all pictures if there is none, sorted; as
    numbers if all are numbers.

    Raises:
        SpratError: another part has more classes, there are too many, or a name is too long or not
            Unicode.
    """
    labelled = list(found)
    training = {each.label for each in labelled if each.part in ("", "train")}
    names = training or {each.label for each in labelled}
    for part, label in labelled:
        if label not in names:
            meant = did_you_mean(label, names)
            raise SpratError(
                f"{place} has the class {shown(label)} only in {part}{meant or '.'} Add training "
                "pictures of that class, or remove it."
            )
    if len(names) > MOST_CLASSES:
        raise SpratError(
            f"{place} has {len(names):,} different labels, expected at most {MOST_CLASSES:,}. Name "
            "the column of labels with --pictures.label-column."
        )
    if too_long := next((name for name in names if len(name) > LONGEST), None):
        raise SpratError(
            f"{place} has a label of {len(too_long):,} characters ({shown(too_long)}), expected at "
            f"most {LONGEST}. Name the column of labels with --pictures.label-column."
        )
    if damaged := next((name for name in names if not is_unicode(name)), None):
        raise SpratError(
            f"{place} has the label {shown(damaged)}, which is not Unicode text. Write the labels "
            "in UTF-8."
        )
    numbers = all(name.isdecimal() and name.isascii() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbers else 0, name)))


def part_in(where: str, cell: str | None) -> str:
    """Return the part that a cell names.

    Raises:
        SpratError: it does not name a part.
    """
    part = part_of(cell or "")
    if part is None:
        raise SpratError(
            f"{where} has the part {shown(cell or '')}, expected train, val or test. Correct it, "
            "or remove that column."
        )
    return part


def _asked(place: Path, names: Sequence[str], name: str, kind: str) -> str:
    if name and name not in names:
        meant = did_you_mean(name, names)
        raise SpratError(
            f"{place} has no column {shown(name)}{meant or '.'} Its columns are {_all(names)}. "
            f"Name one of them with --pictures.{kind}-column."
        )
    return name


def _usual(names: Sequence[str], usual: Sequence[str]) -> str:
    by_plain = {plain(name.replace(" ", "")): name for name in reversed(names)}
    return next((by_plain[each] for each in usual if each in by_plain), "")


def _all(names: Sequence[str]) -> str:
    shown_names = [shown(name) for name in names[:10]]
    return ", ".join(shown_names) + (", …" if len(names) > 10 else "")
