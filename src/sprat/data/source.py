"""Interfaces of a dataset's module; `sprat.data` has the table of these modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from sprat.data.fetch import Log, Progress
    from sprat.data.imageset import ImageSet


class Built(Protocol):
    """A dataset that is generated, without files."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """Its name in a sentence."""

    @property
    def CAUTION(self) -> str:  # noqa: N802
        """A sentence printed below results, or ""."""

    def load(self) -> tuple[ImageSet, ImageSet]:
        """Return the training and test sets."""


class Published(Protocol):
    """A dataset in files with published md5s, which can be found or downloaded."""

    @property
    def TITLE(self) -> str:  # noqa: N802
        """Its name in a sentence."""

    @property
    def PLACES(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the files or folders that contain it."""

    @property
    def FETCHED(self) -> tuple[str, ...]:  # noqa: N802
        """Names of the files that `download` writes."""

    def find(self, folder: Path) -> Path | None:
        """Return what `load` needs if it is in `folder`, else None."""

    def load(self, place: Path) -> tuple[ImageSet, ImageSet]:
        """Read the training and test sets from what `find` returned.

        Raises:
            SpratError: a file is missing or damaged, or a package is not installed.
        """

    def download(self, folder: Path, progress: Progress, log: Log) -> Path:
        """Download the dataset into `folder`; return what `load` needs.

        Raises:
            SpratError: no source provided it, or it cannot be written.
        """

    def verify(self, folder: Path) -> dict[Path, str]:
        """Return the state of each of its files in `folder`: "ok", "damaged" or "missing"."""
