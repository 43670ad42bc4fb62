"""C11 source of an integer network: static memory by the plan, constant weights, one function."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprat import __version__
from sprat.budget.layers import Add, AveragePool, Conv, Gather, Map, Windowed
from sprat.budget.plan import MemoryPlan
from sprat.deploy.c.quantize import ADD_SHIFT, IntegerLayer, IntegerNetwork
from sprat.text import visible

KERNELS = Path(__file__).with_name("kernels.c")
WIDTH = 100  # characters of a line


@dataclass(frozen=True)
class Program:
    """A program to write the source of.

    title: the model's name. prefix: of every exported name and of the files' names.
    layout: of the image, "planes" or "hwc".
    """

    network: IntegerNetwork
    plan: MemoryPlan
    title: str
    classes: Sequence[str]
    prefix: str = "model"
    layout: str = "planes"

    @property
    def side(self) -> int:
        """Side of the image, in pixels."""
        return self.network.lowered.image.height

    @property
    def channels(self) -> int:
        """Channels of the image: 3, or 1 for grey."""
        return self.network.lowered.image.channels


def write_source(
    program: Program, images: NDArray[np.uint8], scores: NDArray[np.int8]
) -> dict[str, bytes]:
    """Return the files' contents by their names.

    Args:
        images: uint8, N x channels x side x side, for the self-test.
        scores: int8, N x K, expected for these images.
    """
    prefix = program.prefix
    files = {
        f"{prefix}.h": _header(program),
        f"{prefix}.c": _code(program),
        f"{prefix}_data.c": _data(program),
        "main.c": _self_test(program, images, scores),
        "Makefile": _MAKEFILE.replace("model", prefix),
    }
    return {name: text.encode() for name, text in files.items()}


def is_depthwise(layer: Conv) -> bool:
    """Return whether each output channel depends only on the input channel of the same number."""
    return layer.groups == layer.inputs[0].channels == layer.output.channels


def _header(program: Program) -> str:
    prefix, upper, side = program.prefix, program.prefix.upper(), program.side
    scale, count = program.network.scores, len(program.classes)
    channels, order = program.channels, "grey values, row by row"
    if channels == 3:
        order = {
            "planes": "red, green and blue plane, each row by row",
            "hwc": "pixels row by row, each red, green, blue",
        }[program.layout]
    return f"""\
/* {_comment(program.title)}: classifies images of {channels} x {side} x {side}.
 *
 * Written by sprat {__version__}. To change these files, export the model again. The code is part
 * of sprat, MIT licence, Copyright (c) 2026 The sprat authors. The weights in {prefix}_data.c are
 * those of the model, under the model's own terms. */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#define {upper}_SIDE {side}
#define {upper}_INPUT {channels * side * side} /* bytes of an image */
#define {upper}_CLASSES {count}
#define {upper}_ARENA {program.plan.arena} /* bytes of static memory; the image is not in it */
#define {upper}_WEIGHTS {program.plan.weights} /* bytes of constants */

/* A score q represents the logit {upper}_SCORE_SCALE * (q - {upper}_SCORE_ZERO). */
#define {upper}_SCORE_SCALE {scale.scale!r}
#define {upper}_SCORE_ZERO ({scale.zero})

extern const char *const {prefix}_class_names[{upper}_CLASSES];

/* Classify an image: {order}, 0 to 255.
 * Return the index of the class with the highest score (the first one if several are equal), and
 * write all scores. All calls share the static memory, so the function is not reentrant. */
int {prefix}_classify(const uint8_t image[{upper}_INPUT], int8_t scores[{upper}_CLASSES]);

