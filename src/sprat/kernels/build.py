"""Compile the C kernels with the machine's own compiler at first use, and load them."""

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

FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC")


class NoKernels(Exception):
    """The kernels cannot be used here; the message says why."""


@functools.cache
def load(library: str, *flags: str) -> ctypes.CDLL:
    """Return the compiled `library`.c of this folder, built if it is not in the user's cache.

    Raises:
        NoKernels: there is no compiler, or it failed.
    """
    place, command = _plan(library, flags)
    try:
        if not place.exists():
            with replacing(place) as beside:
                _compile([*command, "-o", str(beside), *_openmp(), "-lm"])
        return ctypes.CDLL(str(place))
    except OSError as error:
        raise NoKernels(f"{place} cannot be written or loaded: {error}") from error


def load_trunk(bf16: bool) -> ctypes.CDLL:
    """Return the kernels of training that keep maps in bf16 or in fp32.

    Raises:
        NoKernels: there is no compiler, or it failed.
    """
    trunk = load("trunk", store(bf16))
    if trunk.ready():
        return trunk
    # the processor has AMX and the system keeps it back
    return load("trunk", store(bf16), "-mno-amx-bf16")


def store(bf16: bool) -> str:
    """The flag that decides how the kernels of training keep maps."""
    return f"-DSTORE_BF16={int(bf16)}"


def is_built(library: str, *flags: str) -> bool:
    """Whether the library is in the user's cache.

    Raises:
        NoKernels: it is not and cannot be.
    """
    return _plan(library, flags)[0].exists()


def _plan(library: str, flags: tuple[str, ...]) -> tuple[Path, list[str]]:
    """Where the library belongs, another one for another source, compiler, processor or torch; and
    the command that compiles it."""
    if sys.platform == "win32":
        raise NoKernels("the compiled kernels are not built on Windows")
    compiler = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or "cc"]
    if not shutil.which(compiler[0]):
        raise NoKernels(f"there is no C compiler ({compiler[0]}) on the path")
    try:
        folder = cache_dir() / "kernels"
    except RuntimeError as error:
        raise NoKernels(f"there is no folder to keep compiled kernels in: {error}") from error
    source = Path(__file__).with_name(f"{library}.c")
    command = [*compiler, *FLAGS, *flags]
    what = [source.read_text(), *command, *_openmp(), cpu_flags(), platform.machine()]
    name = hashlib.sha256("\n".join(what).encode()).hexdigest()[:16]
    return folder / f"{library}-{name}.so", [*command, str(source)]


def _openmp() -> list[str]:
    """torch's own OpenMP library: threads of two of them would wait for each other, spinning."""
    folder = Path(torch.__file__).parent
    bundled = [*folder.glob("lib/libgomp*.so*"), *folder.parent.glob("torch.libs/libgomp*.so*")]
    return ["-Wl,--as-needed", str(bundled[0])] if bundled else []


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        first = next((line for line in lines if "error" in line), (lines or ["no message"])[0])
        raise NoKernels(f"{command[0]} failed: {first}")
