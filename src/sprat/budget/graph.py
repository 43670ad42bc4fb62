"""A network as the list of its operations, traced once on an image of a given side."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from sprat.errors import SpratError


@dataclass(frozen=True)
class Map:
    """Stands in an operation's arguments for the result of another one."""

    op: int


@dataclass(frozen=True)
class Op:
    """One operation of the graph.

    kind: ATen's name of it, "conv2d" say; the first op is the "input".
    module: path of the module that calls it, "" for the network itself.
    args: its arguments; results of other ops are Maps, parameters and buffers their shapes.
    shape: of its result for a batch of one; () where it has several, as a chunk.
    """

    kind: str
    module: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Places of the ops whose results it takes."""
        return tuple(arg.op for arg in _flat(self.args) if isinstance(arg, Map))

    def arg(self, place: int, default: Any = None) -> Any:
        """The argument at `place`, or the default where it was left out."""
        return self.args[place] if place < len(self.args) else default


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers: weights, biases and BatchNorm's scale and shift; buffers not."""
    return sum(p.numel() for p in network.parameters())


def export(network: nn.Module, side: int) -> ExportedProgram:
    """A float32 copy on the CPU, in eval mode, as torch.export traces it on 1 x 3 x side x side.

    Raises:
        SpratError: it cannot take such images, or what it does depends on what they show.
    """
    name = type(network).__name__
    still = copy.deepcopy(network).cpu().float().eval()
    try:
        return torch.export.export(still, (torch.zeros(1, 3, side, side),), strict=False)
    except Exception as error:  # torch names a dozen kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpratError(
            f"{name} cannot be traced on images of 3 x {side} x {side}: {reason}"
        ) from error


def trace(network: nn.Module, side: int = 32) -> list[Op]:
    """The operations that a network in eval mode does on images 1 x 3 x side x side, in order.

    Raises:
        SpratError: it cannot take such images, or what it does depends on what they show.
    """
    return list_ops(export(network, side))


def list_ops(program: ExportedProgram) -> list[Op]:
    """The image, then every call of the traced program, in order."""
    ops: list[Op] = []
    place: dict[fx.Node, int] = {}

    def told(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Map(place[value]) if value in place else _shape(value)
        if isinstance(value, list | tuple):
            return tuple(map(told, value))
        return value

    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in program.graph_signature.user_inputs:
            place[node] = len(ops)
            ops.append(Op("input", "", (), _shape(node)))
        elif node.op == "call_function":
            stack = node.meta.get("nn_module_stack") or {"": ("", None)}
            module = str(list(stack.values())[-1][0])
            kind = str(getattr(node.target, "overloadpacket", node.target.__name__)).split(".")[-1]
            place[node] = len(ops)
            arguments = (*node.args, *node.kwargs.values())
            ops.append(Op(kind, module, told(arguments), _shape(node)))
    return ops


def _shape(node: fx.Node) -> tuple[int, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _flat(values: Any) -> Any:
    for value in values:
        if isinstance(value, tuple):
            yield from _flat(value)
        else:
            yield value
