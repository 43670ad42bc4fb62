"""The one error that is the user's to mend (the command line prints it and exits with 2), and the
name that was perhaps meant."""

import difflib
from collections.abc import Iterable


class SpratError(ValueError):
    """What was given, what was expected and the remedy, in the user's words."""


def plain(name: str) -> str:
    """A name as it is compared: case, "-" and "_" do not matter."""
    return name.lower().replace("-", "").replace("_", "")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """ "; did you mean 'X'?" for the nearest of the known names, or nothing."""
    by_plain_name = {plain(each): each for each in known}
    near = difflib.get_close_matches(plain(name), list(by_plain_name), n=1)
    return f"; did you mean {by_plain_name[near[0]]!r}?" if near else ""
