"""What a network costs and sees."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from sprat.errors import SpratError


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers: weights, biases and BatchNorm's scale and shift; buffers not."""
    return sum(p.numel() for p in network.parameters())


@dataclass(frozen=True)
class Reach:
    """Which pixels along one side a value of a map depends on: the value at i on pixels
    i x jump + first to i x jump + last."""

    jump: int = 1
    first: int = 0
    last: int = 0

    @property
    def size(self) -> int:
        """The receptive field's side, in pixels."""
        return self.last - self.first + 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Reach":
        """Behind a convolution or pooling."""
        return Reach(
            self.jump * stride,
            self.first - padding * self.jump,
            self.last + ((kernel - 1) * dilation - padding) * self.jump,
        )


def receptive_field(network: nn.Module) -> int:
    """Side, in pixels, of the square of input that one value before global pooling depends on.

    By the recurrence of Araujo et al. (Distill 2019) over the traced graph of the network's
    `features`; where branches meet, the field reaches from the first pixel of any to the last.

    Raises:
        SpratError: something in it cannot be traced; says what.
    """
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(_Features(network))
    except (fx.proxy.TraceError, TypeError, AttributeError) as error:
        name = type(network).__name__
        raise SpratError(f"{name} cannot be traced for its receptive field: {error}") from error
    modules = dict(tracer.root.named_modules())
    reaches: dict[fx.Node, tuple[Reach, Reach]] = {}  # along height and width
    for node in graph.nodes:
        if node.op == "placeholder":
            reaches[node] = (Reach(), Reach())
        elif node.op == "output":
            height, width = reaches[node.args[0]]
            return max(height.size, width.size)
        else:
            sources = [reaches[source] for source in node.all_input_nodes]
            height, width = (_joined([source[axis] for source in sources]) for axis in (0, 1))
            target = modules[node.target] if node.op == "call_module" else node.target
            reaches[node] = _behind(target, node, (height, width))
    raise AssertionError("a graph ends with its output")


class _Features(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.network.features(images)


def _joined(reaches: list[Reach]) -> Reach:
    """Of a sum or a concatenation."""
    jumps = {reach.jump for reach in reaches}
    if len(jumps) != 1:
        raise SpratError(f"branches whose strides differ (jumps {sorted(jumps)}) meet")
    return Reach(
        jumps.pop(), min(reach.first for reach in reaches), max(reach.last for reach in reaches)
    )


POINTWISE_MODULES = (
    nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm, nn.Identity, nn.Dropout, nn.ReLU, nn.ReLU6,
    nn.GELU, nn.SiLU, nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh, nn.LeakyReLU,
)  # fmt: skip
POINTWISE_FUNCTIONS: set[Callable[..., Any] | str] = {
    operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, torch.add, torch.cat,
    torch.concat, torch.relu, torch.mul, torch.sigmoid, torch.chunk, torch.split, F.relu, F.relu6,
    F.gelu, F.silu, F.hardswish, F.dropout, "relu", "chunk", "split", "contiguous", "add", "mul",
}  # fmt: skip
CHANNEL_METHODS = {"unflatten", "transpose", "flatten"}  # where they leave dimensions 3 on alone


def _behind(target: Any, node: fx.Node, at: tuple[Reach, Reach]) -> tuple[Reach, Reach]:
    """The reach behind one step of the graph."""
    if isinstance(target, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d) and not isinstance(
        target.padding, str
    ):
        kernel, stride, padding, dilation = (
            _pair(getattr(target, name, 1))
            for name in ("kernel_size", "stride", "padding", "dilation")
        )
        height, width = (
            at[axis].window(kernel[axis], stride[axis], padding[axis], dilation[axis])
            for axis in (0, 1)
        )
        return height, width
    if isinstance(target, POINTWISE_MODULES) or target in POINTWISE_FUNCTIONS:
        return at
    if target is operator.getitem:
        index = node.args[1]
        if not isinstance(index, tuple):  # one part of a chunk
            return at
        spatial = (*index, *(slice(None),) * (4 - len(index)))[2:]
        if len(spatial) == 2 and all(isinstance(cut, slice) for cut in spatial):
            height, width = (
                Reach(reach.jump * (cut.step or 1), *(
                    edge + (cut.start or 0) * reach.jump for edge in (reach.first, reach.last)
                ))
                for cut, reach in zip(spatial, at, strict=True)
            )  # fmt: skip
            return height, width
    if target is F.pad or target is torch._C._nn.pad:
        left, _, top, _ = (*node.args[1], 0, 0, 0, 0)[:4]  # type: ignore[misc]
        return at[0].window(1, 1, top), at[1].window(1, 1, left)
    if target in CHANNEL_METHODS and all(
        dim in (1, 2) for dim in node.args[1:] if isinstance(dim, int)
    ):
        return at
    what = type(target).__name__ if isinstance(target, nn.Module) else str(node.target)
    raise SpratError(
        f"{node.target if node.op == 'call_module' else node.name} ({what}) is not known to the "
        "receptive field's recurrence"
    )


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)
