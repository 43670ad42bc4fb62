"""C for microcontrollers: an integer network, its memory planned, and a self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sprat.deferred import deferred
from sprat.deploy.format import Format
from sprat.errors import SpratError, shown

if TYPE_CHECKING:
    import torch

    from sprat.budget import graph as budget_graph
    from sprat.budget import layers, plan
    from sprat.checkpoint import Model
    from sprat.deploy import Options, agreement
    from sprat.deploy.c import compiler, quantize, reading, reference, source
    from sprat.deploy.c.compiler import Compiled
    from sprat.deploy.graph import Graph, Run, Source
    from sprat.evaluation import ranges
else:
    torch, agreement = deferred("torch"), deferred("sprat.deploy.agreement")
    ranges = deferred("sprat.evaluation.ranges")
    budget_graph, layers, plan = (
        deferred(f"sprat.budget.{name}") for name in ("graph", "layers", "plan")
    )
    compiler, quantize, reading, reference, source = (
        deferred(f"sprat.deploy.c.{name}")
        for name in ("compiler", "quantize", "reading", "reference", "source")
    )

DRAWINGS = 16  # of the self-test

Files = dict[str, bytes]


def names(options: Options) -> tuple[str, ...]:
    """Return the names of the files, and of the Makefile's output."""
    prefix = options.prefix
    own = (f"{prefix}.h", f"{prefix}.c", f"{prefix}_data.c")
    return (*own, "main.c", "Makefile", "selftest")


def check(model: Model, options: Options) -> None:
    """Check that a model can be written in C.

    Raises:
        SpratError: a layer has no integer form, a class name cannot be written in C, or the arena
            or the weights exceed a limit.
    """
    lowered = layers.lower(budget_graph.trace(model.network, model.side))
    if options.max_ram or options.max_flash:
        arena = plan.plan_memory(lowered).arena
        _check_limits(options, {"arena": arena}, {"weights": lowered.weight_bytes})
    if held := [name for name in model.classes if "\0" in name]:
        raise SpratError(
            f"The class name {shown(held[0])} contains a null character, which ends a string in C. "
            "Rename the class, and train again."
        )


def write(given: Source, before: bytes) -> Files:
    """Return the C files of a model, its ranges measured on training images, or without any those
    that are stored with it.

    Raises:
        SpratError: a layer has no integer form, the stored ranges are not the network's, or the
            self-test that was asked for fails.
    """
    model, network = given.model, given.graph.network
    lowered = layers.lower(budget_graph.trace(network, model.side))
    folded = ranges.fold_all(lowered, network.state_dict())
    if given.training is None:
        found = ranges.read_record(model.ranges, lowered)
    else:
        images = given.calibration()
        found = ranges.measure_ranges(lowered, folded, images, model.normalization)
    program = source.Program(
        network=quantize.quantize(lowered, folded, found, model.normalization),
        plan=plan.plan_memory(lowered),
        title=model.name,
        classes=model.classes,
        prefix=given.options.prefix,
        layout=given.options.layout,
    )
    drawn = agreement.drawings(DRAWINGS, model.side, model.channels).images[:].numpy()
    files = source.write_source(program, drawn, reference.scores(program.network, drawn))
    if given.options.verify:
        given.log("compiling and running the self-test")
        compiler.verify(files)
    return files


def compile_files(files: Files, options: Options) -> Compiled:
    """Compile the files and measure what they take.

    Raises:
        SpratError: there is no compiler, it fails, or a limit is exceeded.
    """
    found = compiler.measure(files)
    flash = {"constants": found.constants, "code": found.code}
    _check_limits(options, {"arena": found.arena, "stack": found.stack}, flash)
    return found


def _check_limits(options: Options, ram: dict[str, int], flash: dict[str, int]) -> None:
    """Check bytes, each by what takes them.

    Raises:
        SpratError: they are more than a limit allows.
    """
    for name, parts, limit in (
        ("RAM", ram, options.max_ram),
        ("flash", flash, options.max_flash),
    ):
        needed = sum(parts.values())
        if limit and needed > limit:
            listed = ", ".join(f"{what} {count:,}" for what, count in parts.items())
            raise SpratError(
                f"The model needs {needed:,} bytes of {name} ({listed}), expected at most "
                f"{limit:,} (--max-{name.lower()}). Nothing was written. Choose a smaller network "
                "or smaller images, or raise the limit."
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
    about="a folder of C11 code in 8-bit integers, for microcontrollers",
    ending="-c",
    write=write,
    check=check,
    open=open_files,
    names=names,
    compile=compile_files,
    size=lambda files: reading.weight_bytes(files),
    timed=False,
    exact=False,
    calibrated=True,
    stored_ranges=True,
    takes=("layout", "prefix", "verify", "compile", "max_ram", "max_flash"),
)
