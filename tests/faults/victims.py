"""Commands of sprat in processes that can be killed, forked off one that has imported everything.

A victim is `sprat …` in a folder of its own, with its own home and cache. It may be killed at the
Nth event, or find the disk full at the Nth write (interpose.c), or be killed after some seconds.
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
DEADLINE = 120  # seconds; who takes longer hangs
MEMORY = 16 << 30  # bytes of address space that a victim may take

Mode = Literal["count", "kill", "full"]
MODES: dict[Mode, int] = {"count": 1, "kill": 2, "full": 3}


def preload(scratch: Path) -> None:
    """Starts this program again with interpose.c preloaded, and one thread everywhere, since a
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
        "PYTHONDONTWRITEBYTECODE": "1",  # or the first victim would touch more files
    }
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], env)


@dataclass(frozen=True)
class Fault:
    """What happens to a victim: killed at the Nth event, or the disk full from the Nth write on."""

    mode: Mode
    at: int = 0


@dataclass(frozen=True)
class Ended:
    """How a victim ended."""

    code: int | None  # minus the signal where one killed it; None: it hung
    out: str
    err: str
    cpu: float  # seconds
    memory: int  # bytes, the most at a time
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    def check(self, *codes: int) -> "Ended":
        """Itself, unless it ended as no command may, or with none of `codes`."""
        if self.code is None:
            raise FailedError("lost", f"hung for {DEADLINE} seconds: {self}")
        if "Traceback (most recent call last)" in self.err or self.code not in (0, 1, 2):
            raise FailedError("tracebacks", str(self))
        if self.code not in codes:
            raise FailedError("silent" if self.code == 0 else "lost", str(self))
        return self

    def __str__(self) -> str:
        said = self.err.strip() or self.out.strip()
        return f"exit code {self.code}: {said[-600:]}"


class Victim:
    """A process that runs a command."""

    def __init__(self, pid: int, folder: Path) -> None:
        self.pid, self._folder = pid, folder
        self._handle = os.pidfd_open(pid)
        self._began, self._ended = time.monotonic(), 0.0
        self._status: tuple[int, float, int] | None = None  # code, seconds of CPU, bytes

    def ends_within(self, seconds: float) -> bool:
        """Waits for it so long at most."""
        if self._status is None:
            if not select.select([self._handle], [], [], seconds)[0]:
                return False
            _, status, usage = os.wait4(self.pid, 0)
            self._ended = time.monotonic()
            cpu, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss << 10
            self._status = os.waitstatus_to_exitcode(status), cpu, memory
        return True

    def wait(self, kill_after: float | None = None) -> Ended:
        """Waits for its end, or kills it after some seconds."""
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
        """What it has printed so far to stdout and stderr."""
        out, err = ((self._folder / n).read_text(errors="replace") for n in ("out", "err"))
        return out, err

    def signal(self, number: int) -> None:
        if self._status is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Kills it and what it started."""
        self.signal(signal.SIGKILL)
        self.ends_within(DEADLINE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


class Place:
    """A folder with a home and a cache, in which victims run one after another."""

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
        """Runs a command to its end or its fault, or kills it after some seconds."""
        with self.started(*words, fault=fault, prepare=prepare) as victim:
            return victim.wait(after)

    @contextmanager
    def started(
        self,
        *words: object,
        fault: Fault | None = None,
        prepare: Callable[[], None] = lambda: None,
    ) -> Iterator[Victim]:
        """A command that runs; whatever it started is dead at the end."""
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
        """File events and writes of the last victim, whose fault was "count"."""
        events, writes = (self.folder / "counted").read_text().split()
        return int(events), int(writes)

    def _become(self, words: list[str], fault: Fault | None, prepare: Callable[[], None]) -> None:
        """Makes this forked process `sprat WORDS`; never returns."""
        code = 1
        try:
            import resource

            from sprat.cli import main

            os.setsid()
            os.environ.update(self.env)
            tempfile.tempdir = None  # of the process that this was forked off
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
