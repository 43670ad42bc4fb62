"""Decoding of untrusted pictures.

Small JPEG and PNG files take less than a millisecond and are decoded in the server. All other files
are decoded in processes with limits on time and memory, which are killed when they exceed them.
"""

import asyncio
import contextlib
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import signal
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from queue import SimpleQueue
from threading import Lock
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from sprat.data.picture import fit, upright
from sprat.errors import SpratError
from sprat.serve.limits import Limits
from sprat.serve.refusals import Refused

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # no others of Pillow's are used
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
SCAN_START = b"\xff\xda"
MOST_SCANS = 64  # each processes the whole picture; scans of a few bytes could cost seconds
USUAL_SCANS = 16  # allowed for a progressive JPEG of the most pixels
MOST_PIECES = 10_000  # chunks, segments, blocks, frames, strips, tiles; Pillow loops over them
MOST_TEXTS = 100  # of a PNG; each may be a megabyte when unpacked
PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf"})
TIFF_PREFIXES = (b"II\x2a\0", b"MM\0\x2a", b"II\x2b\0", b"MM\0\x2b", b"MM\x2a\0", b"II\0\x2a")
# none, CCITT, LZW, JPEG, Deflate, PackBits
TIFF_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})

QUICK_BYTES = 1 << 14
QUICK_PIXELS = 1 << 14

# forked from a process that has imported everything, since one with threads must not be forked
# (its socket is a temporary file, and the system limits the length of its path)
FORKED = sys.platform != "win32" and len(os.fsencode(tempfile.gettempdir())) <= 70
PROCESSES: Any = multiprocessing.get_context("forkserver" if FORKED else "spawn")
PRELOADED = ["sprat.cli", __name__]


def prepare() -> None:
    """Start to import, in a separate process, what the decoding processes need."""
    if FORKED:
        PROCESSES.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()


def is_quick(content: bytes) -> bool:
    """Return whether a file takes at most about a millisecond to decode, if it has few pixels."""
    if len(content) > QUICK_BYTES or content.count(SCAN_START) > USUAL_SCANS:
        return False
    return content.startswith(JPEG) or (
        content.startswith(PNG) and not any(kind in content for kind in PNG_TEXTS)
    )


def decode(content: bytes, side: int, limits: Limits) -> Tensor:
    """Return a picture as the network takes it: uint8, 3 x side x side; of an animation, the first
    frame.

    Raises:
        Refused: it is empty, damaged, too large, crafted to be slow, or in an unsupported format.
    """
    if not content:
        raise _empty()
    check_structure(content)
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_size(image, limits)
            if content.startswith(JPEG):
                check_scans(content.count(SCAN_START), image.width * image.height, limits)
            image.load()
            return fit(upright(image), side)
    except Refused:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_many_pixels(limits) from error
    except UnidentifiedImageError as error:
        words = (
            "The file is not a picture that can be read. Send JPEG, PNG, WebP, GIF, BMP or TIFF."
        )
        raise Refused(415, "no picture", words) from error
    except MemoryError as error:
        words = "Decoding the picture takes too much memory. Make it smaller, or save it as JPEG."
        raise Refused(413, "memory", words) from error
    except Exception as error:  # a damaged file raises anything
        words = "The picture is damaged or incomplete. Send another copy."
        raise Refused(422, "damaged", words) from error


def check_size(image: Image.Image, limits: Limits) -> None:
    """Refuse a picture by the size in its header."""
    if image.width * image.height > limits.max_pixels:
        raise _too_many_pixels(limits)
    if max(image.size) > limits.max_side:
        words = (
            f"The picture has {image.width:,} x {image.height:,} pixels. Send one of at most "
            f"{limits.max_side:,} on a side."
        )
        raise Refused(413, "pixels", words)


