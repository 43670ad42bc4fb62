"""Places of a network's maps in one piece of memory, the arena: a byte a value, channels of a
pixel side by side (height x width x channels).

    plan = plan_memory(lower(trace(network, side)))

A buffer has its place from the layer that first writes it to the layer that last reads it. A layer
may write over its input as it goes, as far behind its reading as it needs (diagonal memory
optimisation, Blacker et al. 2020, arXiv 2010.01668): it makes its pixels row by row, so the memory
before the first row that is still read is free.
"""

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from sprat.budget.graph import trace
from sprat.budget.layers import Conv, Gather, Layer, Lowered, Map, Windowed, lower

TRIALS = 200  # orders of placing that are tried where the first ones leave a gap


@dataclass(frozen=True)
class Buffer:
    """A map with memory of its own. born, dies: the first layer that writes it and the last that
    needs it, by their numbers; the network's result is needed after the last layer."""

    map: Map
    born: int
    dies: int


@dataclass(frozen=True)
class MemoryPlan:
    """The arena's bytes and each buffer's offset in it. The image is not in it.

    layer: place of the layer that needs most. image: bytes of the image, wherever its caller has
    it. weights: bytes of the constants (see `Lowered.weight_bytes`).
    """

    arena: int
    layer: str
    image: int
    weights: int
    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]

    @functools.cached_property
    def places(self) -> dict[Map, int]:
        """Offset of each buffer's map."""
        return {
            buffer.map: offset for buffer, offset in zip(self.buffers, self.offsets, strict=True)
        }

    def offset(self, part: Map) -> int:
        """Return where the first value of a map is."""
        return self.places[part.buffer] + part.first


def memory_plan(network: nn.Module, side: int) -> MemoryPlan:
    """Return the plan of a network for images of that side.

    Raises:
        SpratError: the network cannot be traced, or has layers that cannot be computed in integers.
    """
    return plan_memory(lower(trace(network, side)))


def plan_memory(lowered: Lowered) -> MemoryPlan:
    """Return the plan of a network's layers: the smallest of several orders of placing."""
    buffers = find_buffers(lowered)
    gaps = _gaps(lowered, buffers)
    needs = [_need(lowered, buffers, gaps, number) for number in range(len(lowered.layers))]
    least = max(needs)
    best: tuple[int, tuple[int, ...]] | None = None
    for order in _orders(buffers):
        offsets = _place(buffers, gaps, order)
        arena = max(at + b.map.size for at, b in zip(offsets, buffers, strict=True))
        if best is None or arena < best[0]:
            best = arena, offsets
        if best[0] <= least:
            break
    assert best is not None
    return MemoryPlan(
        arena=best[0],
        layer=lowered.layers[needs.index(least)].place,
        image=lowered.image.size,
        weights=lowered.weight_bytes,
        buffers=buffers,
        offsets=best[1],
    )


def find_buffers(lowered: Lowered) -> tuple[Buffer, ...]:
    """Return the buffers of the arena in the order they are first written."""
    born: dict[Map, int] = {}
    dies: dict[Map, int] = {}
    for number, layer in enumerate(lowered.layers):
        born.setdefault(layer.output.buffer, number)
        for part in (*layer.inputs, layer.output):
            dies[part.buffer] = number
    dies[lowered.output.buffer] = len(lowered.layers)
    return tuple(Buffer(each, born[each], dies[each]) for each in born)


def gap(layer: Layer) -> int:
    """Return the least number of bytes by which a layer's output must begin before an input that it
    writes over.

    Pixels are made row by row; what a pixel's windows begin with is the first value that it and
    every later pixel read. A convolution or a gather reads all of a window before each value that
    it writes, a depthwise one, a sum and pooling only that value's channel.
    """
    if not isinstance(layer, Windowed):
        return 0
    (source,) = layer.inputs
    if isinstance(layer, Conv):
        by_channel = layer.groups == source.channels == layer.output.channels
    else:
        by_channel = not isinstance(layer, Gather)
    tops, lefts = (
        np.maximum(0, np.arange(count) * stride - padding)
        for count, stride, padding in zip(
            (layer.output.height, layer.output.width), layer.stride, layer.padding, strict=True
        )
    )
    reads = (tops[:, None] * source.width + lefts).ravel()  # the first pixel of each window
    first = np.minimum.accumulate(reads[::-1])[::-1]
    pixel = np.arange(len(first))
    if by_channel:
        return int(max(0, ((pixel - first) * source.channels).max()))
    written = (pixel + 1) * layer.output.channels - 1  # before all of the window was read
    return int(max(0, (written - first * source.channels).max()))


Gaps = dict[tuple[int, int], int]  # (output, input), by number: the gap between them


def _gaps(lowered: Lowered, buffers: Sequence[Buffer]) -> Gaps:
    """Find what may be written over: a whole buffer that dies where another whole one is born."""
    number_of = {buffer.map: number for number, buffer in enumerate(buffers)}
    gaps = {}
    for number, layer in enumerate(lowered.layers):
        output = layer.output
        for part in layer.inputs:
            if output.within or part.within or part is lowered.image:
                continue
            if buffers[number_of[part]].dies == number == buffers[number_of[output]].born:
                gaps[number_of[output], number_of[part]] = gap(layer)
    return gaps


def _need(lowered: Lowered, buffers: Sequence[Buffer], gaps: Gaps, number: int) -> int:
    """Return what a layer needs at least: all that is live, its output over one of its inputs."""
    live = {i for i, each in enumerate(buffers) if each.born <= number <= each.dies}
    size = {i: buffers[i].map.size for i in live}
    saved = [
        size[out] + size[into] - max(size[out], distance + size[into])
        for (out, into), distance in gaps.items()
        if out in live and into in live
    ]
    return sum(size.values()) - max((*saved, 0))


def _orders(buffers: Sequence[Buffer]) -> Iterable[list[int]]:
    """Orders of placing: by size, by time, by both; then variations of them."""
    numbers = list(range(len(buffers)))
    size = [buffer.map.size for buffer in buffers]
    span = [buffer.dies - buffer.born for buffer in buffers]
    first = [
        sorted(numbers, key=lambda i: -size[i]),
        sorted(numbers, key=lambda i: (-span[i] * size[i], -size[i])),
        sorted(numbers, key=lambda i: -span[i]),
        numbers,
        numbers[::-1],
    ]
    yield from first
    generator = random.Random(0)
    for trial in range(TRIALS):
        order = list(first[trial % len(first)])
        for _ in range(1 + trial % 4):
            order.insert(
                generator.randrange(len(order)), order.pop(generator.randrange(len(order)))
            )
        yield order


def _place(buffers: Sequence[Buffer], gaps: Gaps, order: Sequence[int]) -> tuple[int, ...]:
    """Return each buffer's offset, the lowest that is free when its turn comes."""
    offsets: dict[int, int] = {}
    for i in order:
        one, taken = buffers[i], []  # offsets strictly between two bounds are not free
        for j, at in offsets.items():
            other = buffers[j]
            if one.born > other.dies or other.born > one.dies:
                continue
            low, high = at - one.map.size, at + other.map.size
            if (i, j) in gaps:
                low = max(low, at - gaps[i, j])
            elif (j, i) in gaps:
                high = min(high, at + gaps[j, i])
            taken.append((low, high))
        offset = 0
        for low, high in sorted(taken):
            if low < offset < high:
                offset = high
        offsets[i] = offset
    return tuple(offsets[i] for i in range(len(buffers)))
