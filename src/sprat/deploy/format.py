"""What an export format declares, and the options of an export."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.errors import SpratError
from sprat.settings.field import Table, setting

if TYPE_CHECKING:
    from collections.abc import Callable

    from sprat.deploy.graph import Graph, Run, Source


@dataclass(frozen=True, kw_only=True)
class Options(Table):
    """What an export can be asked for. A format that has options of its own adds them here and
    names them in `Format.takes`."""

    raw: bool = setting(
        False,
        "Make the file take normalised float32 images and give logits; by default it takes uint8 "
        "images, 0 to 255, and gives probabilities",
    )
    max_drop: float = setting(
        2.0,
        "Accuracy that a format of lower precision may lose on the compared images",
        at_least=0,
        unit="percentage points",
    )


@dataclass(frozen=True, kw_only=True)
class Format:
    """One form in which a model is written, for programs that run without sprat."""

    name: str
    about: str
    """A phrase for the help, after the name: "quantised to 8 bits"."""
    ending: str
    """Of the file, after the model's name: "-int8.onnx"."""
    write: Callable[[Source, bytes], bytes]
    """Return the file's content; the second argument is that of `made_from`."""
    open: Callable[[bytes, Graph], Run]
    """Return a function from the graph's input to its output that runs a file's content."""
    made_from: Format | None = None
    """The format that is written first, compared too, and handed to `write`."""
    exact: bool = True
    """Whether every answer must agree with torch; otherwise accuracy may drop by max_drop."""
    calibrated: bool = False
    """Whether training images are needed."""
    takes: tuple[str, ...] = ()
    """Options that not every format has."""
    packages: tuple[str, ...] = ()
    """Modules that are imported when it is written or opened."""
    extra: str = ""
    """The extra of sprat that installs them."""

    @property
    def suffix(self) -> str:
        """The suffix that every file of this format must have: ".onnx"."""
        return Path(f"NAME{self.ending}").suffix

    def require_packages(self) -> None:
        """Check that every package it needs is installed.

        Raises:
            SpratError: one is missing; says how to install it.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise SpratError(
                f"The format {self.name} needs packages that are not installed: "
                f"{', '.join(missing)}. Install them with pip install 'sprat[{self.extra}]'"
            )