#endif
"""


def _code(program: Program) -> str:
    prefix, upper, network = program.prefix, program.prefix.upper(), program.network
    channel, row, pixel = {
        "planes": (program.side**2, program.side, 1),
        "hwc": (1, program.channels * program.side, program.channels),
    }[program.layout]
    output = network.lowered.output
    parts = [
        f'/* See {prefix}.h. */\n#include "{prefix}.h"\n',
        f"/* Strides of the image. */\n#define CHANNEL_STEP {channel}\n"
        f"#define ROW_STEP {row}\n#define PIXEL_STEP {pixel}\n"
        f"\n#define ADD_FACTOR {1 << ADD_SHIFT} /* applied to terms before they are rescaled */\n",
        _kernels(network),
        "\n".join(
            f"extern const {type_} {prefix}_{name}[{numbers.size}];"
            for name, type_, numbers in _arrays(network)
        )
        + "\n",
        *(_struct(program, each) for each in network.layers),
        f"static int8_t arena[{upper}_ARENA];\n",
        f"int {prefix}_classify(const uint8_t image[{upper}_INPUT], "
        f"int8_t scores[{upper}_CLASSES])\n{{\n"
        + "".join(f"    {_call(program, each)}\n" for each in network.layers)
        + f"""
    int best = 0;
    for (int k = 0; k < {upper}_CLASSES; k++) {{
        scores[k] = arena[{program.plan.offset(output)} + k];
        if (scores[k] > scores[best]) {{
            best = k;
        }}
    }}
    return best;
}}
""",
    ]
    return "\n".join(parts)


def kernel_of(network: IntegerNetwork, each: IntegerLayer) -> str:
    """Return the name of the C function that computes a layer."""
    layer = each.layer
    if isinstance(layer, Conv):
        if layer.inputs[0].buffer is network.lowered.image:
            return "image_conv"
        return "depthwise" if is_depthwise(layer) else "conv"
    if isinstance(layer, Add):
        return "add"
    if isinstance(layer, Gather):
        return "gather"
    return "average_pool" if isinstance(layer, AveragePool) else "max_pool"


_STRUCTS = {
    "image_conv": "conv_layer", "conv": "conv_layer", "depthwise": "conv_layer",
    "add": "add_layer", "average_pool": "pool_layer", "max_pool": "pool_layer",
    "gather": "pool_layer",
}  # fmt: skip


def _kernels(network: IntegerNetwork) -> str:
    """Return the source of the kernels that a network needs, and of their types."""
    pieces = re.split(r"/\*\*\* (\w+) \*\*\*/\n", KERNELS.read_text(encoding="utf-8"))[1:]
    used = {kernel_of(network, each) for each in network.layers}
    used |= {_STRUCTS[kernel] for kernel in used} | {"types", "rescale", "area"}
    names, texts = pieces[::2], pieces[1::2]
    return "\n".join(text for name, text in zip(names, texts, strict=True) if name in used)


def _call(program: Program, each: IntegerLayer) -> str:
    kernel = kernel_of(program.network, each)
    maps = [*each.layer.inputs, each.layer.output]
    places = [f"arena + {program.plan.offset(m)}" for m in maps if m.buffer in program.plan.places]
    if kernel == "image_conv":
        first = each.layer.inputs[0].first
        places[:0] = [
            f"image + {first} * CHANNEL_STEP" if first else "image",
            f"{program.prefix}_{each.name}_zeros",
        ]
    if kernel == "gather":
        places[:0] = [f"{program.prefix}_{each.name}_channels"]
    return f"{kernel}({', '.join([f'&layer_{each.name}', *places])});"


def _struct(program: Program, each: IntegerLayer) -> str:
    layer, array = each.layer, f"{program.prefix}_{each.name}"
    kernel = kernel_of(program.network, each)
    fields: dict[str, Any] = {"to": _braced((each.zero, each.low, each.high))}
    if isinstance(layer, Add):
        fields |= {"a": _map(layer.inputs[0]), "b": _map(layer.inputs[1])}
        fields |= {"zero_a": each.zeros[0], "zero_b": each.zeros[1]}
        fields["multipliers"] = _braced(each.rescale.multipliers)
        fields["shifts"] = _braced(each.rescale.shifts)
    else:
        assert isinstance(layer, Windowed)
        over = (*layer.kernel, *layer.stride, *layer.padding, *layer.dilation)
        fields |= {"in": _map(layer.inputs[0]), "over": _braced(over)}
        fields["zero"] = 0 if kernel == "image_conv" else each.zeros[0]
    fields["out"] = _map(layer.output)
    if isinstance(layer, Conv):
        fields["groups"] = layer.groups
        fields |= {
            name: f"{array}_{name}" for name in ("weights", "biases", "multipliers", "shifts")
        }
    elif not isinstance(layer, Add):
        fields |= {
            "multiplier": each.rescale.multipliers[0],
            "shift": each.rescale.shifts[0],
        }
    lines = "".join(f"    .{name} = {value},\n" for name, value in fields.items())
    return f"static const {_STRUCTS[kernel]} layer_{each.name} = {{\n{lines}}};\n"


def _map(part: Map) -> str:
    return _braced((part.height, part.width, part.channels, part.buffer.channels))


def _braced(numbers: Iterable[Any]) -> str:
    return f"{{{', '.join(map(str, numbers))}}}"


def _arrays(network: IntegerNetwork) -> Iterable[tuple[str, str, NDArray[Any]]]:
    """Yield the name, C type and values of every array of constants."""
    for each in network.layers:
        if isinstance(each.layer, Gather):
            yield f"{each.name}_channels", "int16_t", np.array(each.layer.channels)
        if each.constants is None:
            continue
        assert isinstance(each.layer, Conv)
        weights = each.constants.weights
        kernel = kernel_of(network, each)
        if kernel == "depthwise":
            weights = weights.transpose(1, 2, 3, 0)
        yield f"{each.name}_weights", "int8_t", weights
        yield f"{each.name}_biases", "int32_t", each.constants.biases
        yield f"{each.name}_multipliers", "int32_t", each.rescale.multipliers
        yield f"{each.name}_shifts", "uint8_t", each.rescale.shifts
        if kernel == "image_conv":
            yield f"{each.name}_zeros", "int32_t", np.array(each.zeros)


def _data(program: Program) -> str:
    prefix = program.prefix
    names = "".join(f"    {_string(name)},\n" for name in program.classes)
    parts = [
        f'/* Class names and weights; see {prefix}.h. */\n#include "{prefix}.h"\n',
        f"const char *const {prefix}_class_names[{prefix.upper()}_CLASSES] = {{\n{names}}};\n",
        *(
            f"extern const {type_} {prefix}_{name}[{numbers.size}];\n"
            f"const {type_} {prefix}_{name}[{numbers.size}] = {_listed(numbers)};\n"
            for name, type_, numbers in _arrays(program.network)
        ),
    ]
    return "\n".join(parts)


def _listed(numbers: NDArray[Any]) -> str:
    """Return numbers in braces, broken into lines."""
    lines, line = [], ""
    for number in map(str, numbers.ravel().tolist()):
        if len(line) + len(number) + 6 > WIDTH:
            lines.append(line)
            line = ""
        line += f"{' ' if line else ''}{number},"
    return "{\n" + "".join(f"    {each}\n" for each in [*lines, line]) + "}"


def _self_test(program: Program, images: NDArray[np.uint8], scores: NDArray[np.int8]) -> str:
    prefix, upper = program.prefix, program.prefix.upper()
    order = (0, 1, 2, 3) if program.layout == "planes" else (0, 2, 3, 1)
    rows = [f"static const uint8_t images[{len(images)}][{upper}_INPUT] = {{"]
    rows += [f"{_listed(image)}," for image in images.transpose(order)]
    rows += ["};", "", f"static const int8_t expected[{len(images)}][{upper}_CLASSES] = {{"]
    rows += [f"    {_braced(each)}," for each in scores]
    rows.append("};")
    return f"""\
