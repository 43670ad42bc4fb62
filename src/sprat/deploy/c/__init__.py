"""C for microcontrollers: an integer network, its memory planned, and a self-test."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from typing import TYPE_CHECKING

from sprat.deferred import deferred
from sprat.deploy.format import Format
from sprat.errors import SpratError, shown
from sprat.files import temporary_folder
from sprat.text import warn

if TYPE_CHECKING:
    import torch

    from sprat.budget import graph as budget_graph
    from sprat.budget import layers, plan
    from sprat.checkpoint import Model
    from sprat.deploy import agreement
    from sprat.deploy.c import floating, quantize, reading, reference, source
    from sprat.deploy.graph import Graph, Run, Source
else:
    torch, agreement = deferred("torch"), deferred("sprat.deploy.agreement")
    budget_graph, layers, plan = (
        deferred(f"sprat.budget.{name}") for name in ("graph", "layers", "plan")
    )
    floating, quantize, reading, reference, source = (
        deferred(f"sprat.deploy.c.{name}")
        for name in ("floating", "quantize", "reading", "reference", "source")
    )

CALIBRATION = 512  # images
DRAWINGS = 16  # of the self-test
SECONDS = 300  # that compiling or the self-test may take

Files = dict[str, bytes]


def check(model: Model) -> None:
    """Check that a model can be written in C.

    Raises:
        SpratError: a layer has no integer form, or a class name cannot be written in C.
    """
    layers.lower(budget_graph.trace(model.network, model.side))
    if held := [name for name in model.classes if "\0" in name]:
        raise SpratError(
            f"The class {shown(held[0])} holds a character 0, which ends a text in C. Give the "
            "class another name, and train again."
        )


def write(given: Source, before: bytes) -> Files:
    """Return the C files of a model, its ranges measured on training images.

    Raises:
        SpratError: a layer has no integer form, or the self-test that was asked for fails.
    """
    model, network = given.model, given.graph.network
    lowered = layers.lower(budget_graph.trace(network, model.side))
    folded = floating.fold_all(lowered, network.state_dict())
    images = given.calibration(CALIBRATION)
    ranges = floating.measure_ranges(lowered, folded, images, model.normalization)
    program = source.Program(
        network=quantize.quantize(lowered, folded, ranges, model.normalization),
        plan=plan.plan_memory(lowered),
        title=model.name,
        classes=model.classes,
        prefix=given.options.prefix,
        layout=given.options.layout,
    )
    drawn = agreement.drawings(DRAWINGS, model.side).images[:].numpy()
    files = source.write_source(program, drawn, reference.scores(program.network, drawn))
    if given.options.verify:
        given.tell("compiling and running the self-test")
        verify(files)
    return files


def verify(files: Files) -> None:
    """Compile the files and run their self-test; print that it was not done where there is no
    compiler.

    Raises:
        SpratError: the compiler or the self-test fails.
    """
    compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    if not shutil.which(compiler[0]):
        warn(f"The self-test was not run: there is no C compiler ({compiler[0]}) on the path.")
        return
    with temporary_folder() as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        sources = sorted(name for name in files if name.endswith(".c"))
        program = folder / "selftest"
        _run([*compiler, "-std=c11", "-O2", "-o", str(program), *sources], folder, "The C compiler")
        _run([str(program)], folder, "The self-test")


def _run(command: list[str], folder: os.PathLike[str], who: str) -> None:
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
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        failed, said = True, [str(error)]
    if failed:
        raise SpratError(
            f"{who} failed: {said[-1] if said else 'it printed nothing'}. Nothing was written; set "
            "CC to another compiler, or leave --verify out."
        )


def open_files(files: Files, graph: Graph) -> Run:
    """Return what runs C files by the integer reference, their numbers read from the source."""
    network = reading.read_source(files, graph.network)
    scale, zero = network.scores.scale, network.scores.zero

    def run(images: torch.Tensor) -> torch.Tensor:
        scores = torch.from_numpy(reference.scores(network, images.numpy()))
        return (scale * (scores.float() - zero)).softmax(1)

    return run


C = Format(
    name="c",
    about="C11 in 8-bit integers for microcontrollers, a folder",
    ending="-c",
    write=write,
    check=check,
    open=open_files,
    folder=True,
    size=lambda files: reading.weight_bytes(files),
    timed=False,
    exact=False,
    calibrated=True,
    takes=("layout", "prefix", "verify"),
)
