"""Commands of sprat in processes that can be killed, forked from one that has imported everything.

A victim is `sprat …` in a folder of its own, with its own home and cache. It may be killed at the
Nth event, find the disk full from the Nth write on (interpose.c), or be killed after some seconds.
"""

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from faults.cases import FailedError

HERE = Path(__file__).parent
DEADLINE = 120  # seconds; a victim that takes longer hangs
MEMORY = 16 << 30  # bytes of address space that a victim may use

Mode = Literal["count", "kill", "full"]
MODES: dict[Mode, int] = {"count": 1, "kill": 2, "full": 3}


def preload(scratch: Path) -> None:
    """Restart this program with interpose.c preloaded and one thread in every library, since a
    process with threads cannot be forked."""
    library = scratch / "interpose.so"
    command = ["cc", "-O2", "-shared", "-fPIC", str(HERE / "interpose.c"), "-o", str(library)]
    subprocess.run([*command, "-ldl"], check=True)
    env = os.environ | {
        "LD_PRELOAD": str(library),
        "FAULTS_SCRATCH": str(scratch),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(scratch / "matplotlib"),
        "PYTHONDONTWRITEBYTECODE": "1",  # otherwise the first victim would write more files
    }
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


@dataclass(frozen=True)
class Fault:
    """A fault for a victim: a kill at the Nth event, or a full disk from the Nth write on.

    The mode "count" only counts events and writes.
    """

    mode: Mode
    at: int = 0


@dataclass(frozen=True)
class Ended:
    """A victim's exit code and output, and what it used."""

    code: int | None  # minus the signal that killed it, if one did; None: it hung
    out: str
    err: str
    cpu: float  # seconds
    memory: int  # bytes, at the peak
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def check(self, *codes: int) -> "Ended":
        """Return self; raise FailedError if it hung or crashed, or ended with none of `codes`."""
        if self.code is None:
            raise FailedError("lost", f"the command hung for {DEADLINE} seconds: {self}")
        if "Traceback (most recent call last)" in self.err or self.code not in (0, 1, 2):
            raise FailedError("tracebacks", str(self))
        if self.code not in codes:
            raise FailedError("silent" if self.code == 0 else "lost", str(self))
        return self

    def __str__(self) -> str:
        said = self.err.strip() or self.out.strip()
        return f"exit code {self.code}: {said[-600:]}"


class Victim:
    """Process that runs a command."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder
        self._handle = os.pidfd_open(pid)
        self._began, self._ended = time.monotonic(), 0.0
        self._status: tuple[int, float, int] | None = None  # code, seconds of CPU, bytes

    def ends_within(self, seconds: float) -> bool:
        """Wait for the process to end, at most this long; return whether it did."""
        if self._status is None:
            if not select.select([self._handle], [], [], seconds)[0]:
                return False
            _, status, usage = os.wait4(self.pid, 0)
            self._ended = time.monotonic()
            cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
            self._status = os.waitstatus_to_exitcode(status), cpu, memory
        return True

    def wait(self, kill_after: float | None = None) -> Ended:
        """Wait for the process to end, or kill it after some seconds."""
        if kill_after is not None and not self.ends_within(kill_after):
            self.signal(signal.SIGKILL)
        hung = not self.ends_within(DEADLINE)
        self.end()
        assert self._status is not None
        code, cpu, memory = self._status
        out, err = self.said()
        seconds = self._ended - self._began
        return Ended(None if hung else code, out, err, cpu, memory, seconds)

    def said(self) -> tuple[str, str]:
        """Return what the process has printed so far to stdout and stderr."""
        out, err = ((self._folder / n).read_text(errors="replace") for n in ("out", "err"))
        return out, err

    def signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the process and what it started."""
        self.signal(signal.SIGKILL)
        self.ends_within(DEADLINE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Place:
    """Folder with a home and a cache, in which victims run one after another."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder = folder
        self.work = folder / "work"  # where commands run
        self.cache = folder / "cache" / "sprat"
        self.env = {
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "TMPDIR": str(folder / "tmp"),
            "COLUMNS": "200",
            **env,
        }
        for name in ("work", "home", "tmp", "cache"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def sprat(
        self,
        *words: object,
        fault: Fault | None = None,
        after: float | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> Ended:
        """Run a command to its end or its fault, or kill it after some seconds."""
        with self.started(*words, fault=fault, prepare=prepare) as victim:
            return victim.wait(after)

    @contextmanager
    def started(
        self,
        *words: object,
        fault: Fault | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> Iterator[Victim]:
        """Start a command; kill it and whatever it started at the end."""
        sys.stdout.flush()
        sys.stderr.flush()
        for name in ("out", "err"):
            (self.folder / name).write_bytes(b"")
        pid = os.fork()
        if pid == 0:
            self._become([*map(str, words)], fault, prepare)
        victim = Victim(pid, self.folder)
        try:
            yield victim
        finally:
            victim.end()

    def counted(self) -> tuple[int, int]:
        """Return how many file events and writes the last victim, with the fault "count", had."""
        events, writes = (self.folder / "counted").read_text().split()
        return int(events), int(writes)

    def _become(self, words: list[str], fault: Fault | None, prepare: Callable[[], None]) -> None:
        """Turn this forked process into `sprat WORDS`; never return."""
        code = 1
        try:
            import resource

            from sprat.cli import main

            os.setsid()
            os.environ.update(self.env)
            tempfile.tempdir = None  # forget that of the process that forked this one
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for fd, name in ((1, "out"), (2, "err")):
                with (self.folder / name).open("wb") as file:
                    os.dup2(file.fileno(), fd)
            os.chdir(self.work)
            sys.argv = ["sprat", *words]
            prepare()
            if fault:
                ctypes.CDLL(None).fault_arm(MODES[fault.mode], ctypes.c_long(fault.at))
            main()
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError, ValueError):
                sys.stdout.flush()
                sys.stderr.flush()
            if fault and fault.mode == "count":
                library = ctypes.CDLL(None)
                counted = f"{library.fault_events()} {library.fault_writes()}"
                (self.folder / "counted").write_text(counted)
            os._exit(code)
