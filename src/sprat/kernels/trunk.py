"""The convolutional part of a network as one step of autograd, in compiled kernels.

`Trunk(network)` computes what `network.features(images).mean(dim=(2, 3))` computes in training,
about three times as fast on a CPU: `trunk.c` says how. Parameters, running statistics and
gradients are the network's own; the network itself is its plain twin.
"""

import ctypes
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.kernels.build import NoKernels, load_trunk
from sprat.models.optimized200k import EfficientBlock, OptimizedCIFAR10Net200K
from sprat.models.sprat import Halving, SpratBlock, SpratNet

LANES = 16  # images to the widest vector; batches are multiples of it
UNFOLD, DEPTHWISE, SUBSAMPLE = range(3)
ALIGNMENT = 4096  # bytes
EVALUATED = 64  # images at once where no gradient is asked for
CHUNK = 32 << 20  # bytes asked of the system at a time

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


@dataclass(frozen=True)
class _Map:
    """Memory for B x channels x h x w values, as the kernels lay them out."""

    channels: int
    h: int
    w: int
    pointer: int


@dataclass(frozen=True)
class Separable:
    """A depthwise convolution, a pointwise one, BatchNorm."""

    depthwise: list[Any]
    """Modules, each for its equal share of the channels; one that is no convolution leaves them."""
    pointwise: Any
    bn: Any

    @property
    def stride(self) -> int:
        return next((p.stride[0] for p in self.depthwise if isinstance(p, nn.Conv2d)), 1)


@dataclass(frozen=True)
class _Block:
    """One or two of them, ReLU after each and after the sum with the shortcut, if there is one."""

    convs: list[Separable]
    shortcut: Any = None
    """nn.Identity, or a strided 1x1 convolution and BatchNorm."""


def blocks_of(network: nn.Module) -> list[_Block]:
    """What comes after the stem.

    Raises:
        NoKernels: the kernels do not support the network, or something in it.
    """
    if isinstance(network, OptimizedCIFAR10Net200K):
        known: Any = OptimizedCIFAR10Net200K
        layers = [network.layer1, network.layer2, network.layer3, network.layer4]
    elif isinstance(network, SpratNet):
        known, layers = SpratNet, [network.stages]
    else:
        raise _not_supported(network)
    kind: Any = type(network)
    for method in ("forward", "features", "classify"):
        if getattr(kind, method) is not getattr(known, method):
            raise NoKernels(f"the compiled kernels do not support {kind.__name__}.{method}")
    if not _is_known_stem(network.stem):
        raise NoKernels(f"the compiled kernels do not support the stem of {kind.__name__}")
    found = [_block(part) for layer in layers for part in _flat(layer)]
    norms = [conv.bn for block in found for conv in block.convs]
    if other := next((norm for norm in norms if not isinstance(norm, nn.BatchNorm2d)), None):
        raise _not_supported(other)
    if any(norm.num_features % 2 for norm in norms):
        raise NoKernels("the compiled kernels need even widths, and one of the network is odd")
    return found


