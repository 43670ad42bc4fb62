"""Text from outside (names, values, messages) as it is shown: nothing in it is interpreted."""

import os
import re
import shlex
import sys
import unicodedata
from pathlib import Path

from sprat import torchrun

# controls, formats (bidirectional overrides among them), lone surrogates, breaks of a line
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian, Indian scripts and emoji are spelt with them
_MARKUP = re.compile(r"[\\`*_\[\]<>|$~]|&(?=#?\w+;)|:(?=[\w+-]+:)")  # Markdown's, GitHub's too


def visible(text: object) -> str:
    """Return text as one line without effect on a terminal: an escape such as \\x1b or \\n stands
    for each character that would not be seen as itself."""
    return "".join(
        character if _is_seen(character) else escape(character) for character in str(text)
    )


def visible_lines(text: object) -> str:
    """Return text as `visible` does, but with its lines as they are."""
    return "\n".join(map(visible, str(text).split("\n")))


def escape(character: str) -> str:
    """Return a character as Python's source would spell it: \\x1b, \\n, \\u202e."""
    return character.encode("unicode_escape").decode()


def warn(text: object) -> None:
    """Print a line of sprat's, or several, on stderr; of the processes that torchrun started on a
    machine, the first does."""
    if torchrun.local_rank() == 0:
        print(f"sprat: {visible_lines(text)}", file=sys.stderr)


def command(*words: object) -> str:
    """Return a command that can be pasted into a shell as it stands, whatever the words hold."""
    return " ".join(map(_quote, words))


def markdown(text: object) -> str:
    """Return text for a line or a table's cell of Markdown, which shows it as it is."""
    return _MARKUP.sub(r"\\\g<0>", visible(text))


def code(text: object) -> str:
    """Return text as a span of code in a line of Markdown."""
    shown = visible(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    pad = " " if len(fence) > 1 else ""
    return f"{fence}{pad}{shown}{pad}{fence}"


def _is_seen(character: str) -> bool:
    return unicodedata.category(character) not in _UNSEEN or character in _JOINERS


def _quote(word: object) -> str:
    text = str(word)
    if isinstance(word, Path) and text.startswith("-"):  # or it would be taken for an option
        text = f"./{text}"
    if visible(text) == text:
        return shlex.quote(text)
    try:
        content = os.fsencode(text)
    except UnicodeEncodeError:  # no file's name
        content = text.encode("utf-8", "surrogatepass")
    return "$'" + "".join(map(_quote_byte, content)) + "'"


def _quote_byte(byte: int) -> str:
    plain = 32 <= byte < 127 and byte not in b"'\\"
    return chr(byte) if plain else f"\\x{byte:02x}"
