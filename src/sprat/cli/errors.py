"""Errors that end a command: printed on stderr, with an exit code."""

import contextlib

from sprat.errors import SpratError, in_words
from sprat.text import warn


def ended_by(error: SpratError | OSError) -> int:
    """Print the error that ended a command; return the exit code."""
    if isinstance(error, BrokenPipeError):  # the reader closed the pipe: sprat predict … | head
        return 141
    complain(in_words(error))
    return 2


def complain(text: str) -> None:
    with contextlib.suppress(OSError):
        warn(text)
