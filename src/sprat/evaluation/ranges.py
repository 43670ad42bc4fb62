"""Ranges of every layer's values on training images, which integer inference needs. They are stored
with a model, so that it can be quantised without the images.

    lowered = lower(trace(network, side))
    ranges = measure_ranges(lowered, fold_all(lowered, network.state_dict()), images, normalization)

The layers are computed in floating point as on a microcontroller, with BatchNorm folded.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.augment.transforms import normalize
from sprat.budget.graph import trace
from sprat.budget.layers import (
    Add,
    AveragePool,
    Conv,
    Gather,
    Layer,
    Lowered,
    Map,
    MaxPool,
    Windowed,
    layer_names,
    lower,
)
from sprat.budget.plan import find_buffers
from sprat.data.imageset import Images, ImageSet, Normalization, stratified_split
from sprat.errors import SpratError, shown
from sprat.shapes import ListOf, Shape, TableOf, mismatch, number, whole

CALIBRATION = 512  # images; with 128 to 1,024 a model lost 0 to 0.2 points, without a trend
BATCH = 64  # images at once, at 32 pixels
# The ends of a range are the means of the extremes of groups of this many images, so that one
# outlier does not make all values coarser. Compared with the extremes of all images, predictions
# are closer to those in floating point (Kullback-Leibler divergence on 512 to 1,000 training
# images): SpratT 0.0019 instead of 0.0043, SpratS 0.0023 instead of 0.0032, SpratM 0.0008 instead
# of 0.0017. Groups of 1, 8, 16 and 64 were worse where tried.
GROUP = 4
DIGITS = 6  # significant digits of a range
NARROWEST = 1e-30  # width of a range, unless it is a single value
VERSION = 1  # of the record
Range = tuple[float, float]
Ranges = tuple[Range, ...]  # of each layer's output, in order
RECORD: Shape = {
    "version": whole(VERSION, VERSION),
    "images": whole(1),
    "layers": TableOf(ListOf(number(), 2, 2)),
}


@dataclass(frozen=True)
class Folded:
    """Weights and biases of a convolution with BatchNorm folded into them, float64.

    weight: out x in / groups x rows x columns. bias: out.
    """

    weight: Tensor
    bias: Tensor


def fold(conv: Conv, state: Mapping[str, Tensor]) -> Folded:
    """Return the weights and biases of a convolution from the network's state_dict."""
    outs, kernel = conv.output.channels, conv.kernel
    weight = torch.ones(outs, 1, 1, 1, dtype=torch.float64)
    if conv.weight is not None:
        # flat first, as the memory layout affects how sums are rounded
        weight = state[conv.weight.name].double().flatten().view(outs, -1, *kernel)
    bias = torch.zeros(outs, dtype=torch.float64)
    if conv.bias is not None:
        bias = state[conv.bias.name].double()
    if (norm := conv.norm) is not None:
        scale = (state[norm.var.name].double() + norm.eps).rsqrt()
        if norm.weight is not None:
            scale = scale * state[norm.weight.name].double()
        weight = weight * scale.view(-1, 1, 1, 1)
        bias = (bias - state[norm.mean.name].double()) * scale
        if norm.bias is not None:
            bias = bias + state[norm.bias.name].double()
    return Folded(weight, bias)


def fold_all(lowered: Lowered, state: Mapping[str, Tensor]) -> dict[Map, Folded]:
    """Return the weights and biases of every convolution, by its output."""
    return {layer.output: fold(layer, state) for layer in lowered.layers if isinstance(layer, Conv)}


def run(lowered: Lowered, folded: Mapping[Map, Folded], images: Tensor) -> Iterator[Tensor]:
    """Yield every layer's output, B x channels x H x W, for normalised float images B x C x side x
    side; the last one is the logits. Maps are freed as soon as they are not needed."""
    dies = {buffer.map: buffer.dies for buffer in find_buffers(lowered)}
    values = {lowered.image: images}
    for place, layer in enumerate(lowered.layers):
        inputs = [
            values[part.buffer][:, part.first : part.first + part.channels] for part in layer.inputs
        ]
        result = _output(layer, folded, inputs).clamp(layer.low, layer.high)
        output, buffer = layer.output, layer.output.buffer
        if buffer not in values:
            values[buffer] = images.new_zeros(
                len(images), buffer.channels, buffer.height, buffer.width
            )
        values[buffer][:, output.first : output.first + output.channels] = result
        yield result
        for buffer in [each for each in values if dies.get(each) == place]:
            del values[buffer]


