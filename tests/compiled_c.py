"""Helpers that compile models in C, shared by the tests of `make test` and `make system`."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sprat.budget.graph import trace
from sprat.budget.layers import lower
from sprat.budget.plan import plan_memory
from sprat.data.imageset import Normalization
from sprat.deploy.c.quantize import IntegerNetwork, quantize
from sprat.deploy.c.source import Program, write_source
from sprat.evaluation.ranges import fold_all, measure_ranges

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
# classifies the images on stdin; writes the index and the scores of each to stdout
DRIVER = """
#include <stdio.h>
#include "{prefix}.h"

int main(void)
{{
    static uint8_t image[{upper}_INPUT];
    int8_t scores[{upper}_CLASSES];
    while (fread(image, 1, sizeof image, stdin) == sizeof image) {{
        putchar({prefix}_classify(image, scores));
        fwrite(scores, 1, sizeof scores, stdout);
    }}
    return 0;
}}
"""


def noise_images(count: int, side: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (count, channels, side, side), dtype=torch.uint8, generator=generator)


def integer_of(network: nn.Module, images: Tensor, normalization: Normalization) -> IntegerNetwork:
    """Return a network quantised to integers, with ranges measured on the images."""
    lowered = lower(trace(network, images.shape[-1]))
    folded = fold_all(lowered, network.state_dict())
    ranges = measure_ranges(lowered, folded, images, normalization)
    return quantize(lowered, folded, ranges, normalization)


def program_of(network: IntegerNetwork, names: Sequence[str] = (), **values: str) -> Program:
    names = names or [f"class {n}" for n in range(network.lowered.output.channels)]
    return Program(network, plan_memory(network.lowered), "a model", names, **values)


def write_files(program: Program, folder: Path) -> None:
    """Write a program whose self-test is a black image, and a driver with `main` for the tests."""
    black = np.zeros((1, program.channels, program.side, program.side), np.uint8)
    files = write_source(program, black, np.zeros((1, len(program.classes)), np.int8))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    prefix = program.prefix
    (folder / "driver.c").write_text(DRIVER.format(prefix=prefix, upper=prefix.upper()))


def compile_files(program: Program, folder: Path, compiler: str, output: str, *more: str) -> None:
    sources = [f"{program.prefix}.c", f"{program.prefix}_data.c", *more]
    command = [*shlex.split(compiler), *STRICT, "-o", output, *sources]
    made = subprocess.run(command, cwd=folder, check=False, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "")


def scores_by(
    program: Program, images: Tensor, folder: Path, compiler: str = "gcc -O1"
) -> NDArray[np.int8]:
    """Return the compiled program's scores, N x K, after checking its indices against them."""
    write_files(program, folder)
    compile_files(program, folder, compiler, "driver", "driver.c")
    ordered = images if program.layout == "planes" else images.permute(0, 2, 3, 1)
    done = subprocess.run(
        [folder / "driver"], input=ordered.numpy().tobytes(), check=True, capture_output=True
    )
    assert not done.stderr
    rows = np.frombuffer(done.stdout, np.int8).reshape(len(images), -1)
    assert (rows[:, 0] == rows[:, 1:].argmax(1)).all()
    return rows[:, 1:]
