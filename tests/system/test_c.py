"""Tests that shipped models in C match the integer reference with several compilers and flags."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compiled_c import integer_of, program_of, scores_by
from numpy.typing import NDArray
from torch import Tensor

from sprat import zoo
from sprat.checkpoint import load_model
from sprat.deploy.agreement import drawings
from sprat.deploy.c import reference
from sprat.deploy.c.source import Program

COMPILERS = [
    "gcc -O0",
    "gcc -Os",
    "gcc -O1 -fsanitize=address,undefined -fno-sanitize-recover",
    "clang -O2",
]
IMAGES = 200
EMULATE = Path(__file__).parents[2] / "benchmarks" / "emulate.py"


@pytest.fixture(scope="module", params=[card["name"] for card in zoo.cards()])
def shipped(request: pytest.FixtureRequest) -> tuple[Program, Tensor, NDArray[np.int8]]:
    """Shipped model as a C program, images, and the reference's scores for them."""
    model = load_model(zoo.ZOO / request.param)
    images = drawings(IMAGES, model.side).images[:]
    program = program_of(integer_of(model.network, images, model.normalization))
    return program, images, reference.scores(program.network, images.numpy())


@pytest.mark.parametrize("compiler", COMPILERS)
def test_shipped_model_in_c_matches_the_reference(
    shipped: tuple[Program, Tensor, NDArray[np.int8]], compiler: str, tmp_path: Path
) -> None:
    name = compiler.split()[0]
    if not shutil.which(name):
        pytest.skip(f"needs {name}, Debian's package {name}")
    program, images, expected = shipped
    assert (scores_by(program, images, tmp_path, compiler) == expected).all()


def emulate(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, EMULATE, *options],
        check=False, capture_output=True, text=True, env=os.environ | environment,
    )  # fmt: skip


def test_an_emulated_cortex_m_gets_the_same_scores() -> None:
    quickest = min(zoo.cards(), key=lambda card: card["macs"])["name"]
    done = emulate("--models", quickest)
    if "not installed here" in done.stderr:
        pytest.skip(done.stderr.strip())
    assert (done.returncode, done.stderr) == (0, "")
    assert " ".join(done.stdout.split()) == f"{quickest} 16 of 16 as expected"


def test_the_emulation_says_what_is_missing(tmp_path: Path) -> None:
    done = emulate(PATH=str(tmp_path))
    assert done.returncode == 1
    (message,) = done.stderr.splitlines()
    packages = "qemu-system-arm gcc-arm-none-eabi libnewlib-arm-none-eabi"
    assert message.endswith(f"apt-get install {packages}")
