"""Training step on an NVIDIA GPU: the steps of `wiring.py` as launches of `triton.py`'s kernels.

Nothing synchronises with the device, so a step can be captured as a CUDA graph.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.kernels import wiring
from sprat.kernels.cuda import triton as k
from sprat.kernels.wiring import FlatGradient, Plan, Trunk

ROW_BLOCK = 1024  # values of a row or a channel per program
PIXEL_BLOCK = 64  # columns of a matrix product per program
PROGRAMS = 1024  # at most, for a matrix product; several per multiprocessor
WEIGHT_SPLITS = 512  # of the sum of a pointwise gradient, over all its blocks
WINDOW_SPLITS = 16  # of the sum of a window's gradient
WINDOWS = 4  # per launch
MAX_BLOCK = 128  # channels per program of a product; half of it if there are more


def _up(n: int, least: int = 16) -> int:
    """Return the next power of two."""
    return max(least, 1 << (n - 1).bit_length())


def _channels(n: int) -> int:
    """Return the number of channels that one program of a matrix product computes."""
    return _up(n) if n <= MAX_BLOCK else MAX_BLOCK // 2


def _depth(name: str, channels: int) -> dict[str, int | bool]:
    """Return how many channels a product sums over at once: all, or a part if there are many."""
    whole = channels <= MAX_BLOCK
    return {name: _up(channels) if whole else MAX_BLOCK // 4, "whole": whole}


@dataclass
class _Norm:
    """BatchNorm of one convolution's output."""

    bn: Any
    statistics: Tensor
    """4 x channels: scale, shift, mean, 1 / deviation, of this batch."""
    dz: Tensor
    """3 x channels: dz = dz[0] g + dz[1] z + dz[2]."""
    d_weight: Tensor
    d_bias: Tensor
    frozen: bool = False
    """Normalise with the running statistics at the time of creation."""

    def __post_init__(self) -> None:
        if self.frozen:
            scale = self.bn.weight * (self.bn.running_var + self.bn.eps).rsqrt()
            self.statistics[0] = scale
            self.statistics[1] = self.bn.bias - self.bn.running_mean * scale

    @property
    def channels(self) -> int:
        return len(self.d_bias)

    def forward(self, sums: Tensor, count: int) -> None:
        if self.frozen:
            return
        bn, programs = self.bn, sums.shape[-1]
        k.batchnorm_forward[(self.channels,)](
            sums, bn.weight, bn.bias, bn.running_mean, bn.running_var, self.statistics,
            self.channels, programs, float(count), bn.momentum, bn.eps, block=_up(programs),
        )  # fmt: skip

    def backward(self, sums: Tensor, row: int, count: int) -> None:
        programs = sums.shape[-1]
        k.batchnorm_backward[(self.channels,)](
            sums, row, self.bn.weight, self.statistics, self.dz, self.d_weight, self.d_bias,
            self.channels, programs, float(count), block=_up(programs),
        )  # fmt: skip


@dataclass
class _Map:
    """The output of a convolution (which has a norm) or of a join."""

    values: Tensor
    """channels x height x width x images."""
    norm: _Norm | None = None
    g: Tensor | None = None
    """Gradient at the norm's output."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        channels, height, width, images = self.values.shape
        return channels, height, width, images

    @property
    def pixels(self) -> int:
        """Number of pixels of all images."""
        return self.values[0].numel()

    @property
    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Scale and shift of the norm; without one, placeholder pointers."""
        if self.norm is None:
            return self.values, self.values
        return self.norm.statistics[0], self.norm.statistics[1]


def _add_up(sums: Tensor, maps: tuple[_Map, ...]) -> None:
    """Pass the sums of g and, for each of one or two maps z, of g z, to the maps' norms."""
    for row, z in enumerate(maps, 1):
        assert z.norm is not None
        z.norm.backward(sums, row, z.pixels)


