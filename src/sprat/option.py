"""Declaration of settings as options of the command line, for cyclopts.

Only the command line needs cyclopts: without it, settings can still be declared and training from
Python works.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cyclopts import Group, Parameter, Token, convert
else:
    try:
        from cyclopts import Group, Parameter, Token, convert
    except ModuleNotFoundError:

        class Ignored:
            """Accept any arguments and ignore them."""

            def __init__(self, *arguments: object, **options: object) -> None:
                pass

        Group = Parameter = Token = convert = Ignored

__all__ = ["Group", "Parameter", "Token", "convert"]
