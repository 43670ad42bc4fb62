"""Text from outside (names, values, messages), shown so that nothing in it is interpreted."""

import os
import re
import shlex
import sys
import unicodedata
from pathlib import Path

from sprat import torchrun

# control and format characters (such as bidirectional overrides), lone surrogates, line breaks
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # needed for Persian, Indic scripts and emoji
_MARKUP = re.compile(r"[\\`*_\[\]<>|$~]|&(?=#?\w+;)|:(?=[\w+-]+:)")  # of GitHub's Markdown


def visible(text: object) -> str:
    """Return text as one line that has no effect on a terminal: characters that would not be
    visible are replaced by escapes such as \\x1b or \\n."""
    return "".join(
        character if _is_seen(character) else escape(character) for character in str(text)
    )


def visible_lines(text: object) -> str:
    """Return text as `visible` does, but keep its line breaks."""
    return "\n".join(map(visible, str(text).split("\n")))


def escape(character: str) -> str:
    """Return a character as Python source would spell it: \\x1b, \\n, \\u202e."""
    return character.encode("unicode_escape").decode()


def warn(text: object) -> None:
    """Print one or several lines from sprat on stderr; if torchrun started several processes on
    this machine, only the first prints."""
    if torchrun.local_rank() == 0:
        print(f"sprat: {visible_lines(text)}", file=sys.stderr)


def command(*words: object) -> str:
    """Return a command that can be pasted into a shell as it stands, whatever the words contain."""
    return " ".join(map(_quote, words))


def markdown(text: object) -> str:
    """Return text escaped for a line or a table cell of Markdown."""
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def code(text: object) -> str:
    """Return text as a code span for a line of Markdown."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN or character in _JOINERS


def _quote(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):  # or it would look like an option
        text = f"./{text}"
    if visible(text) == text:
        return shlex.quote(text)
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:  # not a file name
        content = text.encode("utf-8", "surrogatepass")
    return "$'" + "".join(map(_quote_byte, content)) + "'"


def _quote_byte(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b"'\\"
    return chr(byte) if plain else f"\\x{byte:02x}"
