"""A network as layers that a microcontroller runs one after another, and the maps between them.

    lowered = lower(trace(network, side))

BatchNorm and activations are part of the layer before them. A part of the channels, and each map of
a concatenation, are views of another map. Needs no trained weights: layers name their parameters.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sprat.budget import graph
from sprat.budget.graph import Op, Stored
from sprat.errors import SpratError

SUPPORTED = (
    "convolutions, BatchNorm, ReLU and ReLU6, additions, concatenation and split of channels, "
    "average and max pooling, linear layers"
)
Pair = tuple[int, int]  # rows, columns


@dataclass(eq=False)
class Map:
    """height x width pixels of `channels` values each.

    within: the map that this one is a view of, and its first channel there; None for a buffer.
    """

    channels: int
    height: int
    width: int
    within: tuple["Map", int] | None = None

    @property
    def size(self) -> int:
        """Number of values."""
        return self.channels * self.height * self.width

    @property
    def buffer(self) -> "Map":
        """The map that has memory of its own."""
        return self.within[0].buffer if self.within else self

    @property
    def first(self) -> int:
        """The first channel in the buffer."""
        return self.within[0].first + self.within[1] if self.within else 0


@dataclass(frozen=True)
class Norm:
    """BatchNorm by running statistics; None for what it does not have."""

    weight: Stored | None
    bias: Stored | None
    mean: Stored
    var: Stored
    eps: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step: inputs to output, then clamped to low..high.

    place: path of the module that calls it.
    """

    place: str
    inputs: tuple[Map, ...]
    output: Map
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Add(Layer):
    """The sum of two maps."""


@dataclass(frozen=True, kw_only=True)
class Windowed(Layer):
    """A layer that moves a window over one map."""

    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    """Rows above and below, columns left and right."""
    dilation: Pair = (1, 1)


