"""A network's layers and totals: shapes, parameters, multiply-accumulates, receptive field."""

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
    """One row of a summary: a module, or what a module computes outside its parts.

    output: shape without the batch. receptive_field and jump, in pixels, are of its result; None
    behind global pooling.
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
    """Costs of a network on one image, and what it sees: channels x side x side.

    macs: multiply-accumulates of convolutions and linear layers alone, biases left out; one
    product and its sum count as one.
    receptive_field: side in pixels of what one value before global pooling depends on; None
    where that is the whole image.
    plan: the memory that it takes in int8, image and stack apart; None where it cannot be planned,
    and `unplanned` says why.
    peak_activations: the most values held at once where no layer writes over its input while it
    reads it, as few runtimes do (see memory.py); peak_layer: where.
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
        """Bytes that the weights take, by the type they are stored in: as many values as
        parameters; in int8, where there is a plan, its constants."""
        sizes = {name: width * self.parameters for name, width in WIDTHS.items()}
        return sizes if self.plan is None else sizes | {"int8": self.plan.weights}

    @property
    def ram_bytes(self) -> dict[str, int] | None:
        """Bytes that the plan's arena takes, by the type of its values: the same plan, each
        value as wide as the type. None without a plan."""
        if self.plan is None:
            return None
        return {name: width * self.plan.arena for name, width in WIDTHS.items()}

    @property
    def peak_bytes(self) -> dict[str, int]:
        """Bytes that `peak_activations` take, by type."""
        return {name: width * self.peak_activations for name, width in WIDTHS.items()}

    @property
    def image_bytes(self) -> int:
        """Bytes that an image takes, a byte a value."""
        return self.channels * self.side**2

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """Trace a network on an image of that side and add up.

    Args:
        depth: parts of a module's path that name a layer, "layer1.0" being two; 0: all.

    Raises:
        SpratError: it cannot be traced, or does what the receptive field's recurrence does not
            know; says what.
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

    macs, receptive_field: as of `Summary`; None also where a user's own network does what cannot be
    counted.
    """

    parameters: int
    macs: int | None
    receptive_field: int | None


def costs(network: nn.Module, side: int) -> Costs:
    """Return what a network costs on an image of that side."""
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
    """Side, in pixels, of the square of input that one value before global pooling depends on;
    None where that is the whole image.

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
    """Multiply-accumulates of one operation on one image."""
    if op.kind == "conv2d":  # each value: one product a weight of its channel's filter
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
        is_cut_off = bool(name) and len(name.split(".")) == depth  # its parts are in this row
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
