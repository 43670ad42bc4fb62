"""Your own pictures in a table: CSV, TSV or JSON lines, with a path and a label in each row.

path,label                  id,level                    (Kaggle's trainLabels.csv, next to
images/1.jpg,daisy          10_left,0                    train/10_left.jpeg)
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sprat.data.columns import (
    Columns,
    Labelled,
    classes_of,
    find_columns,
    find_group,
    part_in,
)
from sprat.data.found import (
    PARTS,
    Found,
    Group,
    few,
    first_part,
    is_folder,
    new_digest,
    part_of,
    stamp,
)
from sprat.data.own import PicturesConfig, form_of
from sprat.data.picture import SUFFIXES, is_skipped
from sprat.data.rows import Row, read
from sprat.errors import SpratError, plain, shown

_SAMPLE = 200  # rows used to find the folder that paths are relative to


class _Named(NamedTuple):
    """A picture that a table names. where: "Line 3 of labels.csv". group: "" without groups."""

    where: str
    path: str
    label: str
    part: str
    group: str


def tables_in(folder: Path, files: Iterable[str]) -> tuple[dict[Path, str], list[str]]:
    """Return the tables among the files of a folder, each mapped to the part that its name says or
    "", and a sentence about those that are left out.

    Raises:
        SpratError: there are several tables, and their names do not say which part each is.
    """
    names = [name for name in files if form_of(name) == "table"]
    submissions = [name for name in names if "submission" in plain(name)]  # Kaggle's, to fill in
    names = [name for name in names if name not in submissions]
    parts = {name: first_part(name) for name in names}
    if len(names) > 1 and any(parts.values()):
        submissions += [name for name in names if not parts[name]]
        names = [name for name in names if parts[name]]
    if len(names) > 1 and len({parts[name] for name in names}) < len(names):
        raise SpratError(
            f"{folder} contains several tables: {few(names)}. As the dataset, give the table that "
            "has the labels."
        )
    alone = len(names) == 1
    tables = {folder / name: "" if alone else parts[name] or "" for name in names}
    return tables, [f"left out: {few(submissions)} in {folder}"] if submissions else []


def has_columns(table: Path, config: PicturesConfig) -> bool:
    """Return whether a table can be read and has columns of paths and labels."""
    try:
        find_columns(table, read(table)[0], config)
    except SpratError:
        return False
    return True


def find(tables: dict[Path, str], root: Path, config: PicturesConfig) -> Found:
    """List the pictures that tables name.

    Args:
        tables: each table with the part that all its pictures belong to, or "".
        root: the folder that all pictures must be in.

    Raises:
        SpratError: a table is damaged or lacks a column, or a row names no file in `root`.
    """
    named: dict[Path, _Named] = {}
    columns: Columns | None = None
    layout: list[str] = []
    sources: dict[str, str] = {}
    left_out: list[str] = []
    missing: list[str] = []
    for table, part in sorted(tables.items(), key=lambda each: (*PARTS, "").index(each[1])):
        header, records = read(table)
        if columns and columns.label not in header:  # Kaggle's test.csv
            left_out.append(f"left out: {table}, which has no column {shown(columns.label)}")
            continue
        columns = _with_parts(find_columns(table, header, config), header, records)
        group = find_group(table, header, config)
        rows = list(_rows(table, part, columns, group, header, records))
        files = _Files(root, table, [row.path for row in rows[:_SAMPLE]])
        for row in rows:
            file = files.find(row)
            if file is None:
                missing.append(f"{row.path} ({row.where})")
            elif (other := named.setdefault(file, row)) != row:
                _check_same(other, row)
        grouped = f", groups in {shown(group)}" if group else ""
        layout.append(f"{table.name} with {columns}{grouped}")
        source = f"{table.name}, files in {files.base}/" if files.base else table.name
        sources |= {row.part: source for row in rows}
    if missing:
        noun = "picture that is" if len(missing) == 1 else "pictures that are"
        what = f"{len(missing):,} {noun} not there: {few(missing)}"
        if config.unreadable == "refuse" or not named:
            raise SpratError(
                f"{few(list(tables))} names {what}. Add these files, remove their rows, or leave "
                "them out with --pictures.unreadable skip."
            )
        left_out.append(f"left out: {what}")
    found = {file: Labelled(row.part, row.label) for file, row in named.items()}
    if parts := _parts_of_folders(found, root):
        sources = {part: f"{', '.join(sources.values())}, {name}/" for name, part in parts.items()}
        for file, labelled in found.items():
            found[file] = labelled._replace(part=parts[file.relative_to(root).parts[0]])
    place = root if len(tables) > 1 else next(iter(tables))
    listed, order = _listed(place, f"a table: {'; '.join(layout)}", found, sources, left_out)
    together = [named[file].group for file in order] if config.group_column else None
    return replace(listed, together=together)


def _listed(
    place: Path,
    layout: str,
    found: dict[Path, Labelled],
    sources: dict[str, str],
    left_out: list[str],
) -> tuple[Found, list[Path]]:
    """Return the pictures sorted by part, class and name, so that the order of rows changes
    nothing, and their files in that order."""
    groups: dict[Labelled, list[Path]] = {}
    for file, labelled in found.items():
        groups.setdefault(labelled, []).append(file)
    classes = classes_of(place, groups)
    order = {name: label for label, name in enumerate(classes)}
    ordered = sorted(groups, key=lambda each: ((*PARTS, "").index(each.part), order[each.label]))
    digest, files = new_digest(place), []
    for labelled in ordered:
        of_group = sorted(groups[labelled])
        stamps = [(str(file), *stamp(file)) for file in of_group]
        digest.update(repr((labelled.part, labelled.label, stamps)).encode())
        files += of_group
    listed = Found(
        layout,
        classes,
        [Group(each.part, order[each.label], len(groups[each])) for each in ordered],
        lambda: iter(files),
        digest.hexdigest(),
        sources,
        left_out,
    )
    return listed, files


def _parts_of_folders(found: dict[Path, Labelled], root: Path) -> dict[str, str]:
    """Map the folders of the pictures to the parts that their names say, such as train/ and test/;
    empty if the table already says the parts, or some picture is elsewhere."""
    folders = {file.relative_to(root).parts[0] for file in found}
    parts = {folder: part_of(folder) or "" for folder in folders}
    named = any(labelled.part for labelled in found.values())
    return {} if named or "" in parts.values() or len(set(parts.values())) < 2 else parts


def _check_same(first: _Named, second: _Named) -> None:
    labelled = (first.label, first.part) == (second.label, second.part)
    if not labelled or first.group != second.group:
        what = "group" if labelled else "label or part"
        raise SpratError(
            f"{second.where} gives {shown(second.path)} a different {what} than {first.where}. "
            "Remove one of these rows."
        )


class _Files:
    """The picture files that a table's paths refer to. Each folder is listed only once.

    Args:
        root: the folder that all files must be in.
        sample: some of the paths, to find out what they are relative to.

    base: what paths are relative to: a folder in the table's folder, or "" for that folder itself.
    """

    def __init__(self, root: Path, table: Path, sample: Sequence[str]) -> None:
        self._root, self._home = root, table.parent
        self._inside = f"{root}{os.sep}" if root.name else str(root)  # prefix of all paths in it
        self._listed: dict[str, tuple[dict[str, None], dict[str, str]]] = {}
        part = first_part(table.name)
        names = _names(table.parent, folders=True)
        names.sort(key=lambda name: first_part(name) != part)  # train/ first for trainLabels.csv
        self.base, most = "", -1
        for base in ("", *names):
            count = sum(self._find(base, path) is not None for path in sample)
            if count > most:
                self.base, most = base, count
            if count == len(sample):
                break

    def find(self, row: _Named) -> Path | None:
        """Return the file of a row; None if it does not exist.

        Raises:
            SpratError: the path is outside the root folder.
        """
        place = self._place(self.base, row.path)
        if not place.startswith(self._inside):
            raise SpratError(
                f"{row.where} names {shown(row.path)}, which is outside {self._root}. Give paths "
                "relative to the table's folder, and keep the pictures there."
            )
        return self._find(self.base, row.path)

    def _place(self, base: str, path: str) -> str:
        if "\\" in path and "/" not in path:  # a Windows path
            path = path.replace("\\", "/")
        return os.path.normpath(self._home / base / path)

    def _find(self, base: str, path: str) -> Path | None:
        folder, name = os.path.split(self._place(base, path))
        if folder not in self._listed:
            names = dict.fromkeys(_names(Path(folder)))
            pictures = [each for each in reversed(names) if Path(each).suffix.lower() in SUFFIXES]
            self._listed[folder] = names, {Path(each).stem: each for each in pictures}
        names, by_stem = self._listed[folder]
        found = name if name in names else by_stem.get(name)
        return None if found is None else Path(folder, found)


def _names(folder: Path, folders: bool = False) -> list[str]:
    """Return the sorted names of the files (or folders) in a folder; empty if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if is_folder(entry) is folders]
    except (OSError, ValueError):  # ValueError: a name that no folder can have
        return []
    return sorted(name for name in names if not is_skipped(name))


def _with_parts(columns: Columns, header: list[str], records: list[Row]) -> Columns:
    """Drop the column of parts if none of its cells names one: a column "set" may mean anything."""
    if not columns.split:
        return columns
    at = header.index(columns.split)
    named = any(at < len(cells) and part_of(cells[at].strip()) for _, cells in records)
    return columns if named else columns._replace(split="")


def _rows(
    table: Path, part: str, columns: Columns, group: str, header: list[str], records: list[Row]
) -> Iterator[_Named]:
    at = [header.index(name) if name else -1 for name in (*columns, group)]
    if not records:
        raise SpratError(f"{table} has no rows. Give a table with one row per picture.")
    for line, cells in records:
        where = f"Line {line:,} of {table}"
        path, label, split, of_group = (cells[i].strip() if 0 <= i < len(cells) else "" for i in at)
        for column, cell in ((columns.path, path), (columns.label, label), (group, of_group)):
            if column and not cell:
                raise SpratError(
                    f"{where} has no value in {shown(column)}. Fill it in, or remove the line."
                )
        part_of_row = part_in(where, split) if columns.split else part
        yield _Named(where, path, label, part_of_row, of_group)
