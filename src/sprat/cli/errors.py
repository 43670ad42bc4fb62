"""How an error ends a command: in words on stderr, with an exit code."""

import contextlib
import errno

from sprat.errors import SpratError
from sprat.text import visible, warn

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def lacks_memory(error: Exception) -> bool:
    """Whether Python, torch or a GPU could not allocate."""
    signs = ("DefaultCPUAllocator", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def ended_by(error: SpratError | OSError) -> int:
    """Says what ended a command; returns its exit code."""
    if isinstance(error, BrokenPipeError):  # the reader has seen enough: sprat predict … | head
        return 141
    complain(in_words(error))
    return 2


def in_words(error: SpratError | OSError) -> str:
    if isinstance(error, SpratError):
        return str(error)
    if error.filename is None and error.errno in _NO_ROOM:  # files are written under their names
        return f"standard output cannot be written: {error.strerror}. Send it elsewhere."
    where = f" ({visible(error.filename)})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def complain(text: str) -> None:
    with contextlib.suppress(OSError):
        warn(text)