def _is_known_stem(stem: nn.Module) -> bool:
    if [type(part) for part in stem.children()] != [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
        return False
    conv: Any = next(stem.children())
    expected = nn.Conv2d(3, conv.out_channels, 3, padding=1, bias=False, device="meta")
    return repr(conv) == repr(expected)


def _flat(part: nn.Module) -> Iterator[nn.Module]:
    if not isinstance(part, nn.Sequential):
        yield part
        return
    for inner in part:
        yield from _flat(inner)


def _block(part: Any) -> _Block:
    if type(part) is EfficientBlock:
        convs = [Separable([c.depthwise], c.pointwise, c.bn) for c in (part.conv1, part.conv2)]
        return _Block(convs, part.shortcut)
    if type(part) is SpratBlock:
        widen = Separable([*part.windows.parts], part.widen, part.bn1)
        return _Block([widen, Separable([nn.Identity()], part.narrow, part.bn2)], nn.Identity())
    if type(part) is Halving:
        return _Block([Separable([part.depthwise], part.pointwise, part.bn)])
    raise _not_supported(part)


def _not_supported(module: nn.Module) -> NoKernels:
    return NoKernels(f"the compiled kernels do not support {type(module).__name__}")


class Trunk:
    """`network.features(images).mean(dim=(2, 3))` in training mode, forward and backward.

    Args:
        network: its convolutions' weights and BatchNorms are used and updated in place.
        bf16: keep maps in bf16 instead of fp32; weights, sums and gradients of weights are fp32
            either way.
        threads: CPU threads; changes no bit of the result.

    Calling it takes fp32 images B x 3 x H x W, B a multiple of 16, and returns B x channels.
    Memory for the maps is kept from call to call, so `backward` must come before the next call.

    Raises:
        NoKernels: the kernels cannot be built here, or do not support the network.
    """

    def __init__(self, network: nn.Module, *, bf16: bool, threads: int) -> None:
        self.blocks = blocks_of(network)
        self.library = load_trunk(bf16)
        parts: Any = network
        self.stem, self.stem_norm = parts.stem[0], parts.stem[1]
        self.network, self.bf16, self.threads = network, bf16, threads
        head = set(parts.classifier.parameters())
        self.parameters = [p for p in network.parameters() if p not in head]
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.batches_tracked: list[Any] = [norm.num_batches_tracked for norm in norms]
        self.plan: _Plan | None = None

    def __call__(self, images: Tensor) -> Tensor:
        return _Features.apply(images, self, *self.parameters)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def evaluate(self, images: Tensor) -> Tensor:
        """The same in evaluation mode, by the running statistics; any number of images."""
        parts = []
        for part in images.split(EVALUATED):
            full = F.pad(part, (0, 0, 0, 0, 0, 0, 0, -len(part) % LANES))
            parts.append(self.planned(full).evaluate(full)[: len(part)])
        return torch.cat(parts)

    def planned(self, images: Tensor) -> "_Plan":
        """The plan for these images' shape and the parameters' present place in memory."""
        places = tuple(tensor.data_ptr() for tensor in self.parameters)
        key = (*images.shape, *places)
        if self.plan is None or self.plan.key != key:
            self.plan = None  # frees its memory first
            self.plan = _Plan(self, images.shape, key)
        return self.plan


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, trunk: Trunk, *parameters: Tensor) -> Tensor:
        ctx.plan = trunk.planned(images)
        ctx.call, pooled = ctx.plan.forward(images)
        return pooled

    @staticmethod
    def backward(ctx: Any, d_pooled: Tensor) -> Any:
        return None, None, *ctx.plan.backward(ctx.call, d_pooled)


class _Memory:
    """Zeroed memory in large pages, kept as long as this object is."""

    def __init__(self) -> None:
        self.chunks: list[mmap.mmap] = []
        self.next, self.left = 0, 0

    def take(self, size: int) -> int:
        """Address of `size` bytes."""
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


