"""Integer form of a network, by TFLite's int8 specification (Jacob et al. 2017, arXiv 1712.05877).

A value x is scale * (q - zero). Weights are int8 with one scale for each output channel and zero 0,
sums and biases int32, maps int8 with one scale for each buffer. A sum is rescaled to the output's
scale by a multiplier and a shift, rounded once, halves up:

    q = zero + ((sum * multiplier + 2^(shift - 1)) >> shift), clamped

which is TFLite's and CMSIS-NN's single rounding. The image is not converted: it is uint8 with one
zero for each channel, and the normalisation is part of the first convolution. This is exact except
at the padding, which is the mean to within half a grey level.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sprat.budget.layers import (
    Add,
    AveragePool,
    Conv,
    Gather,
    Layer,
    Lowered,
    Map,
    MaxPool,
    layer_names,
)
from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.evaluation.ranges import Folded, Range

LEAST, MOST = -128, 127  # of int8
ADD_SHIFT = 20  # bits by which terms are shifted to the left before they are rescaled
Ints = NDArray[np.signedinteger[Any]]


@dataclass(frozen=True)
class Scale:
    """A quantised value stands for scale * (q - zero)."""

    scale: float
    zero: int


@dataclass(frozen=True)
class Rescale:
    """Multipliers, 0 to 2^31 - 1, and shifts, 1 to 62: one of each for every output channel of a
    convolution, for both terms and the sum of an addition; else one in all."""

    multipliers: Ints
    shifts: Ints

    @classmethod
    def by(cls, factors: Sequence[float]) -> "Rescale":
        """Return the rescaling by these factors, 0 or above."""
        pairs = [_multiplier(factor) for factor in factors]
        return cls(np.array([m for m, _ in pairs]), np.array([s for _, s in pairs]))


@dataclass(frozen=True)
class Constants:
    """Constants of a convolution. weights: int8, out x rows x columns x in / groups. biases:
    int32, out."""

    weights: NDArray[np.int8]
    biases: NDArray[np.int32]


@dataclass(frozen=True)
class IntegerLayer:
    """A layer in integers.

    name: a C identifier, unique in the network. zeros: of each input; for the image, of each
    channel. zero, low, high: of the output.
    """

    name: str
    layer: Layer
    zeros: tuple[int, ...]
    zero: int
    low: int
    high: int
    rescale: Rescale
    constants: Constants | None = None


@dataclass(frozen=True)
class IntegerNetwork:
    """A network's integer layers, and the scale of its scores."""

    lowered: Lowered
    layers: tuple[IntegerLayer, ...]
    scores: Scale


def quantize(
    lowered: Lowered,
    folded: Mapping[Map, Folded],
    ranges: Sequence[Range],
    normalization: Normalization,
) -> IntegerNetwork:
    """Return the integer form of a network.

    Args:
        ranges: smallest and largest value of each layer's output.

    Raises:
        SpratError: a sum could exceed int32, or a weight is not finite.
    """
    scales = _scales(lowered, ranges)
    layers = []
    for layer, name in zip(lowered.layers, layer_names(lowered), strict=True):
        out = scales[layer.output.buffer]
        inputs = [scales.get(part.buffer, Scale(1.0, 0)) for part in layer.inputs]
        zeros, constants = tuple(each.zero for each in inputs), None
        if isinstance(layer, Conv):
            weights = folded[layer.output]
            if layer.inputs[0].buffer is lowered.image:
                weights, zeros = _from_pixels(layer, weights, normalization)
            constants, per_channel = _quantize_conv(name, weights, inputs[0])
            factors = [inputs[0].scale * scale / out.scale for scale in per_channel]
        elif isinstance(layer, Add):
            both = 2 * max(each.scale for each in inputs)
            factors = [*(each.scale / both for each in inputs), both / out.scale / 2**ADD_SHIFT]
        elif isinstance(layer, AveragePool):
            factors = [inputs[0].scale / out.scale / math.prod(layer.kernel)]
        else:
            factors = [inputs[0].scale / out.scale]
        layers.append(
            IntegerLayer(
                name=name,
                layer=layer,
                zeros=zeros,
                zero=out.zero,
                low=_bound(layer.low, out),
                high=_bound(layer.high, out),
                rescale=Rescale.by(factors),
                constants=constants,
            )
        )
    return IntegerNetwork(lowered, tuple(layers), scales[lowered.output.buffer])


