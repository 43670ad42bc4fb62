"""The machine: device, precision, threads, memory, seeds."""

import contextlib
import ctypes
import hashlib
import os
import platform
import subprocess
import sys
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NotRequired, TypedDict

from sprat.errors import SpratError
from sprat.shapes import whole
from sprat.threads import MOST_THREADS, usable_cores

if TYPE_CHECKING:
    import torch


class Machine(TypedDict):
    """The machine that something was measured on.

    kernels: how a step was computed (compiled, graph, torch), and why not by compiled kernels.
    processes: number of processes that trained together, if more than one.
    """

    device: str
    gpu: str | None
    cpu: str
    cores: Annotated[int, whole()] | None
    threads: Annotated[int, whole()]
    precision: str
    system: str
    kernels: NotRequired[str]
    kernels_because: NotRequired[str]
    processes: NotRequired[Annotated[int, whole(2)]]


class GitState(TypedDict):
    """Commit of sprat's own checkout. dirty: whether files differ from it."""

    commit: str
    dirty: bool


def choose_device(device: str = "auto") -> "torch.device":
    """Return the device that a name stands for; "auto" is the first available of cuda, mps, cpu.

    Raises:
        SpratError: this machine, or this build of torch, does not have it.
    """
    import torch

    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        device = next(name for name, is_there in there.items() if is_there)
    if not there.get(device):
        have = ", ".join(name for name, is_there in there.items() if is_there)
        raise SpratError(
            f"device {device!r} is not available to torch {torch.__version__} here (available: "
            f"{have}). Use --device auto."
        )
    return torch.device(device)


def choose_precision(precision: str, device: "torch.device") -> str:
    """Return "bf16", "fp16" or "fp32"; "auto" is bf16 only if the hardware computes in it.

    A CPU without bf16 instructions emulates them, which is slower than fp32. A GPU before compute
    capability 8.0 only has fp16.

    Raises:
        SpratError: fp16 on a CPU, which sprat does not support.
    """
    import torch

    if precision == "fp16" and device.type == "cpu":
        raise SpratError("precision 'fp16' needs a GPU. Use bf16, fp32 or auto on a CPU.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if device.type == "cpu":
        return "bf16" if cpu_has_bf16() else "fp32"
    return "fp32"


def cpu_has_bf16() -> bool:
    """Return whether the CPU has bf16 instructions; others emulate them and are faster in fp32."""
    import torch

    # older versions of torch cannot say: assume no bf16
    capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(device: "torch.device", precision: str) -> AbstractContextManager[None]:
    """Return the context of a mixed-precision forward pass: narrow products, fp32 parameters."""
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def check_threads(threads: int) -> None:
    """Check a number of CPU threads; 0 means one per usable core.

    Raises:
        SpratError: the number is below 0 or above 1,024.
    """
    if not 0 <= threads <= MOST_THREADS:
        raise SpratError(
            f"--threads is {threads}, expected 1 to {MOST_THREADS:,}, or 0 for one per core. Give "
            "another number."
        )


def set_threads(threads: int = 0) -> int:
    """Set torch's number of CPU threads and return it; 0 means one per usable core.

    Raises:
        SpratError: the number is below 0 or above 1,024.
    """
    check_threads(threads)
    import torch

    threads = threads or usable_cores()
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks in the process; return True if it did.

    By default activations of some megabytes are returned to the system after every step and come
    back as fresh pages, each zeroed at first touch: 15 to 30 % of a training step on a CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    libc = ctypes.CDLL(None)
    largest_allowed = 32 << 20  # bytes; HEAP_MAX_SIZE / 2
    kept = libc.mallopt(m_mmap_threshold, largest_allowed)
    return bool(kept and libc.mallopt(m_trim_threshold, 2**31 - 1))


def peak_memory() -> int | None:
    """Return the most bytes of memory this process has held; None if the system does not say."""
    if sys.platform == "win32":
        return None
    with contextlib.suppress(OSError):  # Linux, where getrusage includes the parent's peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def derive_seed(*parts: int | str) -> int:
    """Return a 63-bit seed that is a function of `parts`, such as ("augment", seed, step).

    Randomness that depends only on its place in the run needs no state to resume.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def describe_machine(device: "torch.device", precision: str, threads: int) -> Machine:
    """Return the description of the machine that belongs to every measurement."""
    import torch

    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "device": device.type,
        "gpu": gpu,
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "precision": precision,
        "system": f"{platform.system()} {platform.machine()}",
    }


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def cpu_flags() -> str:
    """Return the CPU's features, or at least its name; different strings mean different CPUs."""
    return _cpuinfo("flags", "Features") or _cpu_name()


def _cpuinfo(*keys: str) -> str | None:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(keys):
                return line.split(":", 1)[1].strip()
    return None


def versions() -> dict[str, str]:
    """Return the versions of the packages that a result depends on."""
    found = {"python": platform.python_version()}
    for name in ("sprat", "torch", "numpy", "safetensors"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a checkout
            found[name] = "not installed"
    return found


def git_state() -> GitState | None:
    """Return the state of sprat's own checkout; None if it is not one."""
    folder = Path(__file__).parent

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) not in folder.parents:
            return None
        if not git("ls-files", "runtime.py"):  # installed inside somebody else's checkout
            return None
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changes)}
    except (OSError, subprocess.CalledProcessError):
        return None
