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

from sprat.runtime import cache_dir, cpu_flags, replacing

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
    """The library, built if it is not in the user's cache.

    Raises:
        NoKernels: no compiler, or it failed.
    """
    command = _command(bf16, *flags)
    library = _place(command)
    try:
        if not library.exists():
            with replacing(library) as beside:
                _compile([*command, str(SOURCE), "-o", str(beside), *_openmp(), "-lm"])
        return ctypes.CDLL(str(library))
    except OSError as error:
        raise NoKernels(f"{library} cannot be written or loaded: {error}") from error


def is_built(bf16: bool) -> bool:
    """Whether the library lies in the user's cache.

    Raises:
        NoKernels: it does not and cannot.
    """
    return _place(_command(bf16)).exists()


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
    """Where the library lies; another source, compiler, processor or torch has its own."""
    what = [SOURCE.read_text(), *command, *_openmp(), cpu_flags(), platform.machine()]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return cache_dir() / "kernels" / f"trunk-{name}.so"


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if "error" in line), (lines or ["no message"])[0])
        raise NoKernels(f"{command[0]} failed: {first}")
