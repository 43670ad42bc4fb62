"""Declarations of an export format."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.errors import SpratError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from sprat.checkpoint import Model
    from sprat.deploy import Options
    from sprat.deploy.c.compiler import Compiled
    from sprat.deploy.graph import Graph, Run, Source

Content = bytes | dict[str, bytes]  # of a file, or of the files of a folder by their names


def total_bytes(content: Content) -> int:
    """Return the size of a file, or of a folder's files together."""
    return len(content) if isinstance(content, bytes) else sum(map(len, content.values()))


@dataclass(frozen=True, kw_only=True)
class Format:
    """One form in which a model is written, for programs that run without sprat."""

    name: str
    about: str
    """A phrase for the help, after the name: "quantised to 8 bits"."""
    ending: str
    """Ending of the file or folder, after the model's name: "-int8.onnx"."""
    write: Callable[[Source, Any], Content]
    """Return the content; the second argument is that of `made_from`."""
    open: Callable[[Any, Graph], Run]
    """Return a function from the graph's input to its output that runs a content."""
    check: Callable[[Model, Options], None] = lambda model, options: None
    """Raise a SpratError for a model that has no such form, before any image is loaded."""
    names: Callable[[Options], Collection[str]] | None = None
    """Return the names of what may be in the folder, of a format that is one."""
    compile: Callable[[Any, Options], Compiled] | None = None
    """Compile a content and return what it takes, or raise a SpratError."""
    size: Callable[[Any], int] = total_bytes
    """Return the bytes that a content takes where it is used."""
    timed: bool = True
    """True if `open` returns what a user runs, so that its time is meaningful."""
    made_from: Format | None = None
    """The format that is written first, compared too, and handed to `write`."""
    exact: bool = True
    """True if every prediction must agree with PyTorch; otherwise the accuracy may drop by
    max_drop, and that of each class by max_class_drop."""
    calibrated: bool = False
    """True if training images are needed."""
    stored_ranges: bool = False
    """True if the ranges of activations stored with the model can replace training images."""
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
