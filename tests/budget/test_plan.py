"""Tests of the memory plan against a slow check of every byte that layers read and write."""

import contextlib
import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.budget import memory_plan, plan
from sprat.budget.graph import trace
from sprat.budget.layers import Add, Conv, Gather, Layer, Lowered, Map, Windowed, lower
from sprat.budget.plan import MemoryPlan, gap, plan_memory
from sprat.errors import SpratError
from sprat.models import NETWORKS, NetworkConfig, build_network

UNSUPPORTED = {"Tiniest": r"layer_norm in stem\.1\.norm cannot be computed in integers"}


class _Moving(nn.Module):
    """Network that moves channels and pixels, some over their old places and some elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.middle = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        shuffled = F.channel_shuffle(self.stem(images), 2)
        shifted = F.pad(self.middle(shuffled), (0, 0, 1, 0))[:, :, :-1].relu()
        padded = F.pad(shuffled[:, :, ::2, ::2], (0, 0, 0, 0, 1, 3))
        return self.head((shifted[:, :, ::2, ::2] + padded).mean((2, 3)))


NARROW = [  # networks whose layers overlap in memory in every way
    NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,)),
    NetworkConfig(name="SpratT", depth=(1,)),
    NetworkConfig(name="OptimizedCIFAR10Net200K", widths=(4, 8), depth=(1,)),
    NetworkConfig(name="ResNet8"),
    _Moving,
]


def lowered_of(network: NetworkConfig | type[nn.Module], side: int) -> Lowered:
    if isinstance(network, type):
        return lower(trace(network(), side))
    return lower(trace(build_network(network, 10), side))


class _Arena:
    """Memory that records, for every byte, which value of which map was last written there."""

    def __init__(self, planned: MemoryPlan) -> None:
        self.planned = planned
        self.held = np.full(planned.arena, -1, dtype=np.int64)
        self.tag = {each.map: n << 32 for n, each in enumerate(planned.buffers)}

    def places(
        self, part: Map, pixels: list[int], channels: range
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the offsets of values, and the tags that must be there."""
        within = np.add.outer(
            np.array(pixels, dtype=np.intp) * part.buffer.channels, np.array(channels) + part.first
        ).ravel()
        return self.planned.offset(part.buffer) + within, self.tag[part.buffer] + within

    def read(self, part: Map, pixels: list[int], channels: range) -> None:
        offsets, tags = self.places(part, pixels, channels)
        assert (self.held[offsets] == tags).all()

    def write(self, part: Map, pixel: int, channels: range) -> None:
        offsets, tags = self.places(part, [pixel], channels)
        self.held[offsets] = tags


def _windows(layer: Layer) -> Iterator[tuple[int, list[int]]]:
    """Yield each pixel of the output, and the pixels that it is computed from."""
    source, output = layer.inputs[0], layer.output
    for row, column in itertools.product(range(output.height), range(output.width)):
        pixel = row * output.width + column
        if not isinstance(layer, Windowed):
            yield pixel, [pixel]
            continue
        rows, columns = (
            [
                at
                for k in range(layer.kernel[i])
                if 0
                <= (at := start * layer.stride[i] - layer.padding[i] + k * layer.dilation[i])
                < n
            ]
            for i, start, n in ((0, row, source.height), (1, column, source.width))
        )
        yield pixel, [r * source.width + c for r in rows for c in columns]


def _check_every_byte(lowered: Lowered, planned: MemoryPlan) -> None:
    arena = _Arena(planned)
    for layer in lowered.layers:
        by_channel = not isinstance(layer, Conv | Gather) or (
            isinstance(layer, Conv) and layer.groups == layer.output.channels
        )
        inputs = [part for part in layer.inputs if part.buffer is not lowered.image]
        channels = range(layer.output.channels)
        for pixel, window in _windows(layer):
            if by_channel and layer.inputs[0].channels == len(channels):
                for channel in channels:
                    for part in inputs:
                        arena.read(part, window, range(channel, channel + 1))
                    arena.write(layer.output, pixel, range(channel, channel + 1))
            else:
                arena.write(layer.output, pixel, channels[:-1])
                for part in inputs:  # the last value is computed after the others were written
                    arena.read(part, window, range(part.channels))
                arena.write(layer.output, pixel, channels[-1:])
    arena.read(lowered.output, [0], range(lowered.output.channels))


class TestPlan:
    @pytest.mark.parametrize("network", NARROW, ids=str)
    def test_no_value_is_overwritten_before_its_last_reader(
        self, network: NetworkConfig | type[nn.Module]
    ) -> None:
        lowered = lowered_of(network, 16)
        _check_every_byte(lowered, plan_memory(lowered))

    def test_smaller_gap_would_overwrite_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(plan, "gap", lambda layer: max(0, gap(layer) - 1))
        for network in NARROW:
            lowered = lowered_of(network, 16)
            with pytest.raises(AssertionError):
                _check_every_byte(lowered, plan_memory(lowered))

    def test_arena_stays_within_executorchs_plan_and_goals(self) -> None:
        most = {"ResNet8": 49_728, "OptimizedCIFAR10Net200K": 61_440, "SpratS": 114_688}
        for name, limit in (most | {"SpratT": 49_152}).items():
            planned = memory_plan(build_network(NetworkConfig(name=name), 10), 32)
            assert planned.arena <= limit, name
            assert planned.image == 3_072

    def test_names_the_layer_that_needs_most(self) -> None:
        planned = plan_memory(lowered_of(NetworkConfig(name="SpratS"), 32))
        assert planned.layer == "stages.0.0.widen"
        # the block's input, kept for the sum, and the wide map, which overwrites the layer's input
        assert planned.arena >= (28 + 42) * 32 * 32


class _Net(nn.Module):
    """Network that concatenates two convolutions of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([self.one(images), self.two(images)], 1)
        return self.head(both.mean((2, 3)))


class TestLowering:
    def test_concatenation_needs_no_layer(self) -> None:
        lowered = lower(trace(_Net(), 8))
        one, two, *rest = lowered.layers
        assert one.output.buffer is two.output.buffer is rest[0].inputs[0]
        assert (one.output.first, two.output.first) == (0, 4)
        assert len(rest) == 2

    @pytest.mark.parametrize("name", NETWORKS)
    def test_layers_without_integer_form_are_refused_by_name(self, name: str) -> None:
        refused = pytest.raises(SpratError, match=UNSUPPORTED.get(name))
        with refused if name in UNSUPPORTED else contextlib.nullcontext():
            lowered_of(NetworkConfig(name=name), 16)

    def test_a_sum_and_its_activation_are_one_layer(self) -> None:
        lowered = lowered_of(NetworkConfig(name="ResNet8"), 16)
        sums = [layer for layer in lowered.layers if isinstance(layer, Add)]
        assert [layer.low for layer in sums] == [0, 0, 0]
        assert len(lowered.layers) == 1 + 3 * 3 + 2 + 2

    def test_weights_are_counted_as_they_are_stored(self) -> None:
        lowered = lower(trace(_Net(), 8))
        assert lowered.weight_bytes == 2 * (4 * 3 * 9 + 9 * 4) + 5 * 8 + 9 * 5
