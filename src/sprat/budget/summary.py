"""Summary of a network: shapes, parameters, multiply-accumulates and receptive field by layer."""

import contextlib
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, TypedDict

from torch import nn

from sprat.budget.graph import Op, count_parameters, in_channels, trace
from sprat.budget.layers import lower
from sprat.budget.memory import peak_activations
from sprat.budget.plan import MemoryPlan, plan_memory
from sprat.budget.reach import Reach, place_before_global_pooling, reaches
from sprat.errors import SpratError
from sprat.names import WIDTHS


@dataclass(frozen=True)
class Layer:
    """One row of a summary: a module, or what a module computes itself, outside its submodules.

    output: shape without the batch. receptive_field, jump: of its result, in pixels; None after
    global pooling.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int
    receptive_field: int | None
    jump: int | None


@dataclass(frozen=True)
class Summary:
    """Costs and receptive field of a network on one image of channels x side x side.

    macs: multiply-accumulates of convolutions and linear layers, without biases; a multiplication
    and its addition count as one.
    receptive_field: side in pixels of what one value before global pooling depends on; None if that
    is the whole image.
    plan: memory plan in int8, without image and stack; None if there is none, for the reason
    `unplanned`.
    peak_activations: most values held at once if no layer overwrites an input that it is still
    reading, which few runtimes do (see memory.py); peak_layer: where.
    """

    model: str
    side: int
    channels: int
    parameters: int
    macs: int
    receptive_field: int | None
    plan: MemoryPlan | None
    unplanned: str
    peak_activations: int
    peak_layer: str
    layers: tuple[Layer, ...]

    @property
    def flash_bytes(self) -> dict[str, int]:
        """Bytes of the weights by storage type: the parameters times the type's width; for int8,
        the plan's constants if there is a plan."""
        sizes = {name: width * self.parameters for name, width in WIDTHS.items()}
        return sizes if self.plan is None else sizes | {"int8": self.plan.weights}

    @property
    def ram_bytes(self) -> dict[str, int] | None:
        """Bytes of the plan's arena by type of its values: the same plan times the type's width;
        None without a plan."""
        if self.plan is None:
            return None
        return {name: width * self.plan.arena for name, width in WIDTHS.items()}

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Bytes of `peak_activations`, by type."""
        return {name: width * self.peak_activations for name, width in WIDTHS.items()}

    @property
    def image_bytes(self) -> int:
        """Bytes of an image, one per value."""
        return self.channels * self.side**2

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        plan = self.plan
        values = {
            field.name: getattr(self, field.name)
            for field in fields(self)
            if field.name not in ("plan", "unplanned", "layers")
        }
        return values | {
            "peak_bytes": self.peak_bytes,
            "flash_bytes": self.flash_bytes,
            "ram_bytes": self.ram_bytes,
            "ram_layer": None if plan is None else plan.layer,
            "image_bytes": self.image_bytes,
            "unplanned": self.unplanned or None,
            "layers": [asdict(layer) for layer in self.layers],
        }


def summarize(network: nn.Module, side: int = 32, depth: int = 0) -> Summary:
    """Trace a network on an image of that side and summarise its costs.

    Args:
        depth: number of parts of a module's path that name a row: "layer1.0" has two; 0: all.

    Raises:
        SpratError: the network cannot be traced, or its receptive field cannot be computed.
    """
    ops = trace(network, side)
    found, peak = reaches(ops), peak_activations(ops)
    plan, unplanned = None, ""
    try:
        plan = plan_memory(lower(ops))
    except SpratError as error:
        unplanned = str(error)
    return Summary(
        model=type(network).__name__,
        side=side,
        channels=in_channels(network),
        parameters=count_parameters(network),
        macs=sum(map(macs, ops)),
        receptive_field=_field(ops, found),
        plan=plan,
        unplanned=unplanned,
        peak_activations=peak.values,
        peak_layer=peak.op.module or peak.op.kind,
        layers=tuple(_layers(network, ops, found, depth)),
    )


class Costs(TypedDict):
    """Costs of a network on one image, for a record of it.

    macs, receptive_field: as in `Summary`; also None if they cannot be counted in the user's own
    network.
    """

    parameters: int
    macs: int | None
    receptive_field: int | None


def costs(network: nn.Module, side: int) -> Costs:
    """Return the costs of a network on an image of that side."""
    counted: Costs = {
        "parameters": count_parameters(network),
        "macs": None,
        "receptive_field": None,
    }
    with contextlib.suppress(SpratError):
        ops = trace(network, side)
        field = _field(ops, reaches(ops))
        counted["macs"], counted["receptive_field"] = sum(map(macs, ops)), field
    return counted


def receptive_field(network: nn.Module, side: int = 32) -> int | None:
    """Return the side, in pixels, of the square of the image that one value before global pooling
    depends on; None if that is the whole image.

    Raises:
        SpratError: as `summarize`.
    """
    ops = trace(network, side)
    return _field(ops, reaches(ops))


def _field(ops: list[Op], found: list[Reach | None]) -> int | None:
    place = place_before_global_pooling(ops, found)
    reach = None if place is None else found[place]
    return reach.size if reach else None


def macs(op: Op) -> int:
    """Return the number of multiply-accumulates of one operation on one image."""
    if op.kind == "conv2d":  # per value: one product for each weight of its channel's filter
        return math.prod(op.shape) * math.prod(op.args[1][1:])
    if op.kind == "linear":
        return math.prod(op.shape) * op.args[1][-1]
    return 0


def _layers(
    network: nn.Module, ops: list[Op], found: list[Reach | None], depth: int
) -> list[Layer]:
    modules = dict(network.named_modules())
    by_layer: dict[str, list[int]] = {}
    for place, op in enumerate(ops):
        parts = op.module.split(".")
        name = ".".join(parts[:depth] if depth else parts)
        if op.kind != "input":
            by_layer.setdefault(name, []).append(place)
    layers = []
    for name, places in sorted(by_layer.items(), key=lambda layer: layer[1][-1]):
        last, reach = ops[places[-1]], found[places[-1]]
        module = modules[name]
        is_cut_off = bool(name) and len(name.split(".")) == depth  # with its submodules
        layers.append(
            Layer(
                name=name,
                kind=type(module).__name__ if name else last.kind,
                output=last.shape[1:],
                parameters=sum(p.numel() for p in module.parameters(recurse=is_cut_off)),
                macs=sum(macs(ops[place]) for place in places),
                receptive_field=reach.size if reach else None,
                jump=reach.jump if reach else None,
            )
        )
    return layers