@dataclass(frozen=True, kw_only=True)
class Conv(Windowed):
    """A convolution with BatchNorm after it; a linear layer is one whose window is the whole map.

    weight: out x in / groups x rows x columns, or out x in * rows * columns; None for ones, where
    BatchNorm stands alone.
    """

    weight: Stored | None
    bias: Stored | None = None
    groups: int = 1
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class AveragePool(Windowed):
    """The mean of each window, padding counted as zeros."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Windowed):
    """The largest value of each window; of 1x1 windows a copy."""


@dataclass(frozen=True)
class Lowered:
    """A network's layers in the order they run.

    image: 3 x side x side, read by convolutions alone. output: K x 1 x 1.
    """

    layers: tuple[Layer, ...]
    image: Map
    output: Map

    @property
    def weight_bytes(self) -> int:
        """What the constants take in int8: a byte a weight; 9 bytes, of bias, multiplier and shift,
        an output channel."""
        convs = [layer for layer in self.layers if isinstance(layer, Conv)]
        return sum(conv_weights(conv) + 9 * conv.output.channels for conv in convs)


def conv_weights(conv: Conv) -> int:
    """Return the number of weights of a convolution."""
    return conv.output.channels * conv.inputs[0].channels // conv.groups * math.prod(conv.kernel)


def layer_names(lowered: Lowered) -> list[str]:
    """Return a name for each layer by its place, as a C identifier."""
    names: dict[str, None] = {}
    for layer in lowered.layers:
        name = re.sub("[^0-9A-Za-z]", "_", layer.place) or type(layer).__name__.lower()
        names.setdefault(next(each for each in _variants(name) if each not in names))
    return list(names)


def _variants(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{n}" for n in itertools.count(2))


def lower(ops: list[Op]) -> Lowered:
    """Return the layers of a traced network.

    Raises:
        SpratError: there is an operation that has no layer here; names it and its module.
    """
    return _Lowering(ops).lowered()


class _Unsupported(Exception):
    """Why an operation has no layer."""


class _Lowering:
    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.layers: list[Layer] = []
        self.made: dict[Map, int] = {}  # the layer that makes a map
        self.maps: list[
            Any
        ] = []  # of each op: a Map, or the Map that is split and its parts' sizes
        self.readers = _readers(ops)

    def lowered(self) -> Lowered:
        for op in self.ops:
            try:
                lower_op = _OPS.get(op.kind)
                if lower_op is None:
                    raise _Unsupported(f"there is no integer form of {op.kind}")
                self.maps.append(lower_op(self, op))
            except _Unsupported as reason:
                where = f"{op.kind} in {op.module or 'the network itself'}"
                raise SpratError(
                    f"{where} cannot be computed in integers: {reason}. Supported: {SUPPORTED}."
                ) from None
        output = self.maps[-1]
        if not isinstance(output, Map) or (output.height, output.width) != (1, 1):
            raise SpratError(
                f"The network's result has shape {self.ops[-1].shape}, which are no scores. Let "
                "it end in a linear layer."
            )
        return Lowered(tuple(self.layers), self.maps[0], output)

    def map(self, arg: Any, *, flat: bool = False) -> Map:
        """Return the map of an argument.

        Args:
            flat: whether it may have been flattened before it was pooled.
        """
        if not isinstance(arg, graph.Map):
            raise _Unsupported("it takes something else than a map that a layer made")
        found = self.maps[arg.op]
        shape = self.ops[arg.op].shape
        allowed: list[tuple[int, ...]] = [(1, found.channels, found.height, found.width)]
        if found.height == found.width == 1 or flat:
            allowed.append((1, found.size))
        if shape not in allowed:
            raise _Unsupported(f"it takes a map of shape {shape}")
        return found

    def add(self, layer: Layer) -> Map:
        """Append a layer and return its output."""
        image = self.maps[0]
        if image in [part.buffer for part in layer.inputs] and not isinstance(layer, Conv):
            layer = replace(layer, inputs=tuple(map(self.converted, layer.inputs)))
        self.made[layer.output] = len(self.layers)
        self.layers.append(layer)
        return layer.output

    def converted(self, part: Map) -> Map:
        """Return a copy of a part of the image as a map like any other."""
        if part.buffer is not self.maps[0]:
            return part
        output = Map(part.channels, part.height, part.width)
        return self.add(
            Conv(place="image", inputs=(part,), output=output, weight=None, groups=part.channels)
        )

    def fused(self, arg: graph.Map, **values: Any) -> Map | None:
        """Change the layer that makes a map, if nobody else reads the map; None if not possible."""
        found = self.maps[arg.op]
        if found not in self.made or self.readers[arg.op] > 1:
            return None
        layer = self.layers[self.made[found]]
        is_clamped = (layer.low, layer.high) != (-math.inf, math.inf)
        if is_clamped or ("norm" in values and (not isinstance(layer, Conv) or layer.norm)):
            return None
        self.layers[self.made[found]] = replace(layer, **values)
        return found

    def window(self, op: Op, windowed: type[Windowed], **values: Any) -> Map:
        """Append a layer with windows over the op's first argument."""
        found = self.map(op.arg(0), flat=op.kind == "linear")
        channels, height, width = (*op.shape[1:], 1, 1)[:3]
        return self.add(
            windowed(
                place=op.module,
                inputs=(found,),
                output=Map(channels, height, width),
                **values,
            )
        )

    def conv2d(self, op: Op) -> Map:
        weight, bias = op.arg(1), op.arg(2)
        self.check_stored(weight, bias)
        kernel, dilation = (weight[2], weight[3]), _pair(op.arg(5, 1))
        padding = op.arg(4, 0)
        if padding == "same":
            if any(k % 2 == 0 and d % 2 for k, d in zip(kernel, dilation, strict=True)):
                raise _Unsupported("its padding differs from side to side")
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        return self.window(
            op,
            Conv,
            weight=weight,
            bias=bias,
            kernel=kernel,
            stride=_pair(op.arg(3, 1)),
            padding=_pair(0 if padding == "valid" else padding),
            dilation=dilation,
            groups=op.arg(6, 1),
        )

    def linear(self, op: Op) -> Map:
        weight, bias = op.arg(1), op.arg(2)
        self.check_stored(weight, bias)
        found = self.map(op.arg(0), flat=True)
        return self.window(op, Conv, weight=weight, bias=bias, kernel=(found.height, found.width))

    def check_stored(self, *values: Any) -> None:
        if any(value is not None and not getattr(value, "name", "") for value in values):
            raise _Unsupported("its weights are computed, or not in the state_dict")

    def batch_norm(self, op: Op) -> Map:
        norm = Norm(op.arg(1), op.arg(2), op.arg(3), op.arg(4), op.arg(7))
        if norm.mean is None or op.arg(5):
            raise _Unsupported("it has no running statistics")
        self.check_stored(norm.weight, norm.bias, norm.mean, norm.var)
        found = self.map(op.arg(0))
        return self.fused(op.arg(0), norm=norm) or self.window(
            op, Conv, weight=None, groups=found.channels, norm=norm
        )

    def clamp(self, op: Op) -> Map:
        low, high = {
            "relu": (0.0, math.inf),
            "relu6": (0.0, 6.0),
            "hardtanh": (op.arg(1, -1.0), op.arg(2, 1.0)),
        }[op.kind.removesuffix("_")]
        bounds = {"low": float(low), "high": float(high)}
        found = self.map(op.arg(0), flat=True)
        return self.fused(op.arg(0), **bounds) or self.copy(found, op.module, **bounds)

    def copy(self, source: Map, place: str, **values: Any) -> Map:
        output = Map(source.channels, source.height, source.width)
        return self.add(MaxPool(place=place, inputs=(source,), output=output, **values))

    def sum(self, op: Op) -> Map:
        if op.arg(2, 1) != 1:
            raise _Unsupported("a term has a factor")
        left, right = self.map(op.arg(0), flat=True), self.map(op.arg(1), flat=True)
        shape = (left.channels, left.height, left.width)
        if shape != (right.channels, right.height, right.width):
            raise _Unsupported("its terms differ in shape")
        return self.add(Add(place=op.module, inputs=(left, right), output=Map(*shape)))

    def average(self, op: Op) -> Map:
        found = self.map(op.arg(0))
        size = (found.height, found.width)
        if op.kind == "mean":
            if sorted(dim % 4 for dim in op.arg(1) or ()) != [2, 3] or len(op.inputs) != 1:
                raise _Unsupported("it is not over the pixels")
            return self.window(op, AveragePool, kernel=size, stride=size)
        if op.kind == "adaptive_avg_pool2d":
            kernel = tuple(n // m for n, m in zip(size, op.shape[2:], strict=True))
            if any(n % m for n, m in zip(size, op.shape[2:], strict=True)):
                raise _Unsupported("its windows differ in size")
            return self.window(op, AveragePool, kernel=kernel, stride=kernel)
        kernel, padding = _pair(op.arg(1)), _pair(op.arg(3, 0))
        if op.arg(4, False) or op.arg(6) or (any(padding) and not op.arg(5, True)):
            raise _Unsupported("its windows differ in size")
        stride = _pair(op.arg(2) or kernel)
        return self.window(op, AveragePool, kernel=kernel, stride=stride, padding=padding)

    def max_pool2d(self, op: Op) -> Map:
        kernel = _pair(op.arg(1))
        if op.arg(5, False):
            raise _Unsupported("its windows differ in size (ceil_mode)")
        return self.window(
            op,
            MaxPool,
            kernel=kernel,
            stride=_pair(op.arg(2) or kernel),
            padding=_pair(op.arg(3, 0)),
            dilation=_pair(op.arg(4, 1)),
        )

    def cat(self, op: Op) -> Map:
        """A concatenation's maps become views of it; what is a view already, or is concatenated
        twice, is copied."""
        parts = [self.map(part) for part in op.args[0]]
        if op.arg(1, 0) % len(op.shape) != 1:
            raise _Unsupported("it is not over the channels")
        channels, height, width = (*op.shape[1:], 1, 1)[:3]
        whole, first = Map(channels, height, width), 0
        for part in parts:
            if part.within or part is self.maps[0]:
                part = self.copy(part, op.module)
            part.within = whole, first
            first += part.channels
        return whole

    def split(self, op: Op) -> tuple[Map, list[int]]:
        if op.arg(2, 0) % 4 != 1:
            raise _Unsupported("it is not over the channels")
        sizes: list[int] = []  # of the parts, as they are found
        return self.map(op.arg(0)), sizes

    def getitem(self, op: Op) -> Map:
        """One part of a split, which follow it in order."""
        whole, sizes = self.maps[op.args[0].op]
        part = Map(op.shape[1], whole.height, whole.width, (whole, sum(sizes)))
        sizes.append(op.shape[1])
        return part

    def slice(self, op: Op) -> Map:
        found = self.map(op.arg(0))
        if self.ops[op.inputs[0]].shape == op.shape:
            return found
        first = op.arg(2) or 0
        if op.arg(1, 0) % len(op.shape) != 1 or op.arg(4, 1) != 1:
            raise _Unsupported("it takes some of the pixels, or not every channel in a row")
        first += found.channels * (first < 0)
        return Map(op.shape[1], found.height, found.width, (found, first))

    def alias(self, op: Op) -> Map:
        found = self.map(op.arg(0), flat=True)
        if op.shape not in ((1, found.size), (1, found.channels, found.height, found.width)):
            raise _Unsupported(f"it makes a map of shape {op.shape}")
        if op.kind == "dropout" and op.arg(2):
            raise _Unsupported("it drops values at random")
        return found

    def input(self, op: Op) -> Map:
        _, channels, height, width = op.shape
        return Map(channels, height, width)


_ALIASES = frozenset("dropout flatten view reshape contiguous alias detach squeeze".split())  # noqa: SIM905
_OPS: dict[str, Callable[[_Lowering, Op], Any]] = {
    "input": _Lowering.input,
    "conv2d": _Lowering.conv2d,
    "linear": _Lowering.linear,
    "batch_norm": _Lowering.batch_norm,
    "cat": _Lowering.cat,
    "concat": _Lowering.cat,
    "getitem": _Lowering.getitem,
    "slice": _Lowering.slice,
    "max_pool2d": _Lowering.max_pool2d,
    **dict.fromkeys(("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"), _Lowering.clamp),
    **dict.fromkeys(("add", "add_"), _Lowering.sum),
    **dict.fromkeys(("mean", "avg_pool2d", "adaptive_avg_pool2d"), _Lowering.average),
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _Lowering.split),
    **dict.fromkeys(_ALIASES, _Lowering.alias),
}


def _readers(ops: list[Op]) -> list[int]:
    """Of each op, how many others read its values; aliases share theirs with what they alias."""
    root: list[int] = []
    for place, op in enumerate(ops):
        root.append(root[op.inputs[0]] if op.kind in _ALIASES and op.inputs else place)
    count = [0] * len(ops)
    for op in ops:
        for source in set(op.inputs) if op.kind not in _ALIASES else ():
            count[root[source]] += 1
    return [count[place] for place in root]


def _pair(value: int | tuple[int, ...]) -> Pair:
    values = value if isinstance(value, tuple) else (value,)
    return (values[0], values[-1])
