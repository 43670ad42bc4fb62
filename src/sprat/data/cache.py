"""Cache of pictures at their training size, in one memory-mapped file.

The file starts with the pixels (uint8, N x C x side x side; C is 1 if all are grey, else 3),
followed by a JSON object that describes them, then the CRC-32 of everything before it and the
length of the JSON in bytes (4 and 8 bytes, little-endian). A file with a wrong checksum is ignored.
"""

import json
import math
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from sprat.data.imageset import PIECE, is_grey, to_channels

FORMAT = 2  # version of the file; a file of another version is written again
_TAIL = struct.Struct("<IQ")  # checksum, length of the JSON
_PIECE = 1 << 22  # bytes read at once for the checksum


class Mapped:
    """Images at the start of a memory-mapped file, uint8, N x C x H x W, read row by row.

    Pages that were read are released at once, or they would count as the process's own memory, up
    to the size of the file.
    """

    device = torch.device("cpu")

    def __init__(self, path: Path, shape: torch.Size) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._pixels = np.frombuffer(self._map, np.uint8, math.prod(shape)).reshape(shape)
        self.shape = shape

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        images = torch.from_numpy(self._pixels[rows.numpy()])
        if sys.platform != "win32":
            self._map.madvise(mmap.MADV_DONTNEED)
        return images


class Writer:
    """Writer of such a file, piece by piece: `add` images, then `finish`.

    Args:
        file: empty, open for reading and writing.
        side: side of the images in pixels.
    """

    def __init__(self, file: IO[bytes], side: int) -> None:
        self._file, self._side, self._channels = file, side, 1
        self._images, self._crc = 0, 0

    def add(self, images: Tensor) -> None:
        """Append images, uint8, n x 3 x side x side."""
        if self._channels == 1 and not is_grey(images):
            self._widen()
        self._write(to_channels(images, self._channels).contiguous().numpy().data.cast("B"))
        self._images += len(images)

    def _widen(self) -> None:
        """Give all images so far, which are grey, three planes; the last first, so none is lost."""
        plane = self._side**2
        for first in reversed(range(0, self._images, PIECE)):
            self._file.seek(first * plane)
            pixels = np.frombuffer(self._file.read(PIECE * plane), np.uint8)
            some = pixels[: (self._images - first) * plane].reshape(-1, 1, plane)
            self._file.seek(3 * first * plane)
            self._file.write(some.repeat(3, axis=1).data.cast("B"))
        self._channels = 3
        self._crc = _crc_of(self._file, 3 * self._images * plane)

    def finish(self, about: dict[str, Any]) -> None:
        """Complete the file with a description for `read` to return: plain values for JSON."""
        shape = {"images": self._images, "channels": self._channels, "side": self._side}
        footer = {"format": FORMAT, **shape, "about": about}
        text = json.dumps(footer).encode()
        self._write(text)
        self._file.write(_TAIL.pack(self._crc, len(text)))

    def _write(self, content: bytes | memoryview) -> None:
        self._file.write(content)
        self._crc = zlib.crc32(content, self._crc)


def read(
    path: Path, wanted: Callable[[dict[str, Any]], bool]
) -> tuple[Mapped, dict[str, Any]] | None:
    """Return the images and the description passed to `Writer.finish`; None if there is no such
    file, another version wrote it, it is damaged, or `wanted` rejects its description."""
    try:
        with path.open("rb") as file:
            crc, footer, begin, end = _read_end(file)
            if footer["format"] != FORMAT or not wanted(footer["about"]):
                return None
            if _crc_of(file, end) != crc:
                return None
        side = footer["side"]
        shape = torch.Size((footer["images"], footer["channels"], side, side))
        return (Mapped(path, shape), footer["about"]) if math.prod(shape) == begin else None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None


def _read_end(file: IO[bytes]) -> tuple[int, Any, int, int]:
    """Return the checksum, the JSON object, and where the JSON begins and ends in the file."""
    end = file.seek(0, os.SEEK_END) - _TAIL.size
    file.seek(max(0, end))
    crc, length = _TAIL.unpack(file.read())
    begin = file.seek(end - length)  # ValueError if before the start of the file
    return crc, json.loads(file.read(length)), begin, end


def _crc_of(file: IO[bytes], size: int) -> int:
    """Return the CRC-32 of the first `size` bytes."""
    file.seek(0)
    crc = 0
    for begin in range(0, size, _PIECE):
        crc = zlib.crc32(file.read(min(_PIECE, size - begin)), crc)
    return crc
