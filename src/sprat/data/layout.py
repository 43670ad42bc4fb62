"""Form of your own pictures: class folders, a table, an archive or parquet files."""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from sprat.data import archive, folders, shards, tables
from sprat.data.fetch import Log
from sprat.data.found import Found, first_part, part_of
from sprat.data.own import COLUMNS, PicturesConfig, form_of
from sprat.data.picture import Picture
from sprat.errors import SpratError, shown

_DEEPEST = 10  # levels of folders that may wrap a set


def find(
    place: Path,
    config: PicturesConfig,
    log: Log = lambda text: None,
    check: Callable[[Found], None] = lambda found: None,
) -> Found:
    """List your own pictures in whatever form they are, without reading one.

    Args:
        check: called with what was found, before an archive enters the cache; raises to refuse it.

    Raises:
        SpratError: the place contains none of these forms, or lacks a column that the settings
            name.
    """

    def checked(found: Found) -> Found:
        asked = [column for column in COLUMNS if getattr(config, column)]
        if asked and not found.has_columns:
            column, option = getattr(config, asked[0]), f"--pictures.{asked[0].replace('_', '-')}"
            raise SpratError(
                f"{place} has no column {shown(column)}, because it is {found.layout}. Give a "
                f"table of its pictures, or leave {option} out."
            )
        check(found)
        return found

    def in_archive(folder: Path) -> Found:
        return checked(_find_in_archive(place, folder, config))

    form = None if place.is_dir() else form_of(place.name)
    if form == "archive":
        return in_archive(archive.extract(place, log, in_archive))
    if form is None:
        return checked(_find_in_folder(place, config))
    if form == "parquet":
        return checked(shards.find({place: ""}, place, config))
    return checked(tables.find({place: ""}, place.parent, config))


def _find_in_archive(place: Path, folder: Path, config: PicturesConfig) -> Found:
    """List the pictures of an archive that was extracted to a folder, in the cache, where nobody
    edits: messages name the archive and the file in it, flowers.zip: train/rose/1.jpg."""

    def named(text: object) -> str:
        return str(text).replace(f"{folder}{os.sep}", f"{place}: ").replace(str(folder), str(place))

    @contextlib.contextmanager
    def naming() -> Iterator[None]:
        try:
            yield
        except SpratError as error:
            raise SpratError(*map(named, error.args)) from error

    def pictures() -> Iterator[Picture]:
        with naming():
            yield from found.pictures()

    with naming():
        found = _find_in_folder(folder, config)
    return replace(
        found,
        layout=f"an archive, which holds {found.layout}",
        pictures=pictures,
        left_out=list(map(named, found.left_out)),
        named=named,
    )


def _find_in_folder(folder: Path, config: PicturesConfig, depth: int = 0) -> Found:
    """List the pictures in a folder: parquet files, class folders, a table, or a folder that
    contains one of these."""
    if files := shards.shards_in(folder):
        return shards.find(files, folder, config)
    inside = folders.scan(folder)
    parts = [name for name in inside.folders if part_of(name)]
    classes = [name for name in inside.folders if not part_of(name)]
    # next to a table, train_images/ and test_images/ are not classes
    sorted_out = len(classes) > 1 and not all(map(first_part, classes))
    if sorted_out or any(folders.scan(folder / name).folders for name in parts):
        return folders.find(folder)
    named, left_out = _tables_in(folder, inside, parts)
    wraps = len(inside.folders) == 1 and not parts and _holds_a_set(folder / classes[0])
    usable = any(tables.has_columns(table, config) for table in named)
    if wraps and not usable and depth < _DEEPEST:
        found = _find_in_folder(folder / classes[0], config, depth + 1)
        return replace(found, layout=f"{found.layout}, in {classes[0]}/")
    if usable or (named and len(classes) < 2):
        found = tables.find(named, folder, config)
        return replace(found, left_out=[*left_out, *found.left_out])
    return folders.find(folder)


def _tables_in(
    folder: Path, inside: folders.Contents, parts: list[str]
) -> tuple[dict[Path, str], list[str]]:
    """Return the tables in a folder, or else in its parts, and sentences about what is left out."""
    named, left_out = tables.tables_in(folder, inside.files)
    if not named:
        for name in parts:
            within, more = tables.tables_in(folder / name, folders.scan(folder / name).files)
            named |= dict.fromkeys(within, part_of(name) or "")
            left_out += more
    return named, left_out


def _holds_a_set(folder: Path) -> bool:
    inside = folders.scan(folder)
    return bool(inside.folders) or any(
        form_of(name) in ("table", "parquet") for name in inside.files
    )
