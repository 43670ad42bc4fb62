"""Your own pictures in an archive, which is extracted once into the user's cache.

No name in an archive can make a file land outside the folder made for it. Links, devices and
archives of excessive size are refused.
"""

import bz2
import gzip
import hashlib
import io
import json
import lzma
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, NamedTuple, cast

from sprat.data.fetch import Log
from sprat.data.found import cut
from sprat.data.picture import is_skipped
from sprat.errors import SpratError, shown
from sprat.files import cache_dir, lock, replacing_folder

MOST_FILES = 2_000_000
MOST_BYTES = 64 << 30  # of all files together
MOST_TIMES = 100  # the archive's own size: pictures are already compressed
ALWAYS_BYTES = 1 << 30  # allowed whatever the archive's own size
_PIECE = 1 << 20  # bytes copied at once
_LONGEST_HEADER = 1 << 24  # bytes, of a tar's header of one file
_LONGEST_DIRECTORY = 100 * MOST_FILES  # bytes, of a zip's central directory
_LONGEST_NAME, _LONGEST_PATH = 255, 1_024  # bytes
_COMPRESSED: dict[bytes, Callable[..., object]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_STATE = ".sprat.json"  # next to the files: their number and total size


class _Member(NamedTuple):
    """An entry of an archive. kind: "" for a file, else what it is instead."""

    name: str
    size: int
    kind: str
    open: Callable[[], IO[bytes]]


def extract(
    archive: Path,
    log: Log = lambda text: None,
    check: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Return the cached folder with an archive's files; extract it, completely or not at all, if it
    is not in the cache yet.

    Args:
        check: called with the folder of extracted files before it enters the cache; raises to
            refuse them.

    Raises:
        SpratError: the archive is damaged or not safe to extract, or the disk is full.
    """
    try:
        with archive.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        place = cache_dir() / "archives" / digest[:32]
        waiting = f"another process is extracting {archive}; waiting for it"
        place.parent.mkdir(parents=True, exist_ok=True)
        with lock(place.with_name(f".{place.name}.lock"), lambda holder: log(waiting)):
            if not _is_whole(place):
                shutil.rmtree(place, ignore_errors=True)  # its files were changed
                with replacing_folder(place, [_STATE]) as folder:
                    _extract(archive, folder)
                    check(folder)
    except SpratError:
        raise
    except OSError as error:
        raise SpratError(
            f"{archive} cannot be extracted into {cache_dir()}: {error.strerror or error}. Free "
            "some space there, name another folder with XDG_CACHE_HOME, or extract it yourself "
            "and give the folder."
        ) from error
    return place


def _extract(archive: Path, folder: Path) -> None:
    """Extract an archive into an empty folder.

    Raises:
        SpratError: the archive is damaged or not safe to extract.
        OSError: reading the archive or writing to the disk failed.
    """
    most = min(MOST_BYTES, max(ALWAYS_BYTES, MOST_TIMES * archive.stat().st_size))
    room = shutil.disk_usage(folder).free
    files = size = 0
    try:
        for member in _members(archive, most):
            path = _safe(archive, member)
            if path is None:
                continue
            files, size = files + 1, size + member.size
            if files > MOST_FILES or size > most:
                raise _too_large(archive, most)
            if size > room:
                raise OSError(f"{room:,} bytes are free")
            _write(archive, member, folder / path)
    except SpratError:
        raise
    except Exception as error:  # damaged archives raise all sorts
        if isinstance(error, OSError) and (error.errno or size > room):
            raise
        raise SpratError(
            f"{archive} is damaged or not an archive: {cut(error) or type(error).__name__}. "
            "Download it again, or extract it yourself and give the folder."
        ) from error
    if not files:
        raise SpratError(f"{archive} contains no files. Give an archive of pictures.")
    (folder / _STATE).write_text(json.dumps([files, size]))
    if hasattr(os, "sync"):  # all files, before the folder is moved into place
        os.sync()


def _is_whole(place: Path) -> bool:
    """Return whether the extracted files in the cache are complete."""
    try:
        state = json.loads((place / _STATE).read_text())
    except (OSError, ValueError):
        return False
    files = size = 0
    for folder, _, names in os.walk(place):
        files += len(names)
        size += sum(Path(folder, name).lstat().st_size for name in names)
    return state == [files - 1, size - (place / _STATE).stat().st_size]


def _members(archive: Path, most: int) -> Iterator[_Member]:
    if archive.suffix.lower() == ".zip":
        with _Zip(io.FileIO(archive)) as zipped, zipfile.ZipFile(zipped) as packed:
            for info in packed.infolist():
                name = info.filename.replace("\\", "/")  # written by old Windows programs
                if not name.endswith("/"):
                    mode = stat.S_IFMT(info.external_attr >> 16)
                    kind = "" if mode in (0, stat.S_IFREG) else "a link or a device"
                    kind = "a file with a password" if info.flag_bits & 1 else kind
                    yield _Member(name, info.file_size, kind, partial(packed.open, info))
        return
    with archive.open("rb") as file:
        start = file.read(8)
    opener = next((each for magic, each in _COMPRESSED.items() if start.startswith(magic)), open)
    with cast(IO[bytes], opener(archive, "rb")) as content:
        stream = _Bounded(content, archive, most)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as tar:
            while found := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # or they are all kept
                if not found.isdir():
                    kind = "" if found.isreg() and not found.issparse() else "a link or a device"
                    yield _Member(found.name, found.size, kind, partial(_opened, tar, found))
            if stream.last != bytes(tarfile.BLOCKSIZE):  # tarfile ends at a damaged header
                raise tarfile.ReadError("it is damaged before its end marker")
        while stream.read(_PIECE):  # the checksum is compared at the very end
            pass


class _Zip(io.BufferedReader):
    """File of a zip archive that refuses to read an excessively large directory at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _LONGEST_DIRECTORY:
            raise zipfile.BadZipFile(f"a directory of {size:,} bytes")
        return super().read(size)


def _opened(tar: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    file = tar.extractfile(info)
    assert file is not None
    return file


class _Bounded:
    """Forward-only stream of a tar archive that refuses to read an excessively large header."""

    def __init__(self, file: IO[bytes], archive: Path, most: int) -> None:
        self._file, self._archive, self._most = file, archive, most
        self._at, self.last = 0, b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        content = self._file.read(size)
        self._at, self.last = self._at + len(content), content
        if self._at > self._most + _LONGEST_HEADER:
            raise _too_large(self._archive, self._most)
        return content

    def seek(self, at: int) -> None:
        while self._at < at and self.read(min(_PIECE, at - self._at)):
            pass

    def tell(self) -> int:
        return self._at


def _safe(archive: Path, member: _Member) -> PurePosixPath | None:
    """Return a file's path within the folder; None for a file that is always skipped.

    Raises:
        SpratError: the path is outside the folder, or the entry is not a file.
    """
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts or PureWindowsPath(member.name).drive:
        raise SpratError(
            f"{archive} contains {shown(member.name)}, which is outside the folder that it is "
            "extracted to. Pack it again with paths inside one folder."
        )
    if not path.parts or any(map(is_skipped, path.parts)):
        return None
    names = [os.fsencode(name) for name in path.parts]
    if len(os.fsencode(path)) > _LONGEST_PATH or max(map(len, names)) > _LONGEST_NAME:
        raise SpratError(
            f"{archive} contains a path of {len(member.name):,} characters ({shown(member.name)}). "
            "Pack it again with shorter names."
        )
    if member.kind:
        raise SpratError(
            f"{archive} contains {shown(member.name)}, which is {member.kind}. Pack the files "
            "themselves, or extract it yourself and give the folder."
        )
    return path


def _write(archive: Path, member: _Member, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        target = path.open("xb")
    except (FileExistsError, NotADirectoryError) as error:
        raise SpratError(
            f"{archive} contains {shown(member.name)} twice. Pack it again with each file only "
            "once."
        ) from error
    with target, member.open() as content:
        written = 0
        while piece := content.read(_PIECE):
            written += target.write(piece)
    if written != member.size:
        raise EOFError(f"{member.name} ends after {written:,} of {member.size:,} bytes")


def _too_large(archive: Path, most: int) -> SpratError:
    return SpratError(
        f"{archive} contains more than {MOST_FILES:,} files or {most:,} bytes, which is not safe "
        "to extract automatically. Extract it yourself and give the folder."
    )
