"""Memory plan: where a network's maps are in one block of memory, the arena. Values take one byte
each, and the channels of a pixel are adjacent (height x width x channels).

    plan = plan_memory(lower(trace(network, side)))

A buffer occupies its place from the layer that first writes it to the layer that last reads it. A
layer may overwrite its input as it goes, as far behind its reading position as necessary (diagonal
memory optimisation, Blacker et al. 2020, arXiv 2010.01668): it computes pixels row by row, so the
memory before the first row that is still needed is free.
"""

import functools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import nn

from sprat.budget.graph import trace
from sprat.budget.layers import Conv, Gather, Layer, Lowered, Map, Windowed, lower

TRIALS = 200  # orders of placement to try if the first ones are not optimal


@dataclass(frozen=True)
class Buffer:
    """A map with its own memory. born, dies: indices of the first layer that writes it and the last
    that needs it; the network's result is needed after the last layer."""

    map: Map
    born: int
    dies: int


@dataclass(frozen=True)
class MemoryPlan:
    """Size of the arena in bytes, and the offset of each buffer in it. The image is not in it.

    layer: place of the layer that needs most. image: bytes of the image, which its caller keeps.
    weights: bytes of the constants (see `Lowered.weight_bytes`).
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
        """Return the offset of the first value of a map."""
        return self.places[part.buffer] + part.first


def memory_plan(network: nn.Module, side: int) -> MemoryPlan:
    """Return the memory plan of a network for images of that side.

    Raises:
        SpratError: the network cannot be traced, or has layers that cannot be computed in integers.
    """
    return plan_memory(lower(trace(network, side)))


def plan_memory(lowered: Lowered) -> MemoryPlan:
    """Return the plan of a network's layers: the smallest over several orders of placement."""
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
    """Return the buffers of the arena in the order in which they are first written."""
    born: dict[Map, int] = {}
    dies: dict[Map, int] = {}
    for number, layer in enumerate(lowered.layers):
        born.setdefault(layer.output.buffer, number)
        for part in (*layer.inputs, layer.output):
            dies[part.buffer] = number
    dies[lowered.output.buffer] = len(lowered.layers)
    return tuple(Buffer(each, born[each], dies[each]) for each in born)


def gap(layer: Layer) -> int:
    """Return the least number of bytes by which a layer's output must start before an input that it
    overwrites.

    Pixels are computed row by row; a pixel and all later ones read nothing before the first pixel
    of its window. A convolution or a gather reads the whole window before each value it writes; a
    depthwise convolution, a sum or pooling reads only that value's channel.
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
    written = (pixel + 1) * layer.output.channels - 1  # before the whole window is read
    return int(max(0, (written - first * source.channels).max()))


Gaps = dict[tuple[int, int], int]  # gap by (index of the output, index of the input)


def _gaps(lowered: Lowered, buffers: Sequence[Buffer]) -> Gaps:
    """Find what may be overwritten: a whole buffer that dies where another whole one is born."""
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
    """Return the least memory a layer needs: all live buffers, with the output over an input."""
    live = {i for i, each in enumerate(buffers) if each.born <= number <= each.dies}
    size = {i: buffers[i].map.size for i in live}
    saved = [
        size[out] + size[into] - max(size[out], distance + size[into])
        for (out, into), distance in gaps.items()
        if out in live and into in live
    ]
    return sum(size.values()) - max((*saved, 0))


def _orders(buffers: Sequence[Buffer]) -> Iterable[list[int]]:
    """Yield orders of placement: by size, by time, by both; then random variations of them."""
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
    """Return the offset of each buffer: the lowest that is free when its turn comes."""
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
