"""Build of the C kernels with the machine's own compiler at first use, and their loading."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from sprat.files import cache_dir, own_temporary, sweep, temporary_folder, write_whole
from sprat.kernels.support import NoKernels
from sprat.runtime import cpu_flags

FOLDER = Path(__file__).parent
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


_failed: dict[tuple[str, ...], str] = {}  # why compiling failed in this process, by command


@functools.cache
def load(library: str, *flags: str) -> ctypes.CDLL:
    """Return the compiled `library`.c of this folder; build it if it is not in the user's cache.

    Raises:
        NoKernels: there is no compiler, it failed, or the library cannot be stored.
    """
    command = _command(*flags)
    try:
        place = _place(library, command)
        if not _is_whole(place):
            content = _compile(FOLDER / f"{library}.c", command)
            write_whole(place, content + _digest(content))
            sweep(place.parent, ".trunk-*.so")  # left by killed processes of older versions
        return ctypes.CDLL(str(place))
    except OSError as error:
        raise NoKernels(f"the compiled library cannot be written or loaded: {error}") from error


def check_compiler() -> None:
    """Check everything that can be checked without compiling.

    Raises:
        NoKernels: there is no compiler, it has failed before in this process, or the library cannot
            be stored.
    """
    for library, *flags in (("trunk", store(False)), ("trunk", store(True)), ("inference",)):
        is_built(library, *flags)
        if reason := _failed.get(tuple(_command(*flags))):
            raise NoKernels(reason)


def load_trunk(bf16: bool) -> ctypes.CDLL:
    """Return the training kernels that keep maps in bf16 or in fp32.

    Raises:
        NoKernels: as `load`.
    """
    trunk = load("trunk", store(bf16))
    if trunk.ready():
        return trunk
    # the CPU has AMX, but the system does not allow it
    return load("trunk", store(bf16), "-mno-amx-bf16")


def store(bf16: bool) -> str:
    """Return the compiler flag for how the training kernels store maps."""
    return f"-DSTORE_BF16={int(bf16)}"


def is_built(library: str, *flags: str) -> bool:
    """Return whether the library is in the user's cache.

    Raises:
        NoKernels: it is not, and cannot be built or stored.
    """
    try:
        return _is_whole(_place(library, _command(*flags)))
    except OSError as error:
        raise NoKernels(f"the compiled library cannot be kept: {error}") from error


def _command(*flags: str) -> list[str]:
    if sys.platform == "win32":
        raise NoKernels("the compiled kernels are not built on Windows")
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or "cc"]
    if not shutil.which(compiler[0]):
        raise NoKernels(f"there is no C compiler ({compiler[0]}) on the path")
    return [*compiler, *FLAGS, *flags]


def _openmp() -> list[str]:
    """Return torch's own OpenMP library: threads of two libraries would spin, waiting for each
    other."""
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ["-Wl,--as-needed", str(bundled[0])] if bundled else []


def _place(library: str, command: list[str]) -> Path:
    """Return the path of a library, which differs for each source, compiler, CPU and torch.

    It is in the user's cache or, if that is read-only and does not contain it, in the user's
    temporary files.
    """
    sources = sorted(path for path in FOLDER.iterdir() if path.suffix in (".c", ".h"))
    what = [library, *(path.read_text() for path in sources)]
    what += [*command, *_openmp(), cpu_flags(), platform.machine()]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    place = cache_dir() / "kernels" / f"{library}-{name}.so"
    there = next(folder for folder in place.parents if os.path.exists(folder))  # noqa: PTH110
    if os.path.exists(place) or os.access(there, os.W_OK | os.X_OK):  # noqa: PTH110
        return place
    return own_temporary() / "kernels" / place.name


def _digest(content: bytes) -> bytes:
    """Return the digest that is appended to a library, where a loader does not look."""
    return hashlib.sha256(content).digest()


def _is_whole(library: Path) -> bool:
    """Return whether a library is there and undamaged; otherwise it is built again."""
    try:
        content = library.read_bytes()
    except FileNotFoundError:
        return False
    size = len(content) - hashlib.sha256().digest_size
    return content[size:] == _digest(content[:size])


def _compile(source: Path, command: list[str]) -> bytes:
    """Compile the source in a temporary folder, so that a kill leaves nothing behind; return the
    library."""
    with temporary_folder() as folder:
        library = folder / "library.so"
        done = subprocess.run(
            [*command, str(source), "-o", str(library), *_openmp(), "-lm"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TMPDIR": str(folder)},
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            first = next((line for line in lines if "error" in line), (lines or ["no message"])[0])
            _failed[tuple(command)] = f"{command[0]} failed: {first}"
            raise NoKernels(_failed[tuple(command)])
        return library.read_bytes()
