"""Training step on a CPU: the steps of `wiring.py` as calls of functions in `trunk.c`.

About three times as fast as PyTorch; `trunk.c` explains how.
"""

import ctypes
import mmap
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.kernels.cpu.build import load_trunk
from sprat.kernels.cpu.memory import fewest_buffers
from sprat.kernels.support import LANES
from sprat.kernels.wiring import Conv, FlatGradient, Join, Map, Plan, Trunk

UNFOLD, DEPTHWISE, SUBSAMPLE = range(3)
ALIGNMENT = 4096  # bytes
EVALUATED = 64  # images per evaluation batch
CHUNK = 32 << 20  # bytes requested from the system at a time

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64
_Float = ctypes.c_float


class _BatchNorm(ctypes.Structure):
    _fields_ = (
        ("channels", _Int),
        ("frozen", _Int),
        ("eps", _Float),
        ("momentum", _Float),
        *((name, _Pointer) for name in ("gamma", "beta", "running_mean", "running_var")),
        *((name, _Pointer) for name in ("mean", "invstd", "scale", "shift")),
        *((name, _Pointer) for name in ("d_gamma", "d_beta", "dz_g", "dz_z", "dz_1")),
    )


class _Window(ctypes.Structure):
    _fields_ = (("kernel", _Int), ("weight", _Pointer), ("d_weight", _Pointer))


class _Conv(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("kind", "in_channels", "out_channels", "kernel", "stride")),
        *((name, _Int) for name in ("in_h", "in_w", "out_h", "out_w")),
        ("in_", _Pointer),
        ("in_bn", ctypes.POINTER(_BatchNorm)),
        ("windows", ctypes.POINTER(_Window)),
        ("pointwise", _Pointer),
        ("z", _Pointer),
        ("bn", ctypes.POINTER(_BatchNorm)),
        *((name, _Pointer) for name in ("g", "d_pointwise", "g_in", "add")),
        ("add_stride", _Int),
        ("sum_bn", ctypes.POINTER(_BatchNorm) * 2),
        ("sum_z", _Pointer * 2),
    )


class _Join(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("channels", "h", "w")),
        ("z", _Pointer),
        ("bn", ctypes.POINTER(_BatchNorm)),
        ("rest", _Pointer),
        ("rest_bn", ctypes.POINTER(_BatchNorm)),
        *((name, _Pointer) for name in ("out", "pooled", "d_pooled", "g")),
    )


class CPUTrunk(Trunk):
    """The CPU kernels.

    Args:
        network: the weights of its convolutions and its BatchNorms are used and updated in place.
        bf16: keep maps in bf16 instead of fp32; weights, sums and weight gradients are always fp32.
        threads: number of CPU threads, which does not change a bit of the result.

    Raises:
        NoKernels: the kernels cannot be built here, or do not support the network.
    """

    def __init__(self, network: nn.Module, *, bf16: bool, threads: int) -> None:
        super().__init__(network)
        self.library = load_trunk(bf16)
        self.bf16, self.threads = bf16, threads
        self.plan: _CPUPlan | None = None

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """Return the pooled features of any number of images, with the running statistics."""
        parts = []
        for part in images.split(EVALUATED):
            full = F.pad(part, (0, 0, 0, 0, 0, 0, 0, -len(part) % LANES))
            parts.append(self.planned(full).evaluate(full)[: len(part)])
        return torch.cat(parts)

    def planned(self, images: Tensor) -> "_CPUPlan":
        """Return the plan for images of this shape and the parameters' current addresses."""
        places = tuple(tensor.data_ptr() for tensor in self.parameters)
        key = (*images.shape, *places)
        if self.plan is None or self.plan.key != key:
            self.plan = None  # free its memory first
            self.plan = _CPUPlan(self, images.shape, key)
        return self.plan