class _Plan:
    """Every kernel call of a step for images of one shape, with the memory it works in."""

    def __init__(self, trunk: Trunk, shape: torch.Size, key: tuple[int, ...]) -> None:
        batch, channels, h, w = shape
        if batch % LANES or channels != 3:
            raise ValueError(
                f"images have shape {tuple(shape)}; expected a multiple of {LANES} images of "
                "3 channels"
            )
        self.trunk, self.key = trunk, key
        self.batch, self.calls = batch, 0
        self.tiles = _Int(batch // trunk.library.lanes())
        self.memory = _Memory()
        self.bytes = 2 if trunk.bf16 else 4
        self.norms: list[tuple[Any, _BatchNorm, Tensor]] = []
        self.sizes = [p.numel() for p in trunk.parameters]
        self.gradient = torch.zeros(sum(self.sizes))
        gradients = self.gradient.split(self.sizes)
        self.gradient_of: dict[Tensor, Tensor] = dict(zip(trunk.parameters, gradients, strict=True))

        # forward, in order
        width = trunk.stem.out_channels
        self.stem_weight = torch.zeros(width, 3, 3, 4)  # its fourth input channel is padding
        self.d_stem_weight = torch.zeros_like(self.stem_weight)
        self.images = self._map(4, h, w)
        z: _Map = self._map(width, h, w)
        norm: Any = self._norm(trunk.stem_norm)
        self.stem = self._conv(UNFOLD, self.images, None, z, norm, kernel=3)
        self.stem.pointwise = self.stem_weight.data_ptr()
        self.stem.d_pointwise = self.d_stem_weight.data_ptr()
        join = self._join(z, norm)
        self.forward_calls = [("conv_forward", self.stem), ("join_forward", join)]
        blocks = []
        for block in trunk.blocks:
            before, u = join, self._of(join)
            convs: list[_Conv] = []
            z, norm = u, None
            for separable in block.convs:
                conv, z, norm = self._separable(separable, z, norm)
                convs.append(conv)
            calls: list[tuple[str, Any]] = [("conv_forward", conv) for conv in convs]
            shortcut = None
            if block.shortcut is None:
                join = self._join(z, norm)
            elif isinstance(block.shortcut, nn.Identity):
                join = self._join(z, norm, u)
            else:
                pointwise, bn = block.shortcut
                rest, rest_norm = self._map(pointwise.out_channels, z.h, z.w), self._norm(bn)
                stride = block.convs[0].stride
                shortcut = self._conv(SUBSAMPLE, u, None, rest, rest_norm, stride=stride)
                self._weights(shortcut, pointwise)
                calls.append(("conv_forward", shortcut))
                join = self._join(z, norm, rest, rest_norm)
            self.forward_calls += [*calls, ("join_forward", join)]
            blocks.append((before, convs, shortcut, block.shortcut is not None))
        self.pooled = torch.zeros(batch, int(join.channels))
        self.d_pooled = torch.zeros_like(self.pooled)
        join.pooled, join.d_pooled = self.pooled.data_ptr(), self.d_pooled.data_ptr()

        # backward: the gradient before a block's last ReLU goes to and fro between two maps
        everyone = [conv for _, convs, _, _ in blocks for conv in convs]
        largest = max(conv.in_channels * conv.in_h * conv.in_w for conv in everyone)
        size = self.batch * self.bytes * max(largest, width * h * w)
        there, back, inner, side = (self.memory.take(size) for _ in range(4))
        join.g = there
        self.backward_calls: list[tuple[str, Any]] = [("join_backward", join)]
        for before, convs, shortcut, joined in reversed(blocks):
            first, last = convs[0], convs[-1]
            if shortcut is not None:
                shortcut.g, shortcut.g_in = there, side
                first.add, first.add_stride = side, first.stride
                self.backward_calls.append(("conv_backward", shortcut))
            elif joined:
                first.add, first.add_stride = there, 1
            last.g = there
            if first is not last:
                last.g_in, first.g = inner, inner
                last.sum_bn[0], last.sum_z[0] = first.bn, first.z
            first.g_in = back
            first.sum_bn[0], first.sum_z[0] = before.bn, before.z
            if before.rest_bn:
                first.sum_bn[1], first.sum_z[1] = before.rest_bn, before.rest
            self.backward_calls += [("conv_backward", conv) for conv in reversed(convs)]
            there, back = back, there
        self.stem.g = there
        self.backward_calls.append(("conv_backward", self.stem))

    def forward(self, images: Tensor) -> tuple[int, Tensor]:
        """The number of this call, for `backward`, and the pooled features."""
        for bn, norm, _ in self.norms:
            norm.frozen, norm.momentum = 0, _momentum(bn)
        self._run_forward(images)
        torch._foreach_add_(self.trunk.batches_tracked, 1)
        return self.calls, self.pooled.clone()

    def evaluate(self, images: Tensor) -> Tensor:
        for bn, norm, statistics in self.norms:
            norm.frozen = 1
            _, _, scale, shift, *_ = statistics
            torch.mul(bn.weight, torch.rsqrt(bn.running_var + bn.eps), out=scale)
            torch.addcmul(bn.bias, bn.running_mean, scale, value=-1, out=shift)
        self._run_forward(images)
        return self.pooled.clone()

    def _run_forward(self, images: Tensor) -> None:
        stem = self.trunk.stem.weight
        self.stem_weight[..., :3].copy_(stem.permute(0, 2, 3, 1))
        images = images.contiguous()
        assert images.dtype == torch.float32
        tiles, threads = self.tiles, self.trunk.threads
        library = self.trunk.library
        channels, h, w = (_Int(n) for n in images.shape[1:])
        library.pack_images(
            _Pointer(images.data_ptr()), channels, h, w, _Int(4), _Pointer(self.images.pointer),
            tiles, threads,
        )  # fmt: skip
        for name, unit in self.forward_calls:
            getattr(library, name)(ctypes.byref(unit), tiles, threads)
        self.calls += 1

    def backward(self, call: int, d_pooled: Tensor) -> list[Tensor]:
        if call != self.calls:
            raise RuntimeError("the maps of this forward pass were overwritten by a later one")
        self.d_pooled.copy_(d_pooled)
        tiles, threads = self.tiles, self.trunk.threads
        for name, unit in self.backward_calls:
            getattr(self.trunk.library, name)(ctypes.byref(unit), tiles, threads)
        stem = self.trunk.stem.weight
        self.gradient_of[stem].view(stem.shape).copy_(
            self.d_stem_weight[..., :3].permute(0, 3, 1, 2)
        )
        pieces = self.gradient.clone().split(self.sizes)
        return [g.view(p.shape) for g, p in zip(pieces, self.trunk.parameters, strict=True)]

    def _map(self, channels: int, h: int, w: int) -> _Map:
        size = self.batch * channels * h * w * self.bytes
        return _Map(channels, h, w, self.memory.take(size))

    def _of(self, join: _Join) -> _Map:
        return _Map(join.channels, join.h, join.w, join.out)

    def _norm(self, bn: Any) -> _BatchNorm:
        statistics = torch.zeros(7, bn.num_features)
        norm = _BatchNorm(bn.num_features, 0, bn.eps, 0.0)
        names = ("mean", "invstd", "scale", "shift", "dz_g", "dz_z", "dz_1")
        places = dict(zip(names, statistics, strict=True))
        places |= {"gamma": bn.weight, "beta": bn.bias}
        places |= {"running_mean": bn.running_mean, "running_var": bn.running_var}
        places |= {
            "d_gamma": self.gradient_of[bn.weight],
            "d_beta": self.gradient_of[bn.bias],
        }
        for name, tensor in places.items():
            setattr(norm, name, tensor.data_ptr())
        self.norms.append((bn, norm, statistics))
        return norm

    def _conv(
        self,
        kind: int,
        u: _Map,
        u_norm: _BatchNorm | None,
        z: _Map,
        norm: _BatchNorm,
        kernel: int = 1,
        stride: int = 1,
    ) -> _Conv:
        unit = _Conv(kind, u.channels, z.channels, kernel, stride, u.h, u.w, z.h, z.w)
        unit.in_, unit.z, unit.bn = u.pointer, z.pointer, ctypes.pointer(norm)
        if u_norm is not None:
            unit.in_bn = ctypes.pointer(u_norm)
        return unit

    def _weights(self, unit: _Conv, pointwise: Any) -> None:
        unit.pointwise = pointwise.weight.data_ptr()
        unit.d_pointwise = self.gradient_of[pointwise.weight].data_ptr()

    def _separable(self, conv: Separable, u: _Map, u_norm: Any) -> tuple[_Conv, _Map, _BatchNorm]:
        stride, windows = conv.stride, self._windows(conv.depthwise, u.channels)
        h, w = ((side - 1) // stride + 1 for side in (u.h, u.w))
        z, norm = self._map(conv.pointwise.out_channels, h, w), self._norm(conv.bn)
        kernel = max(window.kernel for window in windows)
        unit = self._conv(DEPTHWISE, u, u_norm, z, norm, kernel, stride)
        unit.windows = windows
        self._weights(unit, conv.pointwise)
        return unit, z, norm

    def _windows(self, parts: list[Any], channels: int) -> Any:
        """An array of each channel's."""
        windows = []
        for part in parts:
            for channel in range(channels // len(parts)):
                window = _Window(1)
                if isinstance(part, nn.Conv2d):
                    window.kernel = part.kernel_size[0]
                    window.weight = part.weight[channel].data_ptr()
                    window.d_weight = self._gradient(part.weight, channel)
                windows.append(window)
        return (_Window * len(windows))(*windows)

    def _gradient(self, parameter: Tensor, row: int) -> int:
        """Where the gradient of a parameter's row goes."""
        return self.gradient_of[parameter].view(parameter.shape)[row].data_ptr()

    def _join(
        self, z: _Map, norm: _BatchNorm, rest: _Map | None = None, rest_norm: Any = None
    ) -> _Join:
        join = _Join(z.channels, z.h, z.w, z.pointer, ctypes.pointer(norm))
        join.out = self._map(z.channels, z.h, z.w).pointer
        if rest is not None:
            join.rest = rest.pointer
        if rest_norm is not None:
            join.rest_bn = ctypes.pointer(rest_norm)
        return join


def _momentum(bn: Any) -> float:
    """This batch's share in the running statistics; by default they are the mean so far."""
    return 1 / (bn.num_batches_tracked.item() + 1) if bn.momentum is None else bn.momentum
