"""Reading the integer network back from the text of C files."""

import re
from collections.abc import Mapping

import numpy as np
from torch import nn

from sprat.budget.graph import trace
from sprat.budget.layers import Add, Conv, Layer, layer_names, lower
from sprat.deploy.c.quantize import (
    Constants,
    IntegerLayer,
    IntegerNetwork,
    Ints,
    Rescale,
    Scale,
)
from sprat.deploy.c.source import is_depthwise

_ARRAY = re.compile(r"^const u?int\d+_t (\w+)\[\d+\] = \{([^}]*)\};", re.M)
_STRUCT = re.compile(r"^static const \w+ layer_(\w+) = \{\n(.*?)^\};", re.M | re.S)
_FIELD = re.compile(r"^    \.(\w+) = (.*),$", re.M)
_MACRO = re.compile(
    r"^#define [A-Z0-9_]+_(SIDE|ARENA|WEIGHTS|SCORE_SCALE|SCORE_ZERO) \(?([-+.\de]+)", re.M
)


def read_source(files: Mapping[str, bytes], network: nn.Module) -> IntegerNetwork:
    """Return the integer form of a network with the numbers in the C files."""
    prefix, macros = prefix_of(files), _macros(files)
    data = files[f"{prefix}_data.c"].decode()
    arrays = {name: _numbers(text) for name, text in _ARRAY.findall(data)}
    structs = {
        name: dict(_FIELD.findall(text))
        for name, text in _STRUCT.findall(files[f"{prefix}.c"].decode())
    }
    lowered = lower(trace(network, int(macros["SIDE"])))
    layers = []
    for layer, name in zip(lowered.layers, layer_names(lowered), strict=True):
        of_layer = {
            key: arrays.get(f"{prefix}_{name}_{key}", np.array([]))
            for key in ("weights", "biases", "multipliers", "shifts", "zeros")
        }
        from_image = layer.inputs[0].buffer is lowered.image
        layers.append(_layer(name, layer, structs[name], of_layer, from_image))
    scores = Scale(float(macros["SCORE_SCALE"]), int(macros["SCORE_ZERO"]))
    return IntegerNetwork(lowered, tuple(layers), scores)


def weight_bytes(files: Mapping[str, bytes]) -> int:
    """Return the bytes of the constants, by the header."""
    return int(_macros(files)["WEIGHTS"])


def arena_bytes(files: Mapping[str, bytes]) -> int:
    """Return the bytes of the arena, by the header."""
    return int(_macros(files)["ARENA"])


def _layer(
    name: str, layer: Layer, struct: dict[str, str], arrays: dict[str, Ints], from_image: bool
) -> IntegerLayer:
    zero, low, high = _numbers(struct["to"])
    constants, rescale = None, Rescale(arrays["multipliers"], arrays["shifts"])
    zeros = [int(struct[key]) for key in ("zero", "zero_a", "zero_b") if key in struct]
    if isinstance(layer, Conv):
        outs, each_in = layer.output.channels, layer.inputs[0].channels // layer.groups
        weights = arrays["weights"].astype(np.int8)
        if is_depthwise(layer) and not from_image:
            weights = weights.reshape(*layer.kernel, 1, outs).transpose(3, 0, 1, 2)
        shape = (outs, *layer.kernel, each_in)
        constants = Constants(weights.reshape(shape), arrays["biases"].astype(np.int32))
        if from_image:
            zeros = arrays["zeros"].tolist()
    elif isinstance(layer, Add):
        rescale = Rescale(_numbers(struct["multipliers"]), _numbers(struct["shifts"]))
    else:
        rescale = Rescale(_numbers(struct["multiplier"]), _numbers(struct["shift"]))
    return IntegerLayer(
        name=name,
        layer=layer,
        zeros=tuple(zeros),
        zero=int(zero),
        low=int(low),
        high=int(high),
        rescale=rescale,
        constants=constants,
    )


def _numbers(text: str) -> Ints:
    return np.array([int(number) for number in re.findall(r"-?\d+", text)])


def prefix_of(files: Mapping[str, bytes]) -> str:
    """Return the prefix of all names, such as "model"."""
    return next(name.removesuffix("_data.c") for name in files if name.endswith("_data.c"))


def _macros(files: Mapping[str, bytes]) -> dict[str, str]:
    return dict(_MACRO.findall(files[f"{prefix_of(files)}.h"].decode()))
