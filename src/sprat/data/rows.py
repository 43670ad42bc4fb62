"""Rows of a table (CSV, TSV or JSON lines), read at once and limited in size."""

import csv
import io
import itertools
from pathlib import Path

from sprat.errors import SpratError, shown
from sprat.readers import parse_json, read_text

MOST_BYTES = 64 << 20  # size of a table
MOST_ROWS, MOST_COLUMNS = 2_000_000, 1_000
Row = tuple[int, list[str]]  # line number and cells


def read(table: Path) -> tuple[list[str], list[Row]]:
    """Return the column names of a table, and its rows with their line numbers.

    Raises:
        SpratError: the table is damaged, empty, or not a table.
    """
    text = read_text(table, MOST_BYTES).removeprefix("\ufeff")
    try:
        header, records = _parse_csv(table, text) if _is_csv(table) else _parse_json(text)
    except (csv.Error, ValueError) as error:
        raise SpratError(
            f"{table} cannot be read as a table: {error}. Correct it, or give another one."
        ) from error
    if len(records) > MOST_ROWS or len(header) > MOST_COLUMNS:
        raise SpratError(
            f"{table} has more than {MOST_ROWS:,} rows or {MOST_COLUMNS:,} columns. Split it, or "
            "remove what is not needed."
        )
    if not any(header):
        raise SpratError(f"{table} is empty. Give a table with one row per picture.")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise SpratError(f"{table} has two columns {shown(twice)}. Rename one of them.")
    return header, records


def _is_csv(table: Path) -> bool:
    return table.suffix.lower() in (".csv", ".tsv")


def _parse_csv(table: Path, text: str) -> tuple[list[str], list[Row]]:
    first = text.partition("\n")[0]
    separator = "\t" if table.suffix.lower() == ".tsv" else max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    header = [name.strip() for name in next(reader, [])]
    rows = ((reader.line_num, cells) for cells in reader if any(cells))
    return header, list(itertools.islice(rows, MOST_ROWS + 1))


def _parse_json(text: str) -> tuple[list[str], list[Row]]:
    names: dict[str, int] = {}
    records: list[Row] = []
    for line, content in enumerate(text.split("\n"), 1):
        if not content.strip():
            continue
        try:
            values = parse_json(content)
        except ValueError as error:
            raise ValueError(f"line {line:,} is not JSON ({error})") from error
        if not isinstance(values, dict):
            raise ValueError(f"line {line:,} is {shown(values)}, expected an object")
        for name in values:
            names.setdefault(name, len(names))
        if max(len(records) - MOST_ROWS, len(names) - MOST_COLUMNS) > 0:
            break
        cells = [""] * len(names)
        for name, value in values.items():
            cells[names[name]] = str(value) if isinstance(value, str | int | float) else ""
        records.append((line, cells))
    return list(names), records
