"""Declaration of an export format."""

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
    """A format in which a model is exported, for programs that run without sprat."""

    name: str
    about: str
    """A phrase for the help, after the name: "quantised to 8 bits"."""
    ending: str
    """Ending of the file or folder, after the model's name: "-int8.onnx"."""
    write: Callable[[Source, Any], Content]
    """Return the content; the second argument is the content of `made_from`."""
    open: Callable[[Any, Graph], Run]
    """Return the function that runs a content: from the graph's input to its output."""
    check: Callable[[Model, Options], None] = lambda model, options: None
    """Raise a SpratError for a model that the format does not support, before images are loaded."""
    names: Callable[[Options], Collection[str]] | None = None
    """Return the names that may be in the folder, for a format that writes one."""
    compile: Callable[[Any, Options], Compiled] | None = None
    """Compile a content and return its memory, or raise a SpratError."""
    size: Callable[[Any], int] = total_bytes
    """Return the bytes of a content on the device."""
    timed: bool = True
    """True if `open` runs the file as users do, so that its time is meaningful."""
    made_from: Format | None = None
    """The format that is written first, also compared, and passed to `write`."""
    exact: bool = True
    """True if every prediction must agree with PyTorch; otherwise the accuracy may drop by
    max_drop, and that of each class by max_class_drop."""
    calibrated: bool = False
    """True if training images are needed."""
    stored_ranges: bool = False
    """True if the ranges of activations stored with the model can replace training images."""
    takes: tuple[str, ...] = ()
    """Options that not every format supports."""
    packages: tuple[str, ...] = ()
    """Modules needed to write or open it."""
    extra: str = ""
    """The extra of sprat that installs them."""

    @property
    def suffix(self) -> str:
        """The suffix that every file of this format must have: ".onnx"."""
        return Path(f"NAME{self.ending}").suffix

    def require_packages(self) -> None:
        """Check that every package it needs is installed.

        Raises:
            SpratError: one is missing; the message says how to install it.
        """
        missing = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if missing:
            raise SpratError(
                f"The format {self.name} needs packages that are not installed: "
                f"{', '.join(missing)}. Install them with pip install 'sprat[{self.extra}]'"
            )