class _Memory:
    """Zeroed memory in huge pages, valid as long as this object."""

    def __init__(self) -> None:
        self.chunks: list[mmap.mmap] = []
        self.next, self.left = 0, 0

    def take(self, size: int) -> int:
        """Return the address of `size` bytes."""
        size = -(-size // ALIGNMENT) * ALIGNMENT
        if size > self.left:
            chunk = mmap.mmap(-1, max(size, CHUNK))
            if hasattr(mmap, "MADV_HUGEPAGE"):
                chunk.madvise(mmap.MADV_HUGEPAGE)
            self.chunks.append(chunk)
            self.next = ctypes.addressof(ctypes.c_char.from_buffer(chunk))
            self.left = len(chunk)
        address = self.next
        self.next, self.left = self.next + size, self.left - size
        return address


@dataclass
class _Padded:
    """A convolution whose weights the kernels read from a copy, with inputs last and zeros added
    where the number of inputs or outputs is odd."""

    conv: nn.Conv2d
    values: Tensor
    """View of the copy in the convolution's own order."""
    gradient: Tensor
    """The same view of its gradient."""


class _CPUPlan(Plan):
    def __init__(self, trunk: CPUTrunk, shape: torch.Size, key: tuple[int, ...]) -> None:
        super().__init__(trunk, shape)
        self.key, self.library, self.threads = key, trunk.library, trunk.threads
        self.tiles = _Int(self.batch // trunk.library.lanes())
        self.bytes = 2 if trunk.bf16 else 4
        self.memory = _Memory()
        self.gradient = FlatGradient(trunk.parameters)
        self.norms: list[tuple[Any, _BatchNorm, Tensor]] = []  # module, structure, its arrays
        self.padded: list[_Padded] = []
        self.norm_of: dict[Map, _BatchNorm] = {}
        self.memory_of: dict[Map, int] = {}

        last = self.wiring.last
        self.images = self._map(self.wiring.stem.u)
        self.units = {step: self._unit(step) for step in self.wiring.forward}
        self.forward_calls = [
            ("conv_forward" if isinstance(step, Conv) else "join_forward", unit)
            for step, unit in self.units.items()
        ]
        self.pooled, self.d_pooled = _in_pairs(2, self.batch, last.z.channels)
        join = self.units[last]
        join.pooled, join.d_pooled = self.pooled.data_ptr(), self.d_pooled.data_ptr()
        self._place_gradients()
        self.backward_calls = [("join_backward", join)]
        self.backward_calls += [("conv_backward", self.units[c]) for c in self.wiring.backward]

    def forward(self, images: Tensor) -> Tensor:
        for bn, norm, _ in self.norms:
            norm.frozen, norm.momentum = 0, _momentum(bn)
        return self._run_forward(images)

    def evaluate(self, images: Tensor) -> Tensor:
        """Return the pooled features, with the running statistics."""
        for bn, norm, statistics in self.norms:
            norm.frozen = 1
            _, _, scale, shift, *_ = statistics
            torch.mul(bn.weight, torch.rsqrt(bn.running_var + bn.eps), out=scale)
            torch.addcmul(bn.bias, bn.running_mean, scale, value=-1, out=shift)
        self.calls += 1  # this overwrites the maps of the last training step
        return self._run_forward(images)

    def _run_forward(self, images: Tensor) -> Tensor:
        for padded in self.padded:
            padded.values.copy_(padded.conv.weight)
        assert images.dtype == torch.float32
        channels, h, w = images.shape[1:]
        strides = (_Int * 4)(*images.stride())
        self.library.pack_images(
            _Pointer(images.data_ptr()), strides, _Int(channels), _Int(h), _Int(w),
            _Int(_even(channels)), _Pointer(self.images), self.tiles, self.threads,
        )  # fmt: skip
        self._run(self.forward_calls)
        return self.pooled.clone()

    def backward(self, d_pooled: Tensor) -> dict[Tensor, Tensor]:
        self.d_pooled.copy_(d_pooled)
        self._run(self.backward_calls)
        for padded in self.padded:
            self.gradient[padded.conv.weight].copy_(padded.gradient)
        return self.gradient.copies()

    def _run(self, calls: list[tuple[str, Any]]) -> None:
        for name, unit in calls:
            getattr(self.library, name)(ctypes.byref(unit), self.tiles, self.threads)

    def _map(self, map_: Map) -> int:
        """Return the address of a map's values."""
        if map_ not in self.memory_of:
            size = self._size(map_.channels, map_.height, map_.width)
            self.memory_of[map_] = self.memory.take(size)
        return self.memory_of[map_]

    def _size(self, channels: int, height: int, width: int) -> int:
        """Return the size of a map in bytes."""
        return self.batch * _even(channels) * height * width * self.bytes

    def _norm(self, map_: Map) -> Any:
        """Return a pointer to the norm that a map's readers apply, or None."""
        bn = map_.norm
        if bn is None:
            return None
        if map_ not in self.norm_of:
            statistics = _in_pairs(7, bn.num_features)
            norm = _BatchNorm(bn.num_features, 0, bn.eps, 0.0)
            names = ("mean", "invstd", "scale", "shift", "dz_g", "dz_z", "dz_1")
            places: dict[str, Any] = dict(zip(names, statistics, strict=True))
            places |= {"gamma": bn.weight, "beta": bn.bias}
            places |= {"running_mean": bn.running_mean, "running_var": bn.running_var}
            places |= {"d_gamma": self.gradient[bn.weight], "d_beta": self.gradient[bn.bias]}
            for name, tensor in places.items():
                setattr(norm, name, tensor.data_ptr())
            self.norms.append((bn, norm, statistics))
            self.norm_of[map_] = norm
        return ctypes.pointer(self.norm_of[map_])

    def _unit(self, step: Conv | Join) -> Any:
        return self._join(step) if isinstance(step, Join) else self._conv(step)

    def _conv(self, conv: Conv) -> _Conv:
        u, z, is_stem = conv.u, conv.z, conv is self.wiring.stem
        kernel = 3 if is_stem else max(map(_kernel, conv.windows))
        kind = UNFOLD if is_stem else DEPTHWISE if conv.sums else SUBSAMPLE
        channels = _even(u.channels), _even(z.channels)
        unit = _Conv(kind, *channels, kernel, conv.stride, u.height, u.width, z.height, z.width)
        unit.in_, unit.z, unit.bn = self._map(u), self._map(z), self._norm(z)
        unit.in_bn = self._norm(u)
        unit.pointwise, unit.d_pointwise = self._weight(conv.pointwise)
        if kind == DEPTHWISE:
            unit.windows = self._windows(conv)
        return unit

    def _weight(self, conv: nn.Conv2d) -> tuple[int, int]:
        """Return the addresses of a convolution's weights (outputs x pixels x inputs) and their
        gradient: in the network's own memory if it has that layout, else in copies."""
        weight, (outputs, inputs, kernel, _) = conv.weight, conv.weight.shape
        if kernel == 1 and outputs % 2 == inputs % 2 == 0:
            return weight.data_ptr(), self.gradient[weight].data_ptr()
        copies = torch.zeros(2, _even(outputs), kernel, kernel, _even(inputs))
        own = copies[:, :outputs, ..., :inputs].permute(0, 1, 4, 2, 3)
        self.padded.append(_Padded(conv, *own))
        return copies[0].data_ptr(), copies[1].data_ptr()

    def _windows(self, conv: Conv) -> Any:
        """Return an array with the window of each channel; a padding channel has none."""
        windows = []
        for part in conv.windows:
            for channel in range(conv.u.channels // len(conv.windows)):
                window = _Window(_kernel(part))
                if isinstance(part, nn.Conv2d):
                    window.weight = part.weight[channel].data_ptr()
                    window.d_weight = self.gradient[part.weight][channel].data_ptr()
                windows.append(window)
        windows += [_Window(1)] * (conv.u.channels % 2)
        return (_Window * len(windows))(*windows)

    def _join(self, join: Join) -> _Join:
        z, rest = join.z, join.rest
        unit = _Join(_even(z.channels), z.height, z.width, self._map(z), self._norm(z))
        unit.out = self._map(join.out)
        if rest is not None:
            unit.rest, unit.rest_bn = self._map(rest), self._norm(rest)
        return unit

    def _place_gradients(self) -> None:
        """Assign memory to the gradients that each step of the backward pass reads and writes."""
        *steps, stem = self.wiring.backward
        made: dict[Map | Conv, int] = {self.wiring.last.z: 0}  # number of the step that computes it
        reads: list[set[int]] = [set()]
        for number, conv in enumerate(steps, 1):
            read = {made[conv.gradient]}
            if conv.add is not None:
                read.add(made[conv.add if isinstance(conv.add, Conv) else conv.add.z])
            reads.append(read)
            made[conv.sums[0] if conv.sums else conv] = number
        reads.append({made[stem.gradient]})
        # a shortcut computes the gradient only at the pixels it reads
        sizes = [
            self._size(of.channels, of.height, of.width)
            if isinstance(of, Map)
            else self._size(of.u.channels, of.z.height, of.z.width)
            for of in made
        ]
        buffers = fewest_buffers(reads)[:-1]  # the stem needs no gradient at its input
        memory = [self.memory.take(max(sizes)) for _ in range(1 + max(buffers))]
        place = {of: memory[buffers[number]] for of, number in made.items()}
        self.units[self.wiring.last].g = place[self.wiring.last.z]
        for conv in self.wiring.backward:
            unit = self.units[conv]
            unit.g = place[conv.gradient]
            if conv is not stem:
                unit.g_in = place[conv.sums[0] if conv.sums else conv]
            for i, map_ in enumerate(conv.sums):
                unit.sum_bn[i], unit.sum_z[i] = self._norm(map_), self._map(map_)
            if isinstance(conv.add, Conv):
                unit.add, unit.add_stride = place[conv.add], conv.add.stride
            elif conv.add is not None:
                unit.add, unit.add_stride = place[conv.add.z], 1


def _even(channels: int) -> int:
    """Return the number of channels that the kernels compute: they process pairs."""
    return channels + channels % 2


def _in_pairs(*shape: int) -> Tensor:
    """Return zeros of a shape; in memory, rows of odd length are followed by one more zero."""
    return torch.zeros(*shape[:-1], _even(shape[-1]))[..., : shape[-1]]


def _kernel(window: nn.Conv2d | nn.Identity) -> int:
    return window.kernel_size[0] if isinstance(window, nn.Conv2d) else 1


def _momentum(bn: Any) -> float:
    """Return the weight of this batch in the running statistics; by default they are a mean."""
    return 1 / (bn.num_batches_tracked.item() + 1) if bn.momentum is None else bn.momentum