def check_scans(scans: int, pixels: int, limits: Limits) -> None:
    """Refuse a JPEG with many scans, each of which processes the whole picture."""
    if scans > MOST_SCANS or scans * pixels > USUAL_SCANS * limits.max_pixels:
        most = min(MOST_SCANS, USUAL_SCANS * limits.max_pixels // max(1, pixels))
        raise Refused(422, "scans", f"The JPEG has more than {most} scans. Save it again.")


def _too_many_pixels(limits: Limits) -> Refused:
    words = f"The picture has too many pixels. Send one of at most {limits.max_pixels:,}."
    return Refused(413, "pixels", words)


def _empty() -> Refused:
    return Refused(422, "empty", "The file is empty. Send a picture.")


def check_structure(content: bytes) -> None:
    """Refuse a file with so many parts that reading them takes seconds, whatever its size.

    Invalid files pass, since Pillow refuses them.
    """
    if content.startswith(b"BM") and content[30:31] in (b"\1", b"\2"):  # in Python, slowly
        raise Refused(
            415, "compression", "A BMP with run-length encoding cannot be read. Save it as PNG."
        )
    for prefix, pieces in PIECES.items():
        if content.startswith(prefix):
            with contextlib.suppress(struct.error, IndexError):  # the file is truncated
                met = Counter(itertools.islice(pieces(content), MOST_PIECES + 1))
                texts = sum(met[kind] for kind in PNG_TEXTS)
                if met.total() > MOST_PIECES or texts > MOST_TEXTS:
                    raise _too_many_parts()
            return


def _too_many_parts() -> Refused:
    words = "The file has too many parts (chunks, strips, tiles or frames). Save it again."
    return Refused(422, "parts", words)


def _png_chunks(content: bytes) -> Iterator[bytes]:
    at, kind = len(PNG), b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind
        at += 12 + length


def _jpeg_segments(content: bytes) -> Iterator[int]:
    """Yield the segments before the first scan; bytes between them count one by one, as Pillow
    reads them."""
    at = 2
    while content[at : at + 2] != SCAN_START:
        first, marker = content[at], content[at + 1]
        yield marker
        if first != 0xFF:
            at += 1
        elif marker in (0, 0xFF):
            at += 1 + (marker == 0)
        elif 0xD0 <= marker <= 0xD9:  # without a length
            at += 2
        else:
            at += 2 + max(2, struct.unpack_from(">H", content, at + 2)[0])


def _gif_blocks(content: bytes) -> Iterator[int]:
    """Yield the blocks before the first frame; later ones are not read."""
    at = 13 + (3 << ((content[10] & 7) + 1) if content[10] & 0x80 else 0)
    while content[at] not in b",;":
        yield content[at]
        if content[at] != ord("!"):
            at += 1
            continue
        at += 2
        while length := content[at]:
            yield length
            at += 1 + length
        at += 1


def _riff_chunks(content: bytes) -> Iterator[bytes]:
    at = 12
    while at < len(content):
        kind, length = struct.unpack_from("<4sI", content, at)
        yield kind
        at += 8 + length + length % 2


def _tiff_parts(content: bytes) -> Iterator[int]:
    """Yield the tags of the first image, the only one that is read, and its strips or tiles.

    Raises:
        Refused: its compression is not supported, or its tags claim more data than there is.
    """
    order = "<" if content.startswith(b"II") else ">"
    wide = content[2] == 43  # BigTIFF
    (at,) = struct.unpack_from(f"{order}{'Q' if wide else 'L'}", content, 8 if wide else 4)
    (count,) = struct.unpack_from(f"{order}{'Q' if wide else 'H'}", content, at)
    at += 8 if wide else 2
    tags: dict[int, int] = {}  # first or only value, or number of values
    claimed = 0
    for _ in range(count):
        tag, kind, values = struct.unpack_from(f"{order}HH{'Q' if wide else 'L'}", content, at)
        yield tag
        at += 12 if wide else 8
        claimed += values
        if tag in (273, 279, 324, 325):  # offsets and lengths of strips and tiles
            tags[tag] = values
        else:
            tags[tag] = struct.unpack_from(f"{order}{'H' if kind == 3 else 'L'}", content, at)[0]
        at += 8 if wide else 4
    if tags.get(259, 1) not in TIFF_COMPRESSIONS:
        words = (
            f"A TIFF with compression method {tags[259]} cannot be read. Save it as PNG or JPEG."
        )
        raise Refused(415, "compression", words)
    if claimed > len(content):
        raise _too_many_parts()
    width, height = tags.get(256, 0), tags.get(257, 0)
    columns = -(-width // max(1, tags.get(322, width)))
    rows = -(-height // max(1, tags.get(323, tags.get(278, height))))
    planes = tags.get(277, 1) if tags.get(284) == 2 else 1
    listed = max((tags.get(tag, 0) for tag in (273, 279, 324, 325)), default=0)
    yield from range(max(columns * rows * planes, listed))


PIECES: dict[bytes | tuple[bytes, ...], Callable[[bytes], Iterator[Any]]] = {
    PNG: _png_chunks,
    JPEG: _jpeg_segments,
    b"GIF8": _gif_blocks,
    b"RIFF": _riff_chunks,
    TIFF_PREFIXES: _tiff_parts,
}


class Decoders:
    """Decode pictures for the server.

    Of the waiting pictures, the next is one of the client that has the fewest being decoded and was
    served least recently; of that client's pictures, the smallest file. So no client makes the
    others wait for all of its pictures.

    Args:
        side: side of the network's input, in pixels.
    """

    def __init__(self, side: int, limits: Limits) -> None:
        self._side = side
        self._quick = dataclasses.replace(
            limits, max_pixels=QUICK_PIXELS, max_side=min(QUICK_PIXELS, limits.max_side)
        )
        self._processes = [_Process(side, limits) for _ in range(limits.decoders)]
        self._free: SimpleQueue[_Process] = SimpleQueue()
        for process in self._processes:
            self._free.put(process)
        self._threads = ThreadPoolExecutor(limits.decoders, "decoder")
        self._places = limits.decoders
        self._waiting: list[tuple[str, int, asyncio.Future[None]]] = []
        self._busy: Counter[str] = Counter()  # pictures being decoded, by client
        self._served: dict[str, int] = {}  # turn in which each current client was last served
        self._turns = itertools.count(1)

    def start(self) -> None:
        """Start the processes, and wait until they are ready.

        Raises:
            SpratError: they cannot be started.
        """
        try:
            list(self._threads.map(_Process.start, self._processes))
        except Refused as refused:
            self.close()
            raise SpratError(
                "The processes that decode pictures cannot be started. Check that there is enough "
                "memory, and space in the folder for temporary files."
            ) from refused

    async def decode(self, file: BinaryIO, size: int, client: str) -> Tensor:
        """Return a picture as the network takes it: uint8, 3 x side x side.

        Args:
            file: file of `size` bytes, at its beginning.
            client: address of the client that waits for it.

        Raises:
            Refused: as for `decode`, or decoding takes too long.
        """
        if size <= QUICK_BYTES:
            content = file.read()
            if is_quick(content):
                try:
                    return decode(content, self._side, self._quick)
                except Refused as refused:
                    if refused.reason != "pixels":
                        raise
            file.seek(0)
        async with self._turn(client, size):
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._threads, self._decode_apart, file)

    def close(self) -> None:
        """Kill the processes, whatever they are doing."""
        for process in self._processes:
            process.close()
        self._threads.shutdown()

    def _decode_apart(self, file: BinaryIO) -> Tensor:
        content = file.read()
        if not content:
            raise _empty()
        process = self._free.get()
        try:
            return process.decode(content)
        finally:
            self._free.put(process)

    @contextlib.asynccontextmanager
    async def _turn(self, client: str, size: int) -> AsyncIterator[None]:
        if self._places:
            self._places -= 1
        else:
            turn = asyncio.get_running_loop().create_future()
            self._waiting.append((client, size, turn))
            try:
                await turn
            except asyncio.CancelledError:
                if turn.cancelled():
                    self._waiting.remove((client, size, turn))
                else:  # its turn came at the same moment
                    self._hand_on()
                raise
        self._busy[client] += 1
        self._served[client] = next(self._turns)
        try:
            yield
        finally:
            self._busy[client] -= 1
            if not self._busy[client]:
                del self._busy[client]
                if all(other != client for other, _, _ in self._waiting):
                    del self._served[client]
            self._hand_on()

    def _hand_on(self) -> None:
        if not self._waiting:
            self._places += 1
            return

        def order(waiting: tuple[str, int, asyncio.Future[None]]) -> tuple[int, int, int]:
            client, size, _ = waiting
            return self._busy[client], self._served.get(client, 0), size

        following = min(self._waiting, key=order)
        self._waiting.remove(following)
        following[2].set_result(None)


class _Process:
    """A process that decodes one picture after another, and is replaced if one takes too long.

    One thread at a time may use it; `close` may come from another.
    """

    def __init__(self, side: int, limits: Limits) -> None:
        self._side, self._limits = side, limits
        self._lock = Lock()
        self._running: tuple[BaseProcess, Connection] | None = None
        self._closed = False

    def start(self) -> Connection:
        """Start the process unless it runs; return the connection to it once it is ready.

        Raises:
            Refused: the process cannot be started, or the server is shutting down.
        """
        try:
            with self._lock:
                if self._closed:
                    raise EOFError
                if self._running is not None:
                    return self._running[1]
                ours, theirs = PROCESSES.Pipe()
                process = PROCESSES.Process(
                    target=_work, args=(theirs, self._side, self._limits), daemon=True
                )
                process.start()
                theirs.close()
                self._running = process, ours
            ours.recv_bytes()
            return ours
        except (OSError, EOFError) as error:
            self._end()
            words = (
                "The server cannot start a process to decode the picture. Try again in a minute."
            )
            raise Refused(503, "no decoder", words) from error

    def decode(self, content: bytes) -> Tensor:
        """Call `decode` in the process."""
        pipe = self.start()
        try:
            pipe.send_bytes(content)
            if not pipe.poll(self._limits.decode_seconds):
                self._end()
                seconds = self._limits.decode_seconds
                words = f"The picture takes more than {seconds:g} seconds to decode. Save it again."
                raise Refused(422, "slow picture", words)
            answer = pipe.recv_bytes()
        except (OSError, EOFError) as error:  # Pillow crashed, or the system ended it
            self._end()
            raise Refused(
                422, "damaged", "The picture cannot be decoded. Save it again."
            ) from error
        if answer.startswith(b"{"):
            raise Refused(**json.loads(answer))
        pixels = np.frombuffer(answer[1:], np.uint8).reshape(3, self._side, self._side)
        return torch.from_numpy(pixels.copy())

    def close(self) -> None:
        """End the process for good; a thread that waits for it finds the pipe closed."""
        with self._lock:
            self._closed = True
            if self._running is not None:
                process, _ = self._running
                process.kill()
                process.join()

    def _end(self) -> None:
        with self._lock:
            if self._running is not None:
                process, pipe = self._running
                self._running = None
                process.kill()
                process.join()
                pipe.close()


def _work(pipe: Connection, side: int, limits: Limits) -> None:
    """Decode pictures, in the process, until the server closes the pipe or has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, which ends this process
    _bound_memory(limits.decode_memory)
    pipe.send_bytes(b"ready")
    while True:
        try:
            content = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            # a prefix, so that pixels cannot be mistaken for a refusal
            answer = b"+" + decode(content, side, limits).numpy().tobytes()
        except Refused as refused:
            why = {"status": refused.status, "reason": refused.reason, "message": refused.message}
            answer = json.dumps(why).encode()
        pipe.send_bytes(answer)


def _bound_memory(more: int) -> None:
    """Limit this process to `more` bytes beyond its present memory, if the system reports that."""
    with contextlib.suppress(ImportError, OSError):
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
