"""Your own pictures in parquet files, as Hugging Face's `datasets` writes them: one or several
files per part, with a column of pictures (a struct of bytes and path) and one of labels."""

import contextlib
import json
import os
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from sprat.data.columns import (
    Columns,
    Labelled,
    classes_of,
    find_columns,
    find_group,
    part_in,
)
from sprat.data.folders import scan
from sprat.data.found import PARTS, Found, Group, cut, first_part, new_digest, part_of, stamp
from sprat.data.own import PicturesConfig, form_of
from sprat.data.parquet import require_pyarrow
from sprat.data.picture import Embedded, Picture
from sprat.errors import SpratError, shown

MOST_ROWS = 10_000_000  # in one file
_AT_ONCE = 64  # pictures read at once
_WITHIN = ("data", "plain_text")  # folders of a downloaded dataset that contain the files


class _Shard(NamedTuple):
    """A file, its columns, and the part and label of each row.

    names: class names in order; empty if labels are names. linked: paths of pictures, if some are
    separate files. together: group of each row; empty without groups.
    """

    path: Path
    columns: Columns
    rows: list[Labelled]
    names: list[str]
    linked: list[str | None]
    together: list[str]


def shards_in(folder: Path) -> dict[Path, str]:
    """Return the parquet files in a folder or in folders of parts in it. Each is mapped to the part
    that its name or its folder's name says, or "".

    Raises:
        SpratError: only some of the names say a part.
    """
    places = [folder, *(folder / name for name in scan(folder).folders if name in _WITHIN)]
    places += [place / name for place in places for name in scan(place).folders if part_of(name)]
    files = {
        place / name: first_part(name) or (part_of(place.name) if place != folder else None) or ""
        for place in places
        for name in scan(place).files
        if form_of(name) == "parquet"
    }
    without = next((path for path, part in files.items() if not part), None)
    if without and any(files.values()):
        raise SpratError(
            f"The name of {without} does not say its part, unlike those of the files next to it. "
            f"Rename it to train-{without.name}, or move it away."
        )
    return files


def find(files: dict[Path, str], place: Path, config: PicturesConfig) -> Found:
    """List the pictures in parquet files, without decoding one.

    Args:
        files: each file with its part, or "".
        place: the path that the user gave.

    Raises:
        SpratError: pyarrow is not installed, or a file is damaged or has unsuitable columns.
    """
    require_pyarrow()
    ordered = sorted(files, key=lambda path: ((*PARTS, "").index(files[path]), path))
    shards = [_look_at(path, files[path], config) for path in ordered]
    first = shards[0]
    for shard in shards:
        if (shard.columns, shard.names) != (first.columns, first.names):
            raise SpratError(
                f"{shard.path} has other columns or classes than {first.path}. Give files of the "
                "same dataset."
            )
    rows = [row for shard in shards for row in shard.rows]
    found = classes_of(place, rows)
    classes = tuple(name for name in first.names if name in found) or found
    labels = {name: label for label, name in enumerate(classes)}
    digest = new_digest(place)
    stamps = [(shard.path.name, files[shard.path], *stamp(shard.path)) for shard in shards]
    digest.update(repr((stamps, first.columns, classes)).encode())
    for shard in shards:
        files_of_their_own = filter(None, (_linked(shard.path, path) for path in shard.linked))
        digest.update(repr([(str(file), *stamp(file)) for file in files_of_their_own]).encode())
    counts = {part: sum(files[path] == part for path in files) for part in PARTS}
    count = "1 parquet file" if len(files) == 1 else f"{len(files)} parquet files"
    grouped = f", groups in {shown(config.group_column)}" if config.group_column else ""
    return Found(
        f"{count} with {first.columns}{grouped}",
        classes,
        [Group(part, labels[label], len(list(same))) for (part, label), same in groupby(rows)],
        lambda: (picture for shard in shards for picture in _pictures(shard)),
        digest.hexdigest(),
        {part: f"{n} of them" for part, n in counts.items() if n},
        together=[group for shard in shards for group in shard.together] if grouped else None,
    )


def _look_at(path: Path, part: str, config: PicturesConfig) -> _Shard:
    """Read everything but the pictures of a file."""
    with _opened(path) as file:
        schema, count = file.schema_arrow, file.metadata.num_rows
        if count > MOST_ROWS:
            raise SpratError(
                f"{path} has {count:,} rows, expected at most {MOST_ROWS:,}. Split it into several "
                "files."
            )
        able = [field.name for field in schema if _holds_bytes(field.type)]
        if not able or (config.path_column and config.path_column not in able):
            named = shown(config.path_column) if able else "any"
            raise SpratError(
                f"{path} does not have pictures in {named} column, expected a struct of bytes and "
                f"path, or bytes (its columns are {_types(schema)}). Write it with the Image "
                "feature of the datasets library, or name the column with --pictures.path-column."
            )
        columns = find_columns(path, schema.names, config, able)
        if part:
            columns = columns._replace(split="")
        names = _class_names(schema, columns.label)
        labels, linked = _column(file, columns.label), _paths(file, columns.path)
        group = find_group(path, schema.names, config)
        groups = _column(file, group) if group else []
        parts: list[Any] = []
        if columns.split:
            parts = _column(file, columns.split)
            if not any(part_of(str(each)) for each in parts):  # a column "set" may mean anything
                columns, parts = columns._replace(split=""), []
    of_row = [part_in(f"Row {row:,} of {path}", str(each)) for row, each in enumerate(parts)]
    rows = [
        Labelled(of_row[row] if of_row else part, _label(path, row, label, names))
        for row, label in enumerate(labels)
    ]
    if not rows or len(rows) != count:
        raise SpratError(
            f"{path} has {len(rows):,} of {count:,} rows. Download it again, or remove it."
        )
    together = [_group(path, row, group, cell) for row, cell in enumerate(groups)]
    return _Shard(path, columns, rows, names, linked, together)


