"""Files written completely or not at all, clear errors, locks between processes, the user's
cache."""

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from sprat.errors import SpratError, shown

# Temporary next to a file until it is complete: .last-0a1b2c3d.sprat.pt
_TEMPORARY = ".*-????????.sprat*"
_TEMPORARY_FOLDER = ".sprat-????????.tmp"
_OLD = "old"  # in a temporary folder: the folder that is being replaced
_ABANDONED = 24 * 3600  # seconds after which a temporary is removed if there are no locks


class WriteError(SpratError, OSError):
    """A file cannot be written; the message says why.

    It is also an OSError, for callers that can do without the file, such as a cache.
    """

    def __init__(self, text: str, error: OSError) -> None:
        super().__init__(text)
        self.errno, self.strerror = error.errno, error.strerror

    def __reduce__(self) -> tuple[Any, ...]:  # so that a worker process can send it
        return WriteError, (self.args[0], OSError(self.errno, self.strerror))


@contextlib.contextmanager
def writing(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn an OSError from writing `path` into a message.

    Args:
        size: bytes of the whole file, if known.

    Raises:
        WriteError: for any OSError that is about `path` or a folder that contains it.
    """
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        if error.errno is None or not _is_about(error, path.absolute()):
            raise
        raise WriteError(f"{path} cannot be written: {_reason(error, path, size)}", error) from (
            error
        )


def _is_about(error: OSError, path: Path) -> bool:
    """Return whether an error is about a path, a parent folder, or a file in it or next to it."""
    if not isinstance(error.filename, str | bytes | os.PathLike):
        return True  # an error from write() names no file
    about = Path(os.fsdecode(error.filename)).absolute()
    return about in (path, *path.parents) or about.parent in (path, path.parent)


def _reason(error: OSError, path: Path, size: int | None) -> str:
    """Return why the system refuses to write `path`, and what to do."""
    if error.errno == errno.ENOSPC:
        return f"the disk is full{_room(path, size)}. Free some space on it."
    if error.errno == errno.EDQUOT:
        return f"the disk quota is used up{_room(path, size)}. Free some space."
    if error.errno == errno.EFBIG:
        needed = f" ({size:,} bytes)" if size else ""
        return f"the file is larger than the system allows{needed}. Raise the limit (ulimit -f)."
    if error.errno in (errno.EACCES, errno.EPERM):
        return "permission denied. Give yourself permission to write, or choose another place."
    if error.errno == errno.EROFS:
        return "the file system is read-only. Choose another place."
    if error.errno == errno.ENAMETOOLONG:
        return "the name is too long. Choose a shorter one."
    if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
        return f"{_in_the_way(path)}. Move that away, or choose another name."
    return f"{error.strerror}. Choose another place, or check that one."


def _room(path: Path, size: int | None) -> str:
    known = [f"{size:,} bytes are needed"] if size else []
    with contextlib.suppress(OSError):
        folder = next(folder for folder in path.absolute().parents if folder.exists())
        known.append(f"{shutil.disk_usage(folder).free:,} bytes are free")
    return f" ({', '.join(known)})" if known else ""


def _in_the_way(path: Path) -> str:
    if path.is_dir():
        return "a folder has that name"
    if path.is_file():
        return "it exists already"
    if path.exists():
        return "it is a device or a pipe"
    parents = (parent for parent in path.parents if parent.exists() and not parent.is_dir())
    return f"{next(parents, path.parent)} is not a folder"


@contextlib.contextmanager
def replacing(path: Path, *, size: int | None = None, new: bool = False) -> Iterator[Path]:
    """Yield a file next to `path` to write to; move it into place only if the block succeeds.

    It is flushed to disk before it is renamed, so that a kill or power cut at any moment leaves the
    old or the new file, complete. Files that killed processes left there are removed first.

    Args:
        size: bytes of the whole file, for the message if the disk is full.
        new: whether to refuse a file that exists, even one created in the meantime.

    Raises:
        WriteError: the system refuses to write it.
    """
    with writing(path, size):
        if path.exists() and (new or not path.is_file()):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        with _temporary(path) as temporary:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            if new:
                _link(temporary, path)
            else:
                temporary.replace(path)


def write_whole(path: Path, content: bytes | str, *, new: bool = False) -> None:
    """Write a file completely or not at all; text as UTF-8.

    Raises:
        WriteError: as `replacing`.
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path, size=len(data), new=new) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a new file in the folder of `path`, locked so that `sweep` spares it."""
    while True:
        name = f".{path.stem[:30]}-{secrets.token_hex(4)}.sprat{path.suffix[:20]}"
        temporary = path.with_name(name)
        with temporary.open("xb") as file:
            if sys.platform == "win32":  # which cannot rename an open file
                file.close()
            try:
                # a sweep may have removed the file before it was locked
                if sys.platform == "win32" or (
                    (_try_lock(file.fileno()) is not False) and _refers_to(temporary, file.fileno())
                ):
                    yield temporary
                    return
            finally:
                temporary.unlink(missing_ok=True)


def _link(temporary: Path, path: Path) -> None:
    """Move a file into place only if there is none, which a rename cannot guarantee."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        temporary.replace(path)