/* Self-test: drawings and their expected scores. Returns 0 if all scores match. */
#include <stdio.h>
#include <string.h>

#include "{prefix}.h"

{chr(10).join(rows)}

int main(void)
{{
    int wrong = 0;
    for (int n = 0; n < {len(images)}; n++) {{
        int8_t scores[{upper}_CLASSES];
        const int best = {prefix}_classify(images[n], scores);
        const int same = memcmp(scores, expected[n], sizeof scores) == 0;
        printf("%d: %s%s\\n", n, {prefix}_class_names[best], same ? "" : ", unexpected scores");
        wrong += !same;
    }}
    printf("%d of {len(images)} as expected\\n", {len(images)} - wrong);
    return wrong != 0;
}}
"""


_MAKEFILE = """\
CFLAGS ?= -O2
CFLAGS += -std=c11 -Wall -Wextra -Wconversion -Wpedantic

check: selftest
\t./selftest

selftest: main.c model.c model_data.c model.h
\t$(CC) $(CFLAGS) -o $@ main.c model.c model_data.c

clean:
\trm -f selftest

.PHONY: check clean
"""


def _string(text: str) -> str:
    """Return a C string literal of text in UTF-8; octal escapes have a fixed length."""
    plain = "".join(
        character if re.fullmatch("[0-9A-Za-z _.,:+()-]", character) else _octal(character)
        for character in text
    )
    return f'"{plain}"'


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def _comment(text: str) -> str:
    """Return text made safe for a C comment."""
    shown = visible(text).encode("ascii", "backslashreplace").decode()
    return shown.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
