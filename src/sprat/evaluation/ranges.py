"""The layers of a network computed in floating point: what their integer form approximates, and the
range of each layer's values."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.budget.layers import Add, AveragePool, Conv, Layer, Lowered, Map, MaxPool, Windowed
from sprat.data.imageset import Images, Normalization
from sprat.deploy.graph import graph_input

BATCH = 64  # images; every map of a batch is kept
Range = tuple[float, float]


@dataclass(frozen=True)
class Folded:
    """A convolution's weights and biases with BatchNorm folded into them, float64.

    weight: out x in / groups x rows x columns. bias: out.
    """

    weight: Tensor
    bias: Tensor


def fold(conv: Conv, state: Mapping[str, Tensor]) -> Folded:
    """Return the weights and biases of a convolution, given the network's state_dict."""
    outs, kernel = conv.output.channels, conv.kernel
    weight = torch.ones(outs, 1, 1, 1, dtype=torch.float64)
    if conv.weight is not None:
        weight = state[conv.weight.name].double().view(outs, -1, *kernel)
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
    """Return the weights of every convolution, by its output."""
    return {layer.output: fold(layer, state) for layer in lowered.layers if isinstance(layer, Conv)}


def run(lowered: Lowered, folded: Mapping[Map, Folded], images: Tensor) -> Iterator[Tensor]:
    """Yield every layer's output, B x channels x H x W, for normalised float images
    B x 3 x side x side; the last one is the logits."""
    values = {lowered.image: images}
    for layer in lowered.layers:
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


def _output(layer: Layer, folded: Mapping[Map, Folded], inputs: list[Tensor]) -> Tensor:
    x = inputs[0]
    if isinstance(layer, Add):
        return x + inputs[1]
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


@torch.inference_mode()
def measure_ranges(
    lowered: Lowered, folded: Mapping[Map, Folded], images: Images, normalization: Normalization
) -> tuple[Range, ...]:
    """Return the least and the largest value of every layer's output over uint8 images
    N x 3 x side x side."""
    lows, highs = [float("inf")] * len(lowered.layers), [float("-inf")] * len(lowered.layers)
    for batch in images.split(BATCH):
        normalised = graph_input(batch, normalization, raw=True)
        for number, values in enumerate(run(lowered, folded, normalised)):
            low, high = values.aminmax()
            lows[number] = min(lows[number], low.item())
            highs[number] = max(highs[number], high.item())
    return tuple(zip(lows, highs, strict=True))