def _output(layer: Layer, folded: Mapping[Map, Folded], inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if isinstance(layer, Add):
        return x + inputs[1]
    if isinstance(layer, Gather):
        channels, rows, columns = layer.taken()
        return F.pad(x, (0, 1, 0, 1, 0, 1))[:, channels][:, :, rows][..., columns]  # -1: zeros
    assert isinstance(layer, Windowed)
    window = (layer.kernel, layer.stride, layer.padding)
    if isinstance(layer, MaxPool):
        return F.max_pool2d(x, *window, dilation=layer.dilation)
    if isinstance(layer, AveragePool):
        return F.avg_pool2d(x, *window)
    assert isinstance(layer, Conv)
    weights = folded[layer.output]
    return F.conv2d(
        x,
        weights.weight.to(x.dtype),
        weights.bias.to(x.dtype),
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
    )


def calibration_images(training: ImageSet) -> Images:
    """Return the images to calibrate on: the same share of each class, and always the same ones."""
    targets = training.targets.cpu()
    _, chosen = stratified_split(targets, min(CALIBRATION, len(targets)), seed=0)
    return training.subset(chosen.to(training.targets.device)).images


@torch.inference_mode()
def measure_ranges(
    lowered: Lowered, folded: Mapping[Map, Folded], images: Images, normalization: Normalization
) -> Ranges:
    """Return the ranges on uint8 images N x C x side x side, to six significant digits.

    Raises:
        SpratError: a value is not finite.
    """
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    extremes: list[list[Range]] = [[] for _ in lowered.layers]
    at_once = min(BATCH, BATCH * 32**2 // images.shape[-1] ** 2)
    for batch in images.split(max(GROUP, at_once - at_once % GROUP)):
        normalised = normalize(batch.cpu(), mean, std).contiguous()
        for layer, values in enumerate(run(lowered, folded, normalised)):
            if not values.isfinite().all():
                raise SpratError(
                    "The network's activations are not finite on the calibration images. Train "
                    "the model again."
                )
            for group in values.split(GROUP):
                low, high = group.aminmax()
                extremes[layer].append((low.item(), high.item()))
    return tuple(
        (_rounded(fmean(low for low, _ in each)), _rounded(fmean(high for _, high in each)))
        for each in extremes
    )


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def measure_record(
    network: nn.Module, training: ImageSet, normalization: Normalization
) -> dict[str, Any]:
    """Return a network's ranges on training images, in the form stored in a model file.

    Raises:
        SpratError: the network has layers that cannot be computed in integers, or a value is not
            finite.
    """
    lowered = lower(trace(network, training.images.shape[-1]))
    state = {name: tensor.cpu() for name, tensor in network.state_dict().items()}
    images = calibration_images(training)
    ranges = measure_ranges(lowered, fold_all(lowered, state), images, normalization)
    return {
        "version": VERSION,
        "images": len(images),
        "layers": dict(zip(layer_names(lowered), map(list, ranges), strict=True)),
    }


def read_record(record: Any, lowered: Lowered) -> Ranges:
    """Return the ranges stored in a model file, which may contain anything.

    Raises:
        SpratError: they are not ranges of this network.
    """
    wrong = mismatch(record, RECORD) or _wrong_layers(record["layers"], layer_names(lowered))
    if wrong:
        raise SpratError(
            f"The ranges of activations stored with the model cannot be used: {wrong}. Measure "
            "them again with --calibrate DATASET."
        )
    layers = record["layers"]
    return tuple((float(layers[name][0]), float(layers[name][1])) for name in layer_names(lowered))


def _wrong_layers(layers: Mapping[str, Sequence[float]], names: Sequence[str]) -> str | None:
    """Return what is wrong with the ranges of layers; None if they fit."""
    if missing := [name for name in names if name not in layers]:
        return f"the layer {missing[0]} has none"
    if others := sorted(layers.keys() - set(names)):
        return f"the network has no layer {shown(others[0])}"
    for name, (low, high) in layers.items():
        if low > high or 0 < high - low < NARROWEST:
            return f"that of {shown(name)} is from {low:g} to {high:g}"
    return None
