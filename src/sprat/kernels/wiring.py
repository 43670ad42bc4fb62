"""Wiring of a training step, shared by all backends: which maps each convolution reads and writes,
how gradients flow back, and how autograd calls it.

A step computes `network.features(images).mean(dim=(2, 3))` and its gradients: the network without
its head. Only two kinds of maps are stored: outputs of convolutions, before BatchNorm, and outputs
of joins. Whatever reads the former applies BatchNorm and ReLU. BatchNorm's backward pass is affine
in the gradient g at its output and in its input z (dz = a g + b z + c) once the sums of g and g z
are known, so those are accumulated where g is computed: each convolution lists the maps for which
it does that.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sprat.kernels.support import LANES, supported
from sprat.models.blocks import Blueprint, Normed


@dataclass(eq=False)
class Map:
    """Values of shape B x channels x height x width."""

    channels: int
    height: int
    width: int
    norm: nn.BatchNorm2d | None = None
    """BatchNorm that readers apply; None for the output of a join."""


@dataclass(eq=False)
class Conv:
    """Windows over u, then a 1x1 convolution to z (the stem: a 3x3 convolution of u)."""

    u: Map
    z: Map
    windows: tuple[nn.Conv2d | nn.Identity, ...]
    pointwise: nn.Conv2d
    stride: int
    gradient: Map
    """Map with the gradient at the output of z's norm: z, or the map that z is added to."""
    sums: tuple[Map, ...] = ()
    """Maps whose norms' outputs get the gradient at this one's input, before ReLU."""
    add: "Conv | Join | None" = None
    """Source of another gradient to add at the input: a shortcut's convolution, at every stride-th
    pixel, or, for an identity shortcut, the join itself."""


@dataclass(eq=False)
class Join:
    """out = relu(norm(z) + rest), or relu(norm(z)); `rest` is a join's output or has a norm too."""

    z: Map
    rest: Map | None
    out: Map

    @property
    def normed(self) -> tuple[Map, ...]:
        """Maps with norms whose outputs are added; each gets the gradient before the ReLU."""
        return tuple(m for m in (self.z, self.rest) if m is not None and m.norm is not None)


@dataclass
class Wiring:
    """Convolutions and joins of a network, for images of one size."""

    stem: Conv
    last: Join
    """Join whose output is averaged over the pixels; the backward pass starts with it."""
    forward: list[Conv | Join] = field(default_factory=list)
    backward: list[Conv] = field(default_factory=list)
    """Convolutions after `last`, in order; the stem, which needs no input gradient, comes last."""

    @property
    def convs(self) -> list[Conv]:
        return [step for step in self.forward if isinstance(step, Conv)]


def wire(blueprint: Blueprint, height: int, width: int) -> Wiring:
    """Return the steps of a network for images of height x width."""
    conv = blueprint.stem.conv
    images, stride = Map(conv.in_channels, height, width), conv.stride[0]
    z = _output(images, conv, blueprint.stem.norm, stride)
    stem = Conv(images, z, (), conv, stride, gradient=z)
    join = _join(z)
    wiring = Wiring(stem, join, [stem, join], [stem])
    for block in blueprint.blocks:
        before, u = join, join.out
        convs: list[Conv] = []
        for separable in block.convs:
            z = _output(u, separable.pointwise, separable.norm, separable.stride)
            sums = (u,) if convs else before.normed
            convs.append(
                Conv(u, z, separable.windows, separable.pointwise, separable.stride, z, sums)
            )
            u = z
        side: list[Conv] = []
        rest = None
        if isinstance(block.shortcut, Normed):
            conv, stride = block.shortcut.conv, block.shortcut.conv.stride[0]
            rest = _output(before.out, conv, block.shortcut.norm, stride)
            side = [Conv(before.out, rest, (nn.Identity(),), conv, stride, gradient=z)]
        elif block.shortcut is not None:
            rest = before.out
        join = _join(z, rest)
        if rest is not None:
            convs[0].add = side[0] if side else join
        wiring.forward += [*convs, *side, join]
        wiring.backward[:0] = [*side, *reversed(convs)]
    wiring.last = join
    return wiring