def _scales(lowered: Lowered, ranges: Sequence[Range]) -> dict[Map, Scale]:
    """Return the scale of each map, shared by everything that is written to its buffer."""
    widest: dict[Map, Range] = {}
    writers = Counter(layer.output.buffer for layer in lowered.layers)
    for layer, (low, high) in zip(lowered.layers, ranges, strict=True):
        before = widest.get(layer.output.buffer, (0.0, 0.0))
        widest[layer.output.buffer] = min(before[0], low), max(before[1], high)
    scales: dict[Map, Scale] = {}
    for buffer, (low, high) in widest.items():
        scale = (high - low) / (MOST - LEAST) or 1.0
        scales[buffer] = Scale(scale, min(MOST, max(LEAST, round(LEAST - low / scale))))
    for layer in lowered.layers:  # they only copy values, which need no rounding
        if isinstance(layer, MaxPool | Gather) and writers[layer.output.buffer] == 1:
            scales[layer.output.buffer] = scales[layer.inputs[0].buffer]
    return scales


def _from_pixels(
    conv: Conv, folded: Folded, normalization: Normalization
) -> tuple[Folded, tuple[int, ...]]:
    """Return weights for pixels of 0 to 255, and the zero of each channel of the image."""
    first = conv.inputs[0].first
    channels = slice(first, first + conv.inputs[0].channels)
    mean = folded.weight.new_tensor(normalization.mean[channels]) * 255
    deviation = folded.weight.new_tensor(normalization.std[channels]) * 255
    outs, each_in = folded.weight.shape[:2]
    group = outs // conv.groups
    # channel of the image for each weight, out x in / groups
    of = torch.arange(outs)[:, None] // group * each_in + torch.arange(each_in)
    zeros = mean.round()
    weight = folded.weight / deviation[of].view(outs, each_in, 1, 1)
    bias = folded.bias + (weight.sum((2, 3)) * (zeros - mean)[of]).sum(1)
    return Folded(weight, bias), tuple(int(zero) for zero in zeros)


def _quantize_conv(name: str, folded: Folded, source: Scale) -> tuple[Constants, list[float]]:
    """Return the constants of a convolution and the scale of each output channel's weights."""
    weight, bias = folded.weight.numpy(), folded.bias.numpy()
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise SpratError(f"The weights of {name} are not finite. Train the model again.")
    # the smallest scales with which the weights fit into 8 bits and the biases into 30
    scales = np.maximum(np.abs(weight).max((1, 2, 3)) / MOST, np.abs(bias) / source.scale / 2**29)
    scales[scales == 0] = 1.0
    weights = np.rint(weight / scales[:, None, None, None]).astype(np.int64)
    biases = np.rint(bias / (source.scale * scales)).astype(np.int64)
    largest = (np.abs(weights).sum((1, 2, 3)) * 255 + np.abs(biases)).max()
    if largest >= 2**31:
        raise SpratError(
            f"The sums of {name} can exceed 32 bits: each has {weights[0].size:,} terms. Use "
            "narrower layers."
        )
    ordered = np.ascontiguousarray(weights.transpose(0, 2, 3, 1)).astype(np.int8)
    return Constants(ordered, biases.astype(np.int32)), scales.tolist()


def _bound(value: float, scale: Scale) -> int:
    quantized = value / scale.scale + scale.zero
    return round(min(MOST, max(LEAST, quantized)))


def _multiplier(factor: float) -> tuple[int, int]:
    """Return a multiplier below 2^31 and a shift: factor = multiplier / 2^shift."""
    if not 0 <= factor < 2**29:
        raise SpratError(f"A layer's scales differ by {factor:.3g}. Train the model again.")
    mantissa, exponent = math.frexp(factor)
    multiplier, shift = round(mantissa * 2**31), 31 - exponent
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift - 1
    if shift > 62:
        return 0, 1
    return multiplier, shift
