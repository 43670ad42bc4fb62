"""Source of the images of trainings, in whatever process or machine they run."""

import dataclasses
import functools
import socket
from dataclasses import dataclass
from pathlib import Path

from sprat.data import Dataset, load_dataset
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError
from sprat.text import visible


@dataclass(frozen=True)
class Source:
    """A dataset by its name or place, which is what is sent to other processes.

    md5: of the dataset at each side in pixels at which it is read. own: whether it is own pictures.
    held: the dataset itself, if it is in memory. named: whether others can load it by its name.
    """

    name: str
    data_dir: Path | None
    pictures: PicturesConfig
    md5: dict[int, str]
    own: bool
    held: Dataset | None = None
    named: bool = True

    def to_send(self) -> "Source":
        """Return the same without what can be loaded elsewhere."""
        return dataclasses.replace(self, held=None) if self.named else self

    def load(self, side: int) -> Dataset:
        """Return the dataset; a process loads it once at each side.

        Args:
            side: of own pictures, in pixels; other datasets have one of their own.

        Raises:
            SpratError: it is not there, or another than where and when the command began.
        """
        if self.held is not None:
            return self.held
        if self.own:
            pictures = dataclasses.replace(self.pictures, side=side)
        else:
            pictures, (side,) = self.pictures, self.md5
        loaded = _load(self.name, self.data_dir, pictures)
        if loaded.md5 != self.md5[side]:
            raise SpratError(
                f"{visible(self.name)} has changed since the search began, or is another one on "
                f"{socket.gethostname()}. Put the images back as they were, on each machine."
            )
        return loaded


@functools.cache
def _load(name: str, data_dir: Path | None, pictures: PicturesConfig) -> Dataset:
    return load_dataset(name, data_dir, own=pictures)
