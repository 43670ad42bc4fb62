"""The integer network in numpy: the reference that the C code matches byte for byte."""

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sprat.budget.layers import Add, Conv, Gather, Map, MaxPool, Windowed
from sprat.deploy.c.quantize import ADD_SHIFT, IntegerLayer, IntegerNetwork, Ints, Rescale

BATCH = 50  # images at once; every map of a batch is kept
Bytes = NDArray[np.int8]


def scores(network: IntegerNetwork, images: NDArray[np.uint8]) -> Bytes:
    """Return the scores N x K of uint8 images N x C x side x side."""
    parts = [_scores(network, images[n : n + BATCH]) for n in range(0, len(images), BATCH)]
    return np.concatenate(parts)


def _scores(network: IntegerNetwork, images: NDArray[np.uint8]) -> Bytes:
    values: dict[Map, NDArray[Any]] = {network.lowered.image: images.transpose(1, 0, 2, 3)}
    for each in network.layers:
        output = each.layer.output
        if output.buffer not in values:
            whole = output.buffer
            shape = (whole.channels, len(images), whole.height, whole.width)
            values[whole] = np.zeros(shape, np.int8)
        inputs = [_part(values, part).astype(np.int32) for part in each.layer.inputs]
        _part(values, output)[:] = _output(each, inputs)
    return _part(values, network.lowered.output)[:, :, 0, 0].T


def _part(values: Mapping[Map, NDArray[Any]], part: Map) -> NDArray[Any]:
    """Return a map's values, C x N x H x W."""
    return values[part.buffer][part.first : part.first + part.channels]


def _output(each: IntegerLayer, inputs: list[Ints]) -> Bytes:
    layer = each.layer
    if isinstance(layer, Add):
        terms = [
            _rescale((x - zero) << ADD_SHIFT, each.rescale, n)
            for n, (x, zero) in enumerate(zip(inputs, each.zeros, strict=True))
        ]
        sums = _rescale(terms[0] + terms[1], each.rescale, 2)
    else:
        x = inputs[0] - _per_channel(np.array(each.zeros, np.int32))
        accumulate = _convolve if isinstance(layer, Conv) else _pick
        sums = _rescale(accumulate(each, x), each.rescale, slice(None))
    return np.clip(sums + each.zero, each.low, each.high).astype(np.int8)


def _per_channel(numbers: NDArray[Any]) -> NDArray[Any]:
    return numbers.reshape(-1, 1, 1, 1)


def _rescale(sums: Ints, rescale: Rescale, which: int | slice) -> Ints:
    """Multiply and shift, rounding once, halves up."""
    multiplier = _per_channel(rescale.multipliers[which])
    shift = _per_channel(rescale.shifts[which])
    return (sums * multiplier + (1 << (shift - 1))) >> shift


def _windows(layer: Windowed, x: Ints, padding: int) -> list[Ints]:
    """Return the input values at each place of the window, C x N x H x W of the output."""
    (top, left), out = layer.padding, layer.output
    padded = np.pad(x, ((0, 0), (0, 0), (top, top), (left, left)), constant_values=padding)
    taps = []
    for row, column in itertools.product(*map(range, layer.kernel)):
        starts = row * layer.dilation[0], column * layer.dilation[1]
        ends = (
            starts[0] + layer.stride[0] * (out.height - 1) + 1,
            starts[1] + layer.stride[1] * (out.width - 1) + 1,
        )
        rows = slice(starts[0], ends[0], layer.stride[0])
        taps.append(padded[..., rows, starts[1] : ends[1] : layer.stride[1]])
    return taps


def _convolve(each: IntegerLayer, x: Ints) -> Ints:
    layer, constants = each.layer, each.constants
    assert isinstance(layer, Conv)
    assert constants is not None
    outs, _, _, depth = constants.weights.shape
    by_tap = constants.weights.reshape(outs, -1, depth).transpose(1, 0, 2)  # taps x out x in
    wide = outs // layer.groups  # outputs of a group
    shape = (outs, x.shape[1], layer.output.height, layer.output.width)
    sums = np.zeros(shape, np.int32)
    for tap, weights in zip(_windows(layer, x, 0), by_tap, strict=True):
        if wide == depth == 1:  # depthwise
            sums += tap * _per_channel(weights.astype(np.int32))
            continue
        for group in range(layer.groups):
            to = slice(group * wide, (group + 1) * wide)
            of = tap[group * depth : (group + 1) * depth].reshape(depth, -1)
            # float64 represents these sums exactly, and its matrix products are fast
            products = weights[to].astype(float) @ of.astype(float)
            sums[to] += products.reshape(wide, *shape[1:]).astype(np.int32)
    return sums + _per_channel(constants.biases)


def _pick(each: IntegerLayer, x: Ints) -> Ints:
    layer = each.layer
    assert isinstance(layer, Windowed)
    if isinstance(layer, Gather):
        channels, rows, columns = layer.taken()
        padded = np.pad(x, ((0, 1), (0, 0), (0, 1), (0, 1)))  # index -1 is the added zeros
        return padded[channels][:, :, rows][..., columns]
    if isinstance(layer, MaxPool):
        return np.maximum.reduce(_windows(layer, x, -(2**15)))
    return np.add.reduce(_windows(layer, x, 0))