def _group(path: Path, row: int, column: str, cell: Any) -> str:
    """Return the group name in a cell."""
    name = str(cell).strip() if isinstance(cell, str | int) else ""
    if not name:
        raise SpratError(
            f"{path} has {shown(cell)} in {shown(column)} of row {row:,}, expected the name or "
            "number of its group. Fill it in, or remove the row."
        )
    return name


def _pictures(shard: _Shard) -> Iterator[Picture]:
    row = 0
    with _opened(shard.path) as file:
        for batch in file.iter_batches(_AT_ONCE, columns=[shard.columns.path]):
            for cell in batch.column(0).to_pylist():
                yield _picture(shard.path, row, cell)
                row += 1
    if row != len(shard.rows):
        raise SpratError(f"{shard.path} changed while it was read. Try again.")


def _picture(shard: Path, row: int, cell: Any) -> Picture:
    """Return the picture in a row, or the file that the row names."""
    content, path = cell, None
    if isinstance(cell, dict):
        content, path = cell.get("bytes"), cell.get("path")
    if content is not None or path is None:
        return Embedded(f"{shard}, row {row:,}", content or b"")
    file = _linked(shard, path)
    if file is None:
        raise SpratError(
            f"{shard} has no picture in row {row:,} but names {shown(path)}, which is outside "
            f"{shard.parent}. Write the pictures into the file, or move them next to it."
        )
    return file


def _linked(shard: Path, path: object) -> Path | None:
    """Return the file that a path refers to; None if it is not in the parquet file's folder."""
    if not isinstance(path, str):
        return None
    file = Path(os.path.normpath(shard.parent / path))
    return file if shard.parent in file.parents and "\0" not in path else None


def _paths(file: Any, column: str) -> list[str | None]:
    """Return the paths in a column of pictures; empty if every row contains the bytes."""
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    chunks = [group.column(number) for group in groups for number in range(group.num_columns)]
    held = [chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes"]
    known = [chunk.statistics is not None and chunk.statistics.has_null_count for chunk in held]
    if all(known) and not any(chunk.statistics.null_count for chunk in held):
        return []
    cells = file.read(columns=[f"{column}.path"])
    return [cell and cell.get("path") for cell in cells.column(0).to_pylist()] if len(cells) else []


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    try:
        if not path.is_file():  # opening a pipe would block
            raise OSError("it is a device, pipe or socket")
        with ParquetFile(path) as file:
            yield file
    except SpratError:
        raise
    except Exception as error:  # damaged files raise all sorts
        why = cut(str(error).partition("\n")[0]) or type(error).__name__
        raise SpratError(
            f"{path} is damaged or not a parquet file: {why}. Download it again, or remove it."
        ) from error


def _column(file: Any, name: str) -> list[Any]:
    table = file.read(columns=[name])
    return table.column(name).to_pylist()


def _holds_bytes(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        at = kind.get_field_index("bytes")
        return at >= 0 and _holds_bytes(kind.field(at).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _types(schema: Any) -> str:
    fields = [f"{shown(field.name)} ({str(field.type)[:60]})" for field in schema]
    return ", ".join(fields[:5]) + (", …" if len(fields) > 5 else "")


def _class_names(schema: Any, label: str) -> list[str]:
    """Return the class names that `datasets` keeps in the schema; empty if there are none."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])
        names = content["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return []
    named = isinstance(names, list) and all(isinstance(name, str) and name for name in names)
    return names if named and len(set(names)) == len(names) else []


def _label(path: Path, row: int, label: Any, names: list[str]) -> str:
    """Return the class name of a row."""
    if isinstance(label, str) and label.strip():
        return label.strip()
    if isinstance(label, int) and not isinstance(label, bool):
        if not names:
            return str(label)
        if 0 <= label < len(names):
            return names[label]
    among = f", expected 0 to {len(names) - 1}" if names else ", expected a whole number or text"
    raise SpratError(
        f"{path} has the label {shown(label)} in row {row:,}{among}. Name the column of labels "
        "with --pictures.label-column, or remove the rows without a label."
    )
