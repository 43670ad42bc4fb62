"""A network as a list of operations, recorded while it runs once on an image of a given side.

`torch.export` records the same but takes longer to load than torch itself. It is used only where
the recorded operations are run again.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from sprat.errors import SpratError

LARGEST_RUN = 256  # pixels; larger images are traced on the meta device, which is slower to start


@dataclass(frozen=True)
class Map:
    """Reference to the result of another operation, among an operation's arguments."""

    op: int


class Stored(tuple[int, ...]):
    """Reference to a parameter or buffer among an operation's arguments: its shape, and its name in
    the state_dict ("" if it is not in there)."""

    name: str = ""

    @classmethod
    def of(cls, tensor: Tensor) -> "Stored":
        """Return the reference to a tensor, with the name that `_Recorder` gave it."""
        stored = cls(tensor.shape)
        stored.name = getattr(tensor, "_sprat_name", "")
        return stored


@dataclass(frozen=True)
class Op:
    """One operation of the graph.

    kind: ATen's name, such as "conv2d"; the first op is the "input".
    module: path of the module that calls it, "" for the network itself.
    args: arguments; results of other ops are Maps, parameters and buffers are Stored.
    shape: shape of the result for a batch of one; () if there are several, as for chunk.
    """

    kind: str
    module: str
    args: tuple[Any, ...]
    shape: tuple[int, ...]

    @property
    def inputs(self) -> tuple[int, ...]:
        """Indices of the ops whose results it reads."""
        return tuple(arg.op for arg in _flat(self.args) if isinstance(arg, Map))

    def arg(self, place: int, default: Any = None) -> Any:
        """Return the argument at `place`, or the default if it was omitted."""
        return self.args[place] if place < len(self.args) else default


def count_parameters(network: nn.Module) -> int:
    """Return the number of weights, biases and BatchNorm scales and shifts; buffers do not
    count."""
    return sum(p.numel() for p in network.parameters())


def in_channels(network: nn.Module) -> int:
    """Return the number of channels of a network's images; 3 if the network does not say."""
    return int(getattr(network, "in_channels", 3))


def trace(network: nn.Module, side: int = 32) -> list[Op]:
    """Return the operations of a network in eval mode on an image of that side, in order.

    Raises:
        SpratError: the network cannot process such images, or its operations depend on the pixels.
    """
    device = "cpu" if side <= LARGEST_RUN else "meta"
    with _tracing(network, side, device) as (still, image), torch.inference_mode():
        with _Recorder(still, image) as recorder:
            still(image)
        return recorder.ops


def export(network: nn.Module, side: int) -> ExportedProgram:
    """Export a float32 copy on the CPU, in eval mode, with torch.export for an image of that side.

    Raises:
        SpratError: as `trace`.
    """
    with _tracing(network, side, "cpu") as (still, image):
        return torch.export.export(still, (image,), strict=False)


@contextmanager
def _tracing(network: nn.Module, side: int, device: str) -> Iterator[tuple[nn.Module, Tensor]]:
    """Yield a float32 copy in eval mode and a black image; turn any failure into a SpratError."""
    channels = in_channels(network)
    try:
        still = copy.deepcopy(network).to(device).float().eval()
        yield still, torch.zeros(1, channels, side, side, device=device)
    except Exception as error:  # from the network's own code, or any of torch's errors
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpratError(
            f"{type(network).__name__} cannot be traced on images of {channels} x {side} x {side}: "
            f"{reason}. Change its code."
        ) from error


class _Recorder(TorchDispatchMode):
    """Dispatch mode that records every operation of a network.

    In inference mode, operations arrive as they were called: a conv2d, not its parts.
    """

    def __init__(self, network: nn.Module, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.modules: list[str] = [""]
        self.ops: list[Op] = []
        self.device = image.device
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            tensor._sprat_name = name  # type: ignore[attr-defined]
        for name, module in network.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name))
            module.register_forward_hook(lambda *_: self.modules.pop() and None)
        self._record("input", (), image)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or torch would load its whole compiler, just to skip it here

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _depends_on_values(func, args):
            raise ValueError(f"it calls {func}, whose result depends on the pixels")
        taken = _argument((*args, *kwargs.values()))
        # tensors that the network creates, or that are not buffers, may be on another device
        args, kwargs = tree_map_only(Tensor, lambda t: t.to(self.device), (args, kwargs))
        result = func(*args, **kwargs)
        kind = str(func.overloadpacket).split(".")[-1]
        if isinstance(result, Tensor):
            self._record(kind, taken, result)
        elif isinstance(result, list | tuple):
            place = len(self.ops)
            self.ops.append(Op(kind, self.modules[-1], taken, ()))
            for number, part in enumerate(result):
                self._record("getitem", (Map(place), number), part)
        return result

    def _record(self, kind: str, taken: tuple[Any, ...], result: Tensor) -> None:
        result._sprat_op = len(self.ops)  # type: ignore[attr-defined]
        self.ops.append(Op(kind, self.modules[-1], taken, tuple(result.shape)))


def _depends_on_values(func: Any, args: tuple[Any, ...]) -> bool:
    if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten.is_nonzero.default:
        return True
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    is_index = func is torch.ops.aten.index.Tensor  # by position, or by a mask
    return not is_index or any(t is not None and t.dtype == torch.bool for t in args[1])


def _argument(value: Any) -> Any:
    """Return an argument as an Op has it."""
    if isinstance(value, Tensor):
        place = getattr(value, "_sprat_op", None)
        return Stored.of(value) if place is None else Map(place)
    if isinstance(value, list | tuple):
        return tuple(map(_argument, value))
    return value


def list_ops(program: ExportedProgram) -> list[Op]:
    """Return the image, then every call of the traced program, in order."""
    ops: list[Op] = []
    place: dict[fx.Node, int] = {}

    def argument(value: Any) -> Any:
        if isinstance(value, fx.Node):
            return Map(place[value]) if value in place else _shape(value)
        if isinstance(value, list | tuple):
            return tuple(map(argument, value))
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
            ops.append(Op(kind, module, argument(arguments), _shape(node)))
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