@dataclass
class _Join:
    """out = relu(bn(z) + rest)."""

    z: _Map
    rest: _Map | None
    out: _Map

    def forward(self) -> None:
        assert self.z.norm is not None
        rest, norm = self.rest or self.z, (self.rest or self.z).norm
        block = min(ROW_BLOCK, _up(self.z.pixels))
        grid = self.z.shape[0], -(-self.z.pixels // block)
        k.join_forward[grid](
            self.z.values, self.z.norm.statistics, rest.values,
            norm.statistics if norm else self.z.norm.statistics, self.out.values, self.z.shape[0],
            self.z.pixels, joined=self.rest is not None, normed=norm is not None, block=block,
        )  # fmt: skip

    def backward(self, d_pooled: Tensor) -> None:
        """Start from `d_pooled`, the gradient at the mean over the pixels, channels x images."""
        channels, height, width, images = self.z.shape
        rest = self.rest if self.rest and self.rest.norm else None
        block = min(ROW_BLOCK, _up(self.z.pixels))
        programs = -(-self.z.pixels // block)
        sums = d_pooled.new_empty(3, channels, programs)
        k.join_backward[(channels, programs)](
            d_pooled, self.out.values, self.z.values, (rest or self.z).values, self.z.g, sums,
            channels, self.z.pixels, height * width, images=images, normed=rest is not None,
            block=block,
        )  # fmt: skip
        _add_up(sums, (self.z, rest) if rest else (self.z,))


@dataclass
class _Parts:
    """Memory for partial sums of the gradients of weights."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Number of partial sums of each weight, and of values in each."""
    values: Tensor | None = None

    def add(self, parts: int, size: int) -> int:
        self.sizes.append((parts, size))
        return len(self.sizes) - 1

    def allocate(self, device: torch.device) -> None:
        """Allocate the memory, once all weights have been added."""
        places = [parts * size for parts, size in self.sizes]
        self.values = torch.zeros(sum(places), device=device)
        self.of = self.values.split(places)
        offsets, strides, counts, first = [], [], [], 0
        for parts, size in self.sizes:
            offsets.append(first + torch.arange(size))
            strides.append(torch.full((size,), size))
            counts.append(torch.full((size,), parts))
            first += parts * size
        self.table = [torch.cat(rows).int().to(device) for rows in (offsets, strides, counts)]

    def add_up(self, out: Tensor) -> None:
        length = sum(size for _, size in self.sizes)
        k.add_parts[(-(-length // 32),)](
            self.values, *self.table, out, length, block_parts=32, block=32
        )


class _Conv:
    """Windows, then a 1x1 convolution, from one map to another.

    Args:
        windows: kernel and weight for each equal share of the channels; kernel 1 leaves it
            unchanged.
        pointwise: weight of the 1x1 convolution.
        needs_input_gradient: false for the stem.
    """

    def __init__(
        self, u: _Map, z: _Map, windows: list[tuple[int, Tensor | None]], stride: int,
        pointwise: Tensor, parts: _Parts, *, needs_input_gradient: bool = True,
    ) -> None:  # fmt: skip
        self.u, self.z, self.windows, self.stride, self.pointwise = u, z, windows, stride, pointwise
        self.parts, self.needs_input_gradient = parts, needs_input_gradient
        images = z.shape[3]
        # only the windows' backward pass can compute the gradient of a join's output
        self.spatial = needs_input_gradient and (
            u.norm is None or stride > 1 or any(kernel > 1 for kernel, _ in windows)
        )
        self.v = u.values
        if self.spatial:
            self.v = u.values.new_empty(u.shape[0], z.shape[1], z.shape[2], images)
        self.d = torch.empty_like(self.v) if self.spatial else None
        dtype = u.values.dtype
        self.precision = "ieee" if dtype == torch.float32 else "tf32"
        self.out, self.in_ = z.shape[0], pointwise.numel() // z.shape[0]
        self.blocks = min(MAX_BLOCK // 2, _up(self.out)), min(MAX_BLOCK // 2, _up(self.in_))
        blocks = -(-self.out // self.blocks[0]) * -(-self.in_ // self.blocks[1])
        self.splits = min(-(-z.pixels // PIXEL_BLOCK), max(32, WEIGHT_SPLITS // blocks))
        self.pointwise_part = parts.add(self.splits, pointwise.numel())
        self.window_parts = [
            None if weight is None else parts.add(WINDOW_SPLITS, weight.numel())
            for _, weight in windows
        ]

    def _products(self, channels: int) -> tuple[int, int]:
        """Return the grid of a product whose programs accumulate sums as they go."""
        programs = min(-(-self.z.pixels // PIXEL_BLOCK), PROGRAMS)
        return programs, -(-channels // _channels(channels))

    def _launches(self) -> Iterator[tuple[slice, list[Tensor], dict[str, int]]]:
        """Yield channels, weights and kernels of the windows of each launch. Shares without weights
        get a placeholder pointer."""
        share = self.u.shape[0] // len(self.windows)
        for first in range(0, len(self.windows), WINDOWS):
            windows = self.windows[first : first + WINDOWS]
            mine = slice(first * share, (first + len(windows)) * share)
            windows += windows[-1:] * (WINDOWS - len(windows))
            weights = [self.v if weight is None else weight for _, weight in windows]
            yield mine, weights, {f"k{i}": kernel for i, (kernel, _) in enumerate(windows)}

    def forward(self) -> None:
        channels, height, width, images = self.u.shape
        scale, shift = self.u.scale_and_shift
        normed = self.u.norm is not None
        if self.spatial:
            out_height, out_width = self.v.shape[1:3]
            block = min(ROW_BLOCK, _up(out_width * images))
            share = channels // len(self.windows)
            for mine, weights, kernels in self._launches():
                grid = mine.stop - mine.start, out_height, -(-out_width * images // block)
                k.depthwise_forward[grid](
                    self.u.values[mine], scale[mine], shift[mine], *weights, self.v[mine], height,
                    width, out_height, out_width, share, images=images, **kernels,
                    stride=self.stride, normed=normed, block=block,
                )  # fmt: skip
        programs = self._products(self.out)
        sums = scale.new_empty(2, self.out, programs[0], dtype=torch.float32)
        block_out = _channels(self.out)
        k.pointwise_forward[programs](
            self.v, scale, shift, self.pointwise, self.z.values, sums, self.z.pixels, self.in_,
            self.out, normed=normed and not self.spatial, precision=self.precision,
            **_depth("block_in", self.in_), block_out=block_out, block=PIXEL_BLOCK,
            num_warps=4 if block_out <= 64 else 8,
        )  # fmt: skip
        assert self.z.norm is not None
        self.z.norm.forward(sums, self.z.pixels)

    def backward(
        self, sums: tuple[_Map, ...] = (), add: Tensor | None = None, add_stride: int = 1
    ) -> None:
        """Turn the gradient at the output of z's norm into that of the weights and of the norms of
        `sums`.

        Args:
            sums: maps to which the gradient at u before its ReLU belongs: u itself, the terms of
                the join that is u, or none for a shortcut.
            add: another gradient at every add_stride-th pixel of u.
        """
        z, u, norm = self.z, self.u, self.z.norm
        assert norm is not None
        scale, shift = u.scale_and_shift
        normed = u.norm is not None and not self.spatial
        block_out, block_in = self.blocks
        k.pointwise_backward_weight[
            (self.splits, -(-self.out // block_out), -(-self.in_ // block_in))
        ](
            z.g, z.values, norm.dz, self.v, scale, shift, self.parts.of[self.pointwise_part],
            z.pixels, self.in_, self.out, normed=normed, precision=self.precision,
            block_out=block_out, block_in=block_in, block=PIXEL_BLOCK,
        )  # fmt: skip
        if not self.needs_input_gradient:
            return
        grid, block_in = self._products(self.in_), _channels(self.in_)
        products = scale.new_empty(2, self.in_, grid[0], dtype=torch.float32)
        d = u.g if normed else self.d
        k.pointwise_backward_input[grid](
            z.g, z.values, norm.dz, self.pointwise, d, u.values, scale, shift, products, z.pixels,
            self.in_, self.out, normed=normed, precision=self.precision,
            **_depth("block_out", self.out), block_in=block_in, block=PIXEL_BLOCK,
            num_warps=4 if block_in <= 64 else 8,
        )  # fmt: skip
        if normed:
            _add_up(products, sums)
        elif self.spatial:
            self._backward_windows(sums, add, add_stride)

    def _backward_windows(
        self, maps: tuple[_Map, ...], add: Tensor | None, add_stride: int
    ) -> None:
        channels, height, width, images = self.u.shape
        assert self.d is not None
        out_height, out_width = self.d.shape[1:3]
        scale, shift = self.u.scale_and_shift
        normed = self.u.norm is not None
        share = channels // len(self.windows)
        for i, (kernel, weight) in enumerate(self.windows):
            part = self.window_parts[i]
            if weight is None or part is None:
                continue
            columns = _up(kernel, 4)
            mine = slice(i * share, (i + 1) * share)
            k.depthwise_backward_weight[(share, kernel, WINDOW_SPLITS)](
                self.d[mine], self.u.values[mine], scale[mine], shift[mine], self.parts.of[part],
                height, width, out_height, out_width, share, images=images, kernel=kernel,
                columns=columns, stride=self.stride, normed=normed, splits=WINDOW_SPLITS,
                block=min(2048 // columns, _up(out_width * images)),
            )  # fmt: skip
        if not maps:  # a shortcut: the block's first convolution adds self.d
            return
        z0, z1 = maps[0], maps[1] if len(maps) > 1 else None
        assert z0.g is not None
        block = min(ROW_BLOCK, _up(width * images))
        blocks = -(-width * images // block)
        sums = scale.new_empty(3, channels, height * blocks, dtype=torch.float32)
        for mine, weights, kernels in self._launches():
            k.depthwise_backward_input[(mine.stop - mine.start, height, blocks)](
                self.d[mine], *weights, self.u.values[mine], scale[mine], shift[mine],
                (self.d if add is None else add)[mine], z0.values[mine], (z1 or z0).values[mine],
                z0.g[mine], sums[:, mine], height, width, out_height, out_width, share, channels,
                images=images, **kernels, stride=self.stride, normed=normed,
                added=add is not None, add_stride=add_stride, second=z1 is not None, block=block,
            )  # fmt: skip
        _add_up(sums, maps)


class GPUTrunk(Trunk):
    """The kernels for an NVIDIA GPU.

    Args:
        network: the weights of its convolutions and its BatchNorms are used and updated in place.
        dtype: dtype of the maps, bfloat16 or float32. Weights, sums and weight gradients are always
            fp32; products of bf16 maps round weights to bf16.
        frozen: for evaluation: BatchNorm uses the current running statistics, and there is no
            gradient.

    Raises:
        NoKernels: the kernels do not support the network.
    """

    def __init__(
        self, network: nn.Module, dtype: torch.dtype = torch.bfloat16, *, frozen: bool = False
    ) -> None:
        super().__init__(network)
        self.dtype, self.frozen = dtype, frozen
        self.plans: dict[torch.Size, _GPUPlan] = {}

    def __call__(self, images: Tensor) -> Tensor:
        if self.frozen:
            with torch.no_grad():
                return self.planned(images).forward(images)
        return super().__call__(images)

    def planned(self, images: Tensor) -> "_GPUPlan":
        if images.shape not in self.plans:
            self.plans[images.shape] = _GPUPlan(self, images.shape)
        return self.plans[images.shape]


class _GPUPlan(Plan):
    def __init__(self, trunk: GPUTrunk, shape: torch.Size) -> None:
        super().__init__(trunk, shape)
        stem = self.wiring.stem
        self.dtype, self.device = trunk.dtype, stem.pointwise.weight.device
        self.frozen = trunk.frozen
        self.parts = _Parts()
        # weights of a convolution in the order of their partial sums, added up together at the end
        weights = [
            part.weight
            for conv in self.wiring.convs
            for part in (conv.pointwise, *conv.windows)
            if isinstance(part, nn.Conv2d)
        ]
        norms = [p for p in trunk.parameters if p.ndim == 1]
        self.gradient = FlatGradient([*weights, *norms], self.device)
        self.weights_gradient = self.gradient.flat[: sum(w.numel() for w in weights)]

        # the stem: all 3 x 3 neighbours of each channel side by side, then a product
        inputs = stem.u.channels
        unfolded = _Map(self._empty(9 * inputs, stem.z.height, stem.z.width))
        self.unfolded = unfolded.values.unflatten(0, (3, 3, inputs))  # ky, kx, channel
        self.stem_weight = torch.zeros(stem.z.channels, 3, 3, inputs, device=self.device)
        self.maps = {stem.u: unfolded}
        self.steps: dict[wiring.Conv | wiring.Join, Any] = {}
        for step in self.wiring.forward:
            make = self._join if isinstance(step, wiring.Join) else self._conv
            self.steps[step] = make(step)  # type: ignore[arg-type]
        self.parts.allocate(self.device)

    def _empty(self, channels: int, height: int, width: int) -> Tensor:
        return torch.zeros(
            channels, height, width, self.batch, dtype=self.dtype, device=self.device
        )

    def _map(self, map_: wiring.Map) -> _Map:
        if map_ not in self.maps:
            values, bn = self._empty(map_.channels, map_.height, map_.width), map_.norm
            if bn is None:
                self.maps[map_] = _Map(values)
            else:
                statistics = torch.zeros(7, map_.channels, device=self.device)
                gradients = self.gradient[bn.weight], self.gradient[bn.bias]
                norm = _Norm(bn, statistics[:4], statistics[4:], *gradients, self.frozen)
                self.maps[map_] = _Map(values, norm, torch.zeros_like(values))
        return self.maps[map_]

    def _join(self, join: wiring.Join) -> _Join:
        z, rest = self._map(join.z), self._map(join.rest) if join.rest else None
        if rest is not None and rest.norm is not None:
            rest.g = z.g  # the gradient of a sum is that of each term
        return _Join(z, rest, self._map(join.out))

    def _conv(self, conv: wiring.Conv) -> _Conv:
        is_stem = conv is self.wiring.stem
        windows: list[tuple[int, Tensor | None]] = [
            (part.kernel_size[0], part.weight) if isinstance(part, nn.Conv2d) else (1, None)
            for part in conv.windows or (nn.Identity(),)
        ]
        pointwise = self.stem_weight if is_stem else conv.pointwise.weight
        return _Conv(
            self._map(conv.u), self._map(conv.z), windows, conv.stride, pointwise, self.parts,
            needs_input_gradient=not is_stem,
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        self.stem_weight.copy_(self.wiring.stem.pointwise.weight.permute(0, 2, 3, 1))
        padded = F.pad(images.permute(1, 2, 3, 0), (0, 0, 1, 1, 1, 1))  # C, H + 2, W + 2, B
        (height, width), stride = images.shape[2:], self.wiring.stem.stride
        for ky in range(3):
            for kx in range(3):
                rows, columns = slice(ky, ky + height, stride), slice(kx, kx + width, stride)
                self.unfolded[ky, kx].copy_(padded[:, rows, columns])
        for step in self.steps.values():
            step.forward()
        out = self.maps[self.wiring.last.out].values
        return out.mean(dim=(1, 2), dtype=torch.float32).T

    def backward(self, d_pooled: Tensor) -> dict[Tensor, Tensor]:
        self.steps[self.wiring.last].backward(d_pooled.float().T.contiguous())
        for conv in self.wiring.backward:
            add, stride = None, 1
            if isinstance(conv.add, wiring.Conv):
                add, stride = self.steps[conv.add].d, conv.add.stride
            elif conv.add is not None:
                add = self.maps[conv.add.z].g
            self.steps[conv].backward(tuple(self.maps[m] for m in conv.sums), add, stride)
        self.parts.add_up(self.weights_gradient)
        found = self.gradient.copies()
        stem = self.wiring.stem.pointwise.weight
        found[stem] = found[stem].view(len(stem), 3, 3, -1).permute(0, 3, 1, 2)  # memory layout
        return found
