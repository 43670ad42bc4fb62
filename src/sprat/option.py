"""Declarations of settings for the command line, in cyclopts' terms.

Only the command line needs cyclopts: where it is not installed, settings are declared all the same,
and training from Python works.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import Group, Parameter, Token, convert
else:
    try:
        from cyclopts import Group, Parameter, Token, convert
    except ModuleNotFoundError:

        class Ignored:
            """Accepts any arguments and ignores them."""

            def __init__(self, *told: object, **options: object) -> None:
                pass

        Group = Parameter = Token = convert = Ignored

__all__ = ["Group", "Parameter", "Token", "convert"]
