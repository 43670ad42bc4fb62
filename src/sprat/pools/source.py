"""Source of training images for any process or machine."""

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
    """A dataset given by its name or path, which can be sent to other processes.

    md5: md5 of the dataset by the side in pixels. own: whether it is own pictures. held: the
    dataset itself, if it is in memory. named: whether other processes can load it by its name.
    """

    name: str
    data_dir: Path | None
    pictures: PicturesConfig
    md5: dict[int, str]
    own: bool
    held: Dataset | None = None
    named: bool = True

    def to_send(self) -> "Source":
        """Return a copy without what other processes can load by themselves."""
        return dataclasses.replace(self, held=None) if self.named else self

    def load(self, side: int) -> Dataset:
        """Return the dataset; a process loads it once for each side.

        Args:
            side: of own pictures, in pixels; other datasets have one of their own.

        Raises:
            SpratError: it is not available, or differs from the one that the command began with.
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