def sweep(folder: Path, pattern: str = _TEMPORARY) -> None:
    """Remove what processes killed inside `replacing` left in a folder, but nothing that a running
    process is writing."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if sys.platform == "win32":
                if _is_old(path):
                    path.unlink()
                continue
            with path.open("r+b") as file:
                if _is_abandoned(path, file.fileno()):
                    path.unlink()


def _is_abandoned(path: Path, handle: int) -> bool:
    """Return whether the writer of a temporary is gone: nobody holds its lock, now taken."""
    locked = _try_lock(handle)
    return _is_old(path) if locked is None else locked


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > _ABANDONED


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield a folder for temporary files, removed at the end of the block or, after a kill, by the
    next process that creates one.

    Raises:
        WriteError: it cannot be created.
    """
    root = Path(tempfile.gettempdir())
    with contextlib.ExitStack() as stack:
        with writing(root):
            if sys.platform == "win32":
                folder = Path(tempfile.mkdtemp(prefix="sprat-"))
            else:
                folder = stack.enter_context(_locked_folder(root))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        with writing(folder):
            yield folder


def check_folder(path: Path, names: Collection[str]) -> None:
    """Check that a folder may be replaced: it does not exist, or contains no files but those named.

    Raises:
        SpratError: it contains something else.
        WriteError: the system refuses to list it.
    """
    with writing(path):
        found = sorted(path.iterdir()) if path.is_dir() else []
        others = [each for each in found if each.name not in names or each.is_dir()]
    if others:
        raise SpratError(
            f"{path} also contains {shown(others[0].name)}, which would be lost. Give another "
            "folder, or move that file."
        )


