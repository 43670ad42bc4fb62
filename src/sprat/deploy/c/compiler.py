"""Compiling a model's C code: running its self-test, and measuring stack, code and constants."""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sprat.deploy.c.reading import arena_bytes, prefix_of
from sprat.errors import SpratError
from sprat.files import temporary_folder
from sprat.text import warn

SECONDS = 300  # for compiling or the self-test, at most
GRAPH = "-fcallgraph-info=su"  # gcc 10 and later: the call graph with -fstack-usage's frames
_NODE = re.compile(r'^node: \{ title: "([^"]*)" label: "([^"]*)"', re.M)
_EDGE = re.compile(r'^edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"', re.M)
_FRAME = re.compile(r"(\d+) bytes \(\w")
_SECTION = re.compile(r"^(\.\S+)\s+(\d+)\s+\d+$", re.M)
_CODE, _CONSTANTS = (".text",), (".rodata", ".data.rel.ro")  # beginnings of their sections' names


@dataclass(frozen=True)
class Compiler:
    """A C compiler's command and its flags."""

    command: tuple[str, ...]
    flags: tuple[str, ...]

    @classmethod
    def of_environment(cls) -> "Compiler":
        """Return the compiler of CC and CFLAGS, as make reads them; by default cc and -O2.

        Raises:
            SpratError: one of them is not a list of words.
        """
        words = {}
        for name, default in (("CC", "cc"), ("CFLAGS", "-O2")):
            given = os.environ.get(name, "")
            try:
                words[name] = shlex.split(given) or [default]
            except ValueError as error:
                raise SpratError(
                    f"{name} is {given!r}, expected words as in a shell ({error}). Change {name}, "
                    "or unset it."
                ) from error
        return cls(tuple(words["CC"]), ("-std=c11", *words["CFLAGS"]))

    @property
    def is_there(self) -> bool:
        """Return whether the command is on the path."""
        return shutil.which(self.command[0]) is not None


@dataclass(frozen=True)
class Compiled:
    """Sizes of a model's compiled code and weights, without the self-test.

    In bytes: stack of the deepest chain of calls, the sum of its functions' frames by gcc's
    -fstack-usage; code; constants, including the weights; arena.
    """

    compiler: str
    """The first line of its --version."""
    flags: str
    stack: int
    chain: tuple[str, ...]
    """Functions of the deepest chain, the outermost first."""
    library: tuple[str, ...]
    """Functions from the compiler's library, whose code and stack are not counted."""
    code: int
    constants: int
    arena: int


def verify(files: Mapping[str, bytes]) -> None:
    """Compile the files and run their self-test; without a compiler, warn that it was not run.

    Raises:
        SpratError: the compiler or the self-test fails.
    """
    compiler = Compiler.of_environment()
    if not compiler.is_there:
        missing = compiler.command[0]
        warn(f"The self-test was not run, because there is no C compiler ({missing}) on the path.")
        return
    remedy = "Set CC to another compiler, or leave --verify out"
    with temporary_folder() as folder:
        sources = _write(files, folder)
        program = folder / "selftest"
        command = [*compiler.command, *compiler.flags, "-o", str(program), *sources]
        _run(command, folder, "The C compiler", remedy)
        _run([str(program)], folder, "The self-test", remedy)


def measure(files: Mapping[str, bytes], compiler: Compiler | None = None) -> Compiled:
    """Compile the files and measure their memory.

    Args:
        compiler: compiler to use; by default that of the environment.

    Raises:
        SpratError: there is no compiler, it fails, or it does not report stack sizes.
    """
    compiler = compiler or Compiler.of_environment()
    if not compiler.is_there:
        raise SpratError(
            f"There is no C compiler ({compiler.command[0]}) on the path. Install gcc, set CC to "
            "another compiler, or leave --compile out."
        )
    remedy = "Set CC to gcc 10 or later, or leave --compile out"
    prefix = prefix_of(files)
    with temporary_folder() as folder:
        sources = [name for name in _write(files, folder) if name != "main.c"]
        command = [*compiler.command, *compiler.flags, GRAPH, "-c", *sources]
        _run(command, folder, "The C compiler", remedy)
        objects = [str(Path(name).with_suffix(".o")) for name in sources]
        ask = [*compiler.command, "-print-prog-name=size"]
        size = _run(ask, folder, "The C compiler", remedy).strip()
        sections = _run([size, "-A", *objects], folder, "The compiler's size", remedy)
        version = _run([*compiler.command, "--version"], folder, "The C compiler", remedy)
        graph = folder / f"{prefix}.ci"
        calls = graph.read_text(errors="replace") if graph.exists() else ""
    chain = deepest_chain(calls, f"{prefix}_classify")
    if not chain:
        raise SpratError(
            f"The C compiler ({compiler.command[0]}) does not report stack sizes. Nothing was "
            f"written. {remedy}."
        )
    frames = _frames(calls)
    return Compiled(
        compiler=version.partition("\n")[0].strip(),
        flags=shlex.join(compiler.flags),
        stack=sum(frames[name] for name in chain),
        chain=tuple(map(_in_source, chain)),
        library=tuple(sorted({name for name, _ in _NODE.findall(calls) if name not in frames})),
        code=_bytes(sections, _CODE),
        constants=_bytes(sections, _CONSTANTS),
        arena=arena_bytes(files),
    )


def deepest_chain(graph: str, function: str) -> list[str]:
    """Return the chain of calls from a function that needs most stack, by gcc's call graph; empty
    if the function is not in the graph. No function may call itself."""
    frames, callees = _frames(graph), _EDGE.findall(graph)

    def below(name: str) -> list[str]:
        chains = [below(to) for by, to in callees if by == name and to in frames]
        return [
            name,
            *max(chains, key=lambda chain: sum(frames[each] for each in chain), default=[]),
        ]

    return below(function) if function in frames else []


def _in_source(name: str) -> str:
    """Return a function's name in the source: "covered" for "model.c:covered.isra.0"."""
    return name.rpartition(":")[2].partition(".")[0]


def _frames(graph: str) -> dict[str, int]:
    """Return the size of each function's frame in bytes."""
    found = ((name, _FRAME.search(label)) for name, label in _NODE.findall(graph))
    return {name: int(frame[1]) for name, frame in found if frame}


def _bytes(sections: str, begin: tuple[str, ...]) -> int:
    return sum(int(count) for name, count in _SECTION.findall(sections) if name.startswith(begin))


def _write(files: Mapping[str, bytes], folder: Path) -> list[str]:
    """Write files and return the names of the sources."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return sorted(name for name in files if name.endswith(".c"))


def _run(command: list[str], folder: Path, who: str, remedy: str) -> str:
    """Run a command and return its output.

    Raises:
        SpratError: it fails.
    """
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            check=False,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=SECONDS,
        )
        said = (done.stderr or done.stdout).strip().splitlines()
        if done.returncode == 0:
            return done.stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        said = [str(error)]
    why = next((line for line in said if "error" in line), (said or ["it printed nothing"])[-1])
    raise SpratError(f"{who} failed: {why}. Nothing was written. {remedy}.")
