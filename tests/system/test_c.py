"""Shipped models in C equal the integer reference, whatever the compiler and its flags."""

import shutil
from pathlib import Path

import pytest
from compiled_c import integer_of, program_of, scores_by

from sprat import zoo
from sprat.checkpoint import load_model
from sprat.deploy.agreement import drawings
from sprat.deploy.c import reference

COMPILERS = [
    "gcc -O0",
    "gcc -Os",
    "gcc -O3",
    "gcc -O1 -fsanitize=address,undefined -fno-sanitize-recover",
    "clang -O2",
]
IMAGES = 200


@pytest.mark.parametrize("name", [card["name"] for card in zoo.cards()])
def test_every_shipped_model_is_the_reference_byte_for_byte(name: str, tmp_path: Path) -> None:
    model = load_model(zoo.ZOO / name)
    images = drawings(IMAGES, model.side).images[:]
    program = program_of(integer_of(model.network, images, model.normalization))
    expected = reference.scores(program.network, images.numpy())
    for compiler in COMPILERS:
        if shutil.which(compiler.split()[0]):
            given = scores_by(program, images, tmp_path, compiler)
            assert (given == expected).all(), compiler
