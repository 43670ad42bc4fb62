"""A network as layers that a microcontroller runs one after another, and the maps between them.

    lowered = lower(trace(network, side))

BatchNorm and activations are part of the layer before them. Some of a map's channels, and the maps
of a concatenation, are views of another map. Needs no trained weights: layers refer to parameters
by name.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprat.budget import graph
from sprat.budget.graph import Op, Stored
from sprat.errors import SpratError

SUPPORTED = (
    "convolutions, BatchNorm, ReLU and ReLU6, additions, concatenation, split and shuffle of "
    "channels, zero padding, average and max pooling, linear layers"
)
MOST_MOVED = 2**24  # values of a map that is only rearranged; more than a chip has bytes
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
        """The map that owns the memory."""
        return self.within[0].buffer if self.within else self

    @property
    def first(self) -> int:
        """First channel within the buffer."""
        return self.within[0].first + self.within[1] if self.within else 0


@dataclass(frozen=True)
class Norm:
    """BatchNorm with running statistics; weight and bias are None if there are none."""

    weight: Stored | None
    bias: Stored | None
    mean: Stored
    var: Stored
    eps: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One step from inputs to output, which is then clamped to low..high.

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
    """A convolution followed by BatchNorm; a linear layer is one whose window is the whole map.

    weight: out x in / groups x rows x columns, or out x in * rows * columns; None stands for ones,
    for BatchNorm on its own.
    """

    weight: Stored | None
    bias: Stored | None = None
    groups: int = 1
    norm: Norm | None = None


@dataclass(frozen=True, kw_only=True)
class AveragePool(Windowed):
    """Mean of each window, counting padding as zeros."""


@dataclass(frozen=True, kw_only=True)
class MaxPool(Windowed):
    """Largest value of each window; with 1x1 windows, a copy."""


@dataclass(frozen=True, kw_only=True)
class Gather(Windowed):
    """Some of a map's channels and pixels, with zeros between and around them; its windows are 1x1.

    channels: input channel of each output channel; -1 for zeros. padding: negative if the first
    rows or columns are skipped.
    """

    channels: tuple[int, ...]

    def taken(self) -> tuple[list[int], list[int], list[int]]:
        """Return the input channel, row and column of each of the output's; -1 for zeros."""
        source, output = self.inputs[0], self.output
        rows, columns = (
            [at if 0 <= (at := n * stride - padding) < size else -1 for n in range(count)]
            for count, stride, padding, size in zip(
                (output.height, output.width),
                self.stride,
                self.padding,
                (source.height, source.width),
                strict=True,
            )
        )
        return list(self.channels), rows, columns


@dataclass(frozen=True)
class Lowered:
    """Layers of a network in the order they run.

    image: channels x side x side, read only by convolutions. output: K x 1 x 1.
    """

    layers: tuple[Layer, ...]
    image: Map
    output: Map

    @property
    def weight_bytes(self) -> int:
        """Bytes of the constants in int8: 1 per weight; per output channel 9 (bias, multiplier and
        shift), or 2 for a Gather (index of the input channel)."""
        convs = [layer for layer in self.layers if isinstance(layer, Conv)]
        gathers = [layer for layer in self.layers if isinstance(layer, Gather)]
        return sum(conv_weights(conv) + 9 * conv.output.channels for conv in convs) + sum(
            2 * gather.output.channels for gather in gathers
        )


def conv_weights(conv: Conv) -> int:
    """Return the number of weights of a convolution."""
    return conv.output.channels * conv.inputs[0].channels // conv.groups * math.prod(conv.kernel)