@contextlib.contextmanager
def replacing_folder(path: Path, names: Collection[str]) -> Iterator[Path]:
    """Yield a folder next to `path` to write files into; move it into place only if the block
    succeeds. An existing folder is replaced if it contains no files but those named; a kill at any
    moment leaves one of the two.

    Raises:
        SpratError: the existing folder contains something else.
        WriteError: the system refuses to write it.
    """
    with writing(path), contextlib.ExitStack() as stack:
        place = path.resolve()  # "." has no parent; replace the target of a link
        place.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":
            work = Path(tempfile.mkdtemp(prefix=".sprat-", suffix=".tmp", dir=place.parent))
        else:
            work = stack.enter_context(_locked_folder(place.parent))
        stack.callback(shutil.rmtree, work, ignore_errors=True)
        made = work / "new"
        made.mkdir()
        yield made
        for each in made.iterdir():
            if each.is_file():
                with each.open("rb+") as file:
                    os.fsync(file.fileno())
        check_folder(path, names)
        if place.exists():
            if _exchanged(made, place):
                return
            (work / _OLD).mkdir()
            stack.callback(_put_back, work, place.parent)
            place.replace(work / _OLD / place.name)
        made.replace(place)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names atomically, which not all systems can; return whether it was done."""
    if not sys.platform.startswith("linux"):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(here, names[0], here, names[1], exchange) == 0


def _put_back(work: Path, root: Path) -> None:
    """Restore a folder that was moved away to be replaced, unless another has taken its place."""
    for old in (work / _OLD).glob("*"):
        if not (root / old.name).exists():
            old.replace(root / old.name)


@contextlib.contextmanager
def _locked_folder(root: Path) -> Iterator[Path]:
    """Yield a new folder in `root`, after removing those of killed processes."""
    for old in root.glob(_TEMPORARY_FOLDER):
        with contextlib.suppress(OSError), _opened_folder(old) as handle:
            if os.fstat(handle).st_uid == os.getuid() and _is_abandoned(old, handle):
                _put_back(old, root)
                shutil.rmtree(old, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=".sprat-", suffix=".tmp", dir=root))
        with contextlib.ExitStack() as stack:
            try:
                handle = stack.enter_context(_opened_folder(folder))
            except FileNotFoundError:  # swept by another process before it was locked
                continue
            if _try_lock(handle) is not False and _refers_to(folder, handle):
                yield folder
                return


@contextlib.contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        yield handle
    finally:
        os.close(handle)


@contextlib.contextmanager
def lock(path: Path, waiting: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Hold the lock that the file `path` stands for; yield a function that returns whether the file
    is still the one that was locked.

    The system releases it when the process ends, however that happens; at the end of the block the
    file is removed. On a file system without locks, everybody gets it.

    Args:
        waiting: called once with a description of the holder if there is one; may raise instead of
            waiting.
    """
    tries = 0
    while True:
        with path.open("a+b", buffering=0) as file:
            if _try_lock(file.fileno()) is False:
                tries += 1
                if tries == 3:  # a sweep or `holder` may hold it for a moment
                    waiting(_read_holder(file.fileno()))
                time.sleep(0.1)
            elif _refers_to(path, file.fileno()):  # otherwise its last holder has removed it
                with contextlib.suppress(OSError):  # for information only
                    file.truncate(0)
                    file.write(_this_process().encode())
                try:
                    yield lambda: _refers_to(path, file.fileno())
                finally:
                    if _refers_to(path, file.fileno()):
                        with contextlib.suppress(OSError):  # Windows cannot remove an open file
                            path.unlink()
                return


def holder(path: Path) -> str | None:
    """Return a description of who holds the lock that `path` stands for; None if nobody does."""
    with contextlib.suppress(OSError), path.open("r+b") as file:
        if _try_lock(file.fileno()) is False:
            return _read_holder(file.fileno())
    return None


def _this_process() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {socket.gethostname()} since {since}"


def _read_holder(handle: int) -> str:
    os.lseek(handle, 0, os.SEEK_SET)
    text = os.read(handle, 300).decode(errors="replace")
    return "".join(filter(str.isprintable, text)) or "another process"


def _refers_to(path: Path, handle: int) -> bool:
    """Return whether a path refers to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except OSError:
        return False


def _try_lock(handle: int) -> bool | None:
    """Return whether an open file could be locked; None if locks are not supported."""
    if sys.platform == "win32":
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # others cannot read the locked range
        with contextlib.suppress(OSError):
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            return True
        return False
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: continue without
        return None
    return True


def cache_dir() -> Path:
    """Return sprat's cache folder: $XDG_CACHE_HOME/sprat; ~/.cache/sprat on Linux, or where an
    older version created it; else the system's place for caches. Without a home folder,
    `own_temporary`.

    Raises:
        WriteError: as `own_temporary`.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "sprat"
    try:
        usual = Path.home() / ".cache" / "sprat"
    except RuntimeError:  # neither HOME nor an entry for this user
        return own_temporary()
    if sys.platform == "linux" or usual.exists():
        return usual
    from platformdirs import user_cache_dir

    return Path(user_cache_dir("sprat", appauthor=False))


def own_temporary() -> Path:
    """Return a temporary folder that outlives the process and belongs to the user alone.

    Raises:
        WriteError: it cannot be created, or other users can write there: its content is trusted and
            may be code.
    """
    if sys.platform == "win32":  # the folder for temporary files is per user
        return Path(tempfile.gettempdir()) / "sprat_cache"
    folder = Path(tempfile.gettempdir()) / f"sprat_cache_{os.getuid()}"
    with writing(folder):
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private or found.st_uid != os.getuid():
        error = PermissionError(errno.EACCES, "other users can write there", str(folder))
        raise WriteError(
            f"{folder} cannot be used as a cache: other users can write there. Name another folder "
            "with XDG_CACHE_HOME.",
            error,
        )
    return folder
