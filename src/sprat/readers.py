"""Readers of files from any source: regular files, of limited size, containing only plain values.

Whatever is wrong with a file is reported by a `SpratError` of one sentence, within a second.
"""

import json
import math
import stat
import tomllib
from pathlib import Path
from typing import Any

from sprat.errors import SpratError
from sprat.text import command

MODEL_BYTES = 1 << 30  # largest file of weights
JSON_BYTES = 64 << 20
RECIPE_BYTES, RECIPE_LINE = 32 << 10, 1_000  # tomllib takes time quadratic in the parts of a key
DEEPEST = 32  # nesting of tables and lists


def read_bytes(path: Path, most: int) -> bytes:
    """Return the content of a file.

    Raises:
        FileNotFoundError: there is none; the caller says what that means.
        SpratError: it is not a regular file (a FIFO would block), is larger than `most` bytes, or
            cannot be read.
    """
    try:
        state = path.stat()
        if stat.S_ISREG(state.st_mode) and state.st_size <= most:
            return path.read_bytes()
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:  # no permission, a loop of links, NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise SpratError(
            f"{path} cannot be read: {reason}. Check its name and permissions."
        ) from error
    if not stat.S_ISREG(state.st_mode):
        kind = "a folder" if stat.S_ISDIR(state.st_mode) else "a device, pipe or socket"
        raise SpratError(f"{path} is {kind}, expected a file. Give the path of a file.")
    raise SpratError(
        f"{path} has {state.st_size:,} bytes, expected at most {most:,}. Check that it is the "
        "right file."
    )


def unlisted(folder: Path, error: OSError) -> SpratError:
    """Return the error to raise if the system refuses to list a folder."""
    remedy = "Give a folder that can be listed."
    if isinstance(error, PermissionError):
        remedy = f"Give yourself permission with {command('chmod', 'u+rx', folder)}"
    return SpratError(f"{folder} cannot be read: {error.strerror}. {remedy}")


def read_text(path: Path, most: int = JSON_BYTES) -> str:
    """Return the content of a UTF-8 file; raise as `read_bytes`, or if it is not UTF-8."""
    try:
        return read_bytes(path, most).decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpratError(
            f"{path} is not UTF-8 text: {error.reason} at byte {error.start}. Check that it is the "
            "right file."
        ) from error


def parse_json(text: str) -> Any:
    """Return the value of a JSON text, with all numbers finite and within 64 bits.

    Raises:
        ValueError: it is not JSON, nested too deeply, or contains a number outside that range.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except RecursionError:
        raise ValueError(f"it is nested more than {DEEPEST} levels deep") from None
    except ValueError:  # Python refuses more than 4,300 digits
        raise ValueError("it contains a number beyond 64 bits") from None
    _check_plain(value)
    return value


def _check_plain(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST):
        within: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                within += each.values()
            elif isinstance(each, list):
                within += each
            elif isinstance(each, float) and not math.isfinite(each):
                raise ValueError(f"it contains {each}, which is not a finite number")
            elif isinstance(each, int) and not -(2**63) <= each < 2**63:
                raise ValueError("it contains a number beyond 64 bits")
        if not within:
            return
        level = within
    raise ValueError(f"it is nested more than {DEEPEST} levels deep")


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file of settings.

    Raises:
        FileNotFoundError: there is none.
        SpratError: it cannot be read, is not TOML, or is larger than any settings are.
    """
    text = read_text(path, RECIPE_BYTES)
    for number, line in enumerate(text.splitlines(), 1):
        if len(line) > RECIPE_LINE:
            raise SpratError(
                f"{path} has {len(line):,} characters in line {number}, expected at most "
                f"{RECIPE_LINE:,}. Split the line."
            )
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise SpratError(
            f"{path} is not valid TOML: it is nested too deeply. Simplify it."
        ) from error
    except ValueError as error:  # TOMLDecodeError, or a value that int or date rejects
        raise SpratError(f"{path} is not valid TOML: {error}. Correct that line.") from error
