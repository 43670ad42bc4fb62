"""In which form own pictures are: class folders, a table, an archive or parquet files."""

from dataclasses import replace
from pathlib import Path

from sprat.data import archive, folders, shards, tables
from sprat.data.fetch import Say
from sprat.data.found import Found, first_part, part_of
from sprat.data.own import PicturesConfig, form_of
from sprat.errors import SpratError, shown

_DEEPEST = 10  # folders that wrap one another around a set


def find(place: Path, config: PicturesConfig, say: Say = lambda text: None) -> Found:
    """List own pictures of any form, without reading one.

    Raises:
        SpratError: the place holds nothing of these forms, or lacks a column that was asked for.
    """
    found = _find(place, config, say)
    if config.group_column and found.together is None:
        raise SpratError(
            f"{place} has no column {shown(config.group_column)} to group pictures by, since it is "
            f"{found.layout}. Give a table of its pictures, or leave --pictures.group-column out."
        )
    return found


def _find(place: Path, config: PicturesConfig, say: Say) -> Found:
    if place.is_dir():
        return _find_in_folder(place, config)
    form = form_of(place.name)
    if form == "archive":
        folder = archive.extract(place, say)
        try:
            found = _find_in_folder(folder, config)
        except SpratError as error:  # nobody mends what is in the cache
            lines = (line.replace(str(folder), str(place)) for line in error.args)
            raise SpratError(*lines) from error
        return replace(found, layout=f"an archive, which holds {found.layout}")
    if form == "parquet":
        return shards.find({place: ""}, place, config)
    return tables.find({place: ""}, place.parent, config)


def _find_in_folder(folder: Path, config: PicturesConfig, depth: int = 0) -> Found:
    """List the pictures in a folder: parquet files, class folders, a table, or a folder that holds
    one of these."""
    if files := shards.shards_in(folder):
        return shards.find(files, folder, config)
    inside = folders.scan(folder)
    parts = [name for name in inside.folders if part_of(name)]
    classes = [name for name in inside.folders if not part_of(name)]
    # next to a table, train_images/ and test_images/ are no classes
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
    """Return the tables in a folder or else in its parts, and sentences about what is left out."""
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
