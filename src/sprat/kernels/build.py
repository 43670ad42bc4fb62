"""Compiles `trunk.c` with the machine's own C compiler at first use, and loads it."""

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
from sprat.runtime import cpu_flags

SOURCE = Path(__file__).with_name("trunk.c")
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


class NoKernels(Exception):
    """The kernels cannot be used here; the message says why."""


@functools.cache
def load(bf16: bool) -> ctypes.CDLL:
    """The compiled library that keeps maps in bf16 or in fp32.

    Raises:
        NoKernels: no compiler, or it failed.
    """
    library = compiled(bf16)
    if library.ready():
        return library
    return compiled(bf16, "-mno-amx-bf16")  # the processor has AMX and the system keeps it back


def compiled(bf16: bool, *flags: str) -> ctypes.CDLL:
    """The library, built if it is not cached.

    Raises:
        NoKernels: no compiler, or it failed, or there is no place for the library.
    """
    command = _command(bf16, *flags)
    try:
        library = _place(command)
        if not library.exists():
            write_whole(library, _compile(command))
            sweep(library.parent, ".trunk-*.so")  # left by killed processes of an older sprat
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernels(f"the compiled library cannot be written or loaded: {error}") from error


def is_built(bf16: bool) -> bool:
    """Whether the library is cached.

    Raises:
        NoKernels: it is not and cannot be.
    """
    try:
        return _place(_command(bf16)).exists()
    except OSError as error:
        raise NoKernels(f"the compiled library cannot be kept: {error}") from error


def _command(bf16: bool, *flags: str) -> list[str]:
    if sys.platform == "win32":
        raise NoKernels("they are not built on Windows")
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or "cc"]
    if not shutil.which(compiler[0]):
        raise NoKernels(f"there is no C compiler ({compiler[0]}) on the path")
    return [*compiler, *FLAGS, *flags, f"-DSTORE_BF16={int(bf16)}"]


def _openmp() -> list[str]:
    """torch's own OpenMP library: threads of two of them would wait for each other, spinning."""
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ["-Wl,--as-needed", str(bundled[0])] if bundled else []


def _place(command: list[str]) -> Path:
    """Where the library is; another source, compiler, processor or torch has its own.

    In the user's cache or, where that can only be read and does not hold it, among the user's
    temporary files.
    """
    what = [SOURCE.read_text(), *command, *_openmp(), cpu_flags(), platform.machine()]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    library = cache_dir() / "kernels" / f"trunk-{name}.so"
    there = next(folder for folder in library.parents if os.path.exists(folder))  # noqa: PTH110
    if os.path.exists(library) or os.access(there, os.W_OK | os.X_OK):  # noqa: PTH110
        return library
    return own_temporary() / "kernels" / library.name


def _compile(command: list[str]) -> bytes:
    """What the compiler makes of the source, written where a kill leaves nothing for good."""
    with temporary_folder() as folder:
        library = folder / "trunk.so"
        done = subprocess.run(
            [*command, str(SOURCE), "-o", str(library), *_openmp(), "-lm"],
            capture_output=True,
            text=True,
            check=False,
            env=os.environ | {"TMPDIR": str(folder)},
        )
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            first = next((line for line in lines if "error" in line), (lines or ["no message"])[0])
            raise NoKernels(f"{command[0]} failed: {first}")
        return library.read_bytes()
