"""Number of CPU threads to use, and how they wait for each other. Does not import torch.

Threads of torch and of the compiled kernels are libgomp's on Linux. After each parallel loop a
thread waits for the others in a busy loop, by default for a long time, which takes CPU time from
other processes. `GOMP_SPINCOUNT` limits the busy loop, after which the thread sleeps; libgomp reads
it once, when torch loads it.
"""

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from sprat import torchrun

SPIN_COUNT = 1000  # iterations of the busy loop; benchmarks/under_load.py compares others
MOST_THREADS = 1024  # far more than is useful, but not more than a system can start
SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")  # either one takes precedence

_too_late = False


def bound_spinning() -> None:
    """Set GOMP_SPINCOUNT for torch and for child processes, unless the user has chosen how threads
    wait. Called when `sprat` is imported."""
    global _too_late
    if sys.platform != "linux" or any(os.environ.get(name) for name in SETTINGS):
        return
    _too_late = "torch" in sys.modules
    os.environ["GOMP_SPINCOUNT"] = str(SPIN_COUNT)


def spinning_advice(threads: int) -> str | None:
    """Return what to do if torch was imported before sprat, too early for the setting to affect
    `threads` threads; None if it was not."""
    if not _too_late or threads < 2:
        return None
    return (
        "torch was imported before sprat, so training is slow next to other work: import sprat "
        f"first, or start Python with GOMP_SPINCOUNT={SPIN_COUNT} in the environment"
    )


def usable_cores(root: Path = Path("/")) -> int:
    """Return how many CPU threads can run at once: the cores this process may use (affinity) or its
    container's CPU quota, rounded up, whichever is less, divided among the processes that torchrun
    started on this machine.

    Args:
        root: where /proc and /sys are.
    """
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    cores = min([cores, *(max(1, math.ceil(quota)) for quota in _quotas(root))])
    return max(1, cores // torchrun.local_world_size())


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quota, in cores, of each control group of this process and those around it."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    mounts = root / "sys/fs/cgroup"
    for line in groups:
        _, controllers, group = line.split(":", 2)
        if not controllers:  # version 2
            for folder in _folders_around(group, mounts, mounts / "unified"):
                yield from _share(_words(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for folder in _folders_around(group, mounts / controllers, mounts / "cpu"):
                files = (folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")
                yield from _share([word for file in files for word in _words(file)])


def _folders_around(group: str, *mounts: Path) -> Iterator[Path]:
    """Yield a group's folder and its parents, under every place where it may be mounted. In a
    container the outermost may be the group itself, whatever its path outside."""
    for mount in mounts:
        folder = mount / group.strip("/")
        if ".." not in folder.parts:
            yield from (each for each in (folder, *folder.parents) if each.is_relative_to(mount))
        else:
            yield mount


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _share(words: list[str]) -> Iterator[float]:
    """Yield quota / period, both in µs; nothing for "max" or -1, which mean no limit."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
        yield int(words[0]) / int(words[1])