def layer_names(lowered: Lowered) -> list[str]:
    """Return a name for each layer, from its module's path, that is a C identifier."""
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
        SpratError: an operation has no layer; the message names it and its module.
    """
    return _Lowering(ops).lowered()


class _Unsupported(Exception):
    """The reason why an operation has no layer."""


@contextmanager
def _named(op: Op) -> Iterator[None]:
    """Add the name of the operation to the error that it has no layer."""
    try:
        yield
    except _Unsupported as reason:
        where = f"{op.kind} in {op.module or 'the network itself'}"
        raise SpratError(
            f"{where} cannot be computed in integers: {reason}. Supported: {SUPPORTED}."
        ) from None


@dataclass(frozen=True)
class _Moved:
    """Rearranged values of a map, until it is known which layer reads them.

    index: int32, of any shape: 1 + the index of the value in the map, by channel, row and column; 0
    for zeros.
    """

    source: Map
    index: Tensor


class _Lowering:
    def __init__(self, ops: list[Op]) -> None:
        self.ops = ops
        self.layers: list[Layer] = []
        self.made: dict[Map, tuple[int, int]] = {}  # layer and op that compute a map
        # for each op: a Map, a _Moved, or the Map that is split and the sizes of its parts
        self.maps: list[Any] = []
        self.readers = _readers(ops)

    def lowered(self) -> Lowered:
        for op in self.ops:
            with _named(op):
                if op.kind not in _OPS:
                    raise _Unsupported(f"there is no integer form of {op.kind}")
                self.maps.append(_OPS[op.kind](self, op))
        with _named(op):
            output = self.map(graph.Map(len(self.ops) - 1), flat=True)
        if (output.height, output.width) != (1, 1):
            raise SpratError(
                f"The network's output has shape {self.ops[-1].shape}, expected one score per "
                "class. End the network with a linear layer."
            )
        return Lowered(tuple(self.layers), self.maps[0], output)

    def map(self, arg: Any, *, flat: bool = False) -> Map:
        """Return the map of an argument.

        Args:
            flat: whether it may have been flattened before pooling.
        """
        if not isinstance(arg, graph.Map):
            raise _Unsupported("its input is not the output of a layer")
        found, shape = self.maps[arg.op], self.ops[arg.op].shape
        if isinstance(found, tuple):
            raise _Unsupported("its input is several maps")
        if isinstance(found, _Moved):
            with _named(self.ops[arg.op]):
                found = self.maps[arg.op] = self.gathered(found, arg.op)
        allowed: list[tuple[int, ...]] = [(1, found.channels, found.height, found.width)]
        if found.height == found.width == 1 or flat:
            allowed.append((1, found.size))
        if shape not in allowed:
            raise _Unsupported(f"its input has shape {shape}")
        return found

    def add(self, layer: Layer, op: int | None = None) -> Map:
        """Append a layer and return its output.

        Args:
            op: index of the op whose result it is; by default the one being lowered.
        """
        image = self.maps[0]
        if image in [part.buffer for part in layer.inputs] and not isinstance(layer, Conv):
            layer = replace(layer, inputs=tuple(map(self.converted, layer.inputs)))
        self.made[layer.output] = len(self.layers), len(self.maps) if op is None else op
        self.layers.append(layer)
        return layer.output

    def converted(self, part: Map) -> Map:
        """Copy a part of the image into a map like any other."""
        if part.buffer is not self.maps[0]:
            return part
        output = Map(part.channels, part.height, part.width)
        return self.add(
            Conv(place="image", inputs=(part,), output=output, weight=None, groups=part.channels)
        )

    def fused(self, arg: graph.Map, **values: Any) -> Map | None:
        """Change the layer that computes a map if nothing else reads the map; otherwise return
        None."""
        found = self.maps[arg.op]
        if found not in self.made:
            return None
        number, maker = self.made[found]
        op = arg.op
        while self.readers[op] <= 1 and op != maker:  # back to it through ops that moved no value
            op = self.ops[op].inputs[0]
        if self.readers[op] > 1:
            return None
        layer = self.layers[number]
        is_clamped = (layer.low, layer.high) != (-math.inf, math.inf)
        if is_clamped or ("norm" in values and (not isinstance(layer, Conv) or layer.norm)):
            return None
        self.layers[number] = replace(layer, **values)
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
        """Make the maps of a concatenation views of its result; copy those that are views already
        or occur twice."""
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
        sizes: list[int] = []  # sizes of the parts found so far
        return self.map(op.arg(0)), sizes

    def getitem(self, op: Op) -> Map:
        """Return the next part of a split; the graph has them in order."""
        whole, sizes = self.maps[op.args[0].op]
        part = Map(op.shape[1], whole.height, whole.width, (whole, sum(sizes)))
        sizes.append(op.shape[1])
        return part

    def moved(self, op: Op) -> _Moved:
        """Apply an operation that only rearranges values to their indices."""
        (source,) = op.inputs
        found = self.maps[source]
        if isinstance(found, Map):
            if found.size > MOST_MOVED:
                raise _Unsupported(
                    f"it moves {found.size:,} values, expected at most {MOST_MOVED:,}"
                )
            index = torch.arange(1, found.size + 1, dtype=torch.int32)
            found = _Moved(found, index.view(self.ops[source].shape))
        if op.kind in ("pad", "constant_pad_nd"):
            mode, value = ("constant", op.arg(2)) if "_" in op.kind else (op.arg(2), op.arg(3))
            if mode not in (None, "constant") or value:
                raise _Unsupported("it pads with other values than zero")
        index = getattr(torch.ops.aten, op.kind)(found.index, *op.args[1:])
        return _Moved(found.source, index)

    def gathered(self, moved: _Moved, op: int) -> Map:
        """Return the map of rearranged values: the source or a view of it if no value moves, else
        the output of a new layer."""
        source, shape = moved.source, tuple(moved.index.shape)
        numbers = np.arange(1, source.size + 1, dtype=np.int32)
        if np.array_equal(moved.index.flatten(), numbers):
            return source
        if shape[0] != 1 or len(shape) not in (2, 4):
            raise _Unsupported(f"its output has shape {shape}")
        channels, height, width = (*shape[1:], 1, 1)[:3]
        index = moved.index.view(channels, height, width).numpy()
        sizes = (source.channels, source.height, source.width)
        of_channel, of_row, of_column = (
            np.where(some > 0, np.unravel_index(np.maximum(some - 1, 0), sizes)[axis], -1)
            for axis, some in enumerate(index.max(axes) for axes in ((1, 2), (0, 2), (0, 1)))
        )
        top, row_stride = _steps(of_row, source.height)
        left, column_stride = _steps(of_column, source.width)
        layer = Gather(
            place=self.ops[op].module,
            inputs=(source,),
            output=Map(channels, height, width),
            channels=tuple(of_channel.tolist()),
            stride=(row_stride, column_stride),
            padding=(top, left),
        )
        taken = layer.taken()
        padded = np.pad(numbers.reshape(sizes), (0, 1))  # index -1 is the padding: zeros
        if not np.array_equal(padded[np.ix_(*taken)], index):
            raise _Unsupported("its output is not rows and columns of its input at a fixed step")
        first = taken[0][0]
        every = (range(first, first + channels), range(source.height), range(source.width))
        if taken == tuple(map(list, every)):
            return Map(channels, height, width, (source, first))
        return self.add(layer, op)

    def alias(self, op: Op) -> Any:
        if op.kind == "dropout" and op.arg(2):
            raise _Unsupported("it drops values at random")
        return self.maps[op.inputs[0]]

    def input(self, op: Op) -> Map:
        _, channels, height, width = op.shape
        return Map(channels, height, width)


_SAME = frozenset({"dropout", "contiguous", "alias", "detach"})
_ALIASES = _SAME | {"flatten", "view", "reshape", "squeeze", "unsqueeze", "unflatten"}
_MOVES = (
    *("transpose", "swapaxes", "swapdims", "permute", "movedim", "moveaxis", "select", "narrow"),
    *("slice", "flip", "roll", "pad", "constant_pad_nd"),
    *("channel_shuffle", "native_channel_shuffle"),
)
_OPS: dict[str, Callable[[_Lowering, Op], Any]] = {
    "input": _Lowering.input,
    "conv2d": _Lowering.conv2d,
    "linear": _Lowering.linear,
    "batch_norm": _Lowering.batch_norm,
    "cat": _Lowering.cat,
    "concat": _Lowering.cat,
    "getitem": _Lowering.getitem,
    "max_pool2d": _Lowering.max_pool2d,
    **dict.fromkeys(("relu", "relu_", "relu6", "relu6_", "hardtanh", "hardtanh_"), _Lowering.clamp),
    **dict.fromkeys(("add", "add_"), _Lowering.sum),
    **dict.fromkeys(("mean", "avg_pool2d", "adaptive_avg_pool2d"), _Lowering.average),
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _Lowering.split),
    **dict.fromkeys(_SAME, _Lowering.alias),
    **dict.fromkeys((*_ALIASES - _SAME, *_MOVES), _Lowering.moved),
}


def _readers(ops: list[Op]) -> list[int]:
    """Count, for each op, how many ops read its values; an alias shares the count of what it
    aliases."""
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


def _steps(taken: NDArray[np.intp], size: int) -> Pair:
    """Return the padding and the stride of rows or columns `taken` (-1 for zeros) out of `size`."""
    known = np.flatnonzero(taken >= 0)
    if not len(known):
        return size, 1
    one, *others = known.tolist()
    stride = int(taken[others[0]] - taken[one]) if others else size
    return one * stride - int(taken[one]), max(1, stride)
