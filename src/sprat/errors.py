"""Errors that the user can correct (the command line prints them and exits with 2), how values
appear in them, and suggestions for mistyped names."""

import difflib
import errno
import reprlib
from collections.abc import Iterable
from pathlib import Path

from sprat.text import visible


class SpratError(ValueError):
    """An error that the user can correct: it says what is wrong, with the value, and what to do.

    Args:
        lines: lines of the message, usually one. Line breaks and other control characters within a
            line, which come from names and values, are shown as escapes.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__(*lines)

    def __str__(self) -> str:
        return "\n".join(map(visible, self.args))


class Diverged(SpratError):
    """A loss or a weight is no longer finite; a lower learning rate may help."""


class Interrupted(Exception):
    """The run in `folder` was asked to stop; it is saved and can be resumed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"The run in {folder} was asked to stop, and saved. Resume it later.")
        self.folder = folder


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def in_words(error: SpratError | OSError) -> str:
    """Return the message of an error, without Python's class names and error numbers."""
    if isinstance(error, SpratError):
        return str(error)
    if error.filename is None and error.errno in _NO_ROOM:  # errors of files have a filename
        return f"Standard output cannot be written: {error.strerror}. Redirect it elsewhere."
    if error.filename is None:
        return f"{error.strerror or error}"
    reason = f"{visible(error.filename)} cannot be used: {error.strerror or error}"
    return f"{reason}. Check its name and permissions, or give another."


def plain(name: str) -> str:
    """Return a name in the form in which names are compared: case, "-" and "_" do not matter."""
    return name.lower().replace("-", "").replace("_", "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean 'X'?" for the nearest of the known names, or ""."""
    by_plain_name = {plain(each): each for each in known}
    near = difflib.get_close_matches(plain(name), list(by_plain_name), n=1)
    return f"; did you mean {by_plain_name[near[0]]!r}?" if near else ""


_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 100, 100


def shown(value: object) -> str:
    """Return a value as an error shows it: its repr on one line, truncated if it is long or
    deep."""
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # an int with more digits than Python prints
        return f"{type(value).__name__} of too many digits"


def lacks_memory(error: Exception) -> bool:
    """Return whether Python, torch or a GPU could not allocate memory."""
    signs = ("DefaultCPUAllocator", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


class PeerEnded(SpratError, ConnectionError):
    """Another process that trains the same run has ended, so the run cannot continue."""
