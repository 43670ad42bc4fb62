"""In which form own pictures are: class folders, a table, an archive or parquet files."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from sprat.data import archive, folders, shards, tables
from sprat.data.fetch import Say
from sprat.data.found import Found, first_part, part_of
from sprat.data.own import PicturesConfig, form_of
from sprat.errors import SpratError

_DEEPEST = 10  # folders that wrap one another around a set


def find(
    place: Path,
    config: PicturesConfig,
    say: Say = lambda text: None,
    check: Callable[[Found], None] = lambda found: None,
) -> Found:
    """List own pictures of any form, without reading one.

    Args:
        check: called with what was found, before an archive comes into the cache; raises to refuse
            it.

    Raises:
        SpratError: the place holds nothing of these forms.
    """
    form = None if place.is_dir() else form_of(place.name)
    if form == "archive":

        def find_in(folder: Path) -> Found:
            def named(lines: Iterable[str]) -> list[str]:  # nobody mends what is in the cache
                return [line.replace(str(folder), str(place)) for line in lines]

            try:
                found = _find_in_folder(folder, config)
            except SpratError as error:
                raise SpratError(*named(error.args)) from error
            check(found)
            about = f"an archive, which holds {found.layout}"
            return replace(found, layout=about, left_out=named(found.left_out))

        return find_in(archive.extract(place, say, find_in))
    if form is None:
        found = _find_in_folder(place, config)
    elif form == "parquet":
        found = shards.find({place: ""}, place, config)
    else:
        found = tables.find({place: ""}, place.parent, config)
    check(found)
    return found


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