def _output(u: Map, conv: nn.Conv2d, norm: nn.BatchNorm2d, stride: int) -> Map:
    height, width = ((side - 1) // stride + 1 for side in (u.height, u.width))
    return Map(conv.out_channels, height, width, norm)


def _join(z: Map, rest: Map | None = None) -> Join:
    return Join(z, rest, Map(z.channels, z.height, z.width))


class FlatGradient:
    """Gradients of parameters in one block of memory, so that one copy returns them all."""

    def __init__(self, parameters: Iterable[Tensor], device: torch.device | None = None) -> None:
        self.parameters = list(parameters)
        self.flat = torch.zeros(sum(p.numel() for p in self.parameters), device=device)
        self._of = dict(zip(self.parameters, self._split(self.flat), strict=True))

    def __getitem__(self, parameter: Tensor) -> Tensor:
        """Return a view of a parameter's gradient, in the parameter's shape."""
        return self._of[parameter]

    def copies(self) -> dict[Tensor, Tensor]:
        """Return a copy of each parameter's gradient."""
        return dict(zip(self.parameters, self._split(self.flat.clone()), strict=True))

    def _split(self, flat: Tensor) -> list[Tensor]:
        pieces = flat.split([p.numel() for p in self.parameters])
        return [piece.view(p.shape) for piece, p in zip(pieces, self.parameters, strict=True)]


class Plan:
    """Kernel calls of a backend for a step on images of one shape, and the memory they use.

    Raises:
        ValueError: the kernels cannot compute images of that shape.
    """

    def __init__(self, trunk: "Trunk", shape: torch.Size) -> None:
        channels = trunk.blueprint.stem.conv.in_channels
        if shape[0] % LANES or shape[1] != channels:
            raise ValueError(
                f"images have shape {tuple(shape)}; expected a multiple of {LANES} images of "
                f"{channels} channels"
            )
        self.trunk, self.batch, self.calls = trunk, shape[0], 0
        self.wiring = wire(trunk.blueprint, *shape[2:])

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features, fp32, B x channels."""
        raise NotImplementedError

    def backward(self, d_pooled: Tensor) -> dict[Tensor, Tensor]:
        """Return the gradient of each parameter of the trunk, given that of the pooled features."""
        raise NotImplementedError


class Trunk:
    """`network.features(images).mean(dim=(2, 3))` in training mode, forward and backward.

    Takes fp32 images B x C x H x W, with B a multiple of 16 and C channels as the stem; returns
    fp32 B x channels. Memory for the maps is reused by every call, so `backward` must come before
    the next call. Parameters, running statistics and gradients are the network's own; the network
    is the plain twin.

    Raises:
        NoKernels: the kernels do not support the network.
    """

    def __init__(self, network: nn.Module) -> None:
        self.blueprint = supported(network)
        head = set(self.blueprint.head.linear.parameters())
        self.parameters = [p for p in network.parameters() if p not in head]
        norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        self.batches_tracked: list[Any] = [norm.num_batches_tracked for norm in norms]

    def __call__(self, images: Tensor) -> Tensor:
        return _Features.apply(images, self, *self.parameters)  # type: ignore[no-untyped-call]

    def planned(self, images: Tensor) -> Plan:
        """Return the plan for images of this shape."""
        raise NotImplementedError


class _Features(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, trunk: Trunk, *parameters: Tensor) -> Tensor:
        ctx.trunk, ctx.plan = trunk, trunk.planned(images)
        pooled = ctx.plan.forward(images)
        torch._foreach_add_(trunk.batches_tracked, 1)
        ctx.plan.calls += 1
        ctx.call = ctx.plan.calls
        return pooled

    @staticmethod
    def backward(ctx: Any, d_pooled: Tensor) -> Any:
        if ctx.call != ctx.plan.calls:
            raise RuntimeError("the maps of this forward pass were overwritten by a later one")
        found = ctx.plan.backward(d_pooled)
        return None, None, *(found[parameter] for parameter in ctx.trunk.parameters)
