"""Costs of a network compared with the limits of a search, counted before it is trained."""

import functools
import math
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import nn

from sprat.budget import Summary, check_limits, count_parameters, summarize
from sprat.evaluation.records import Count
from sprat.models import NetworkConfig, build_network, draft_network
from sprat.models.blocks import blueprint_of
from sprat.settings.config import BudgetConfig


class Cost(TypedDict):
    """Costs of a network on one image; flash and RAM in bytes, stored as the budget says.

    receptive_field: None if that is the whole image. ram: None if it cannot be planned.
    """

    parameters: Count
    macs: Count
    receptive_field: Count | None
    flash: Count
    ram: Count | None


# the limit on each cost
LIMITED = {
    "max_parameters": "parameters",
    "max_macs": "macs",
    "min_receptive_field": "receptive_field",
    "max_flash": "flash",
    "max_ram": "ram",
}
UNPLANNED = 1.0  # excess over a limit on RAM if the memory cannot be planned


@dataclass(frozen=True)
class Counted:
    """A network's cost, and its excess over each limit as a share of the limit; 0 or below if the
    limit is met."""

    cost: Cost
    excess: dict[str, float]

    @property
    def kept(self) -> bool:
        """Return whether all limits are met."""
        return all(excess <= 0 for excess in self.excess.values())


@functools.cache
def _summary(network: NetworkConfig, classes: int, side: int, channels: int) -> Summary:
    return summarize(draft_network(network, classes, channels), side)


@functools.cache
def quickly(network: NetworkConfig, classes: int, side: int, channels: int = 3) -> tuple[int, int]:
    """Return the parameters and MACs of a network of the SpratNet family, from its configuration:
    in a tenth of the time that tracing it takes."""
    with torch.device("meta"):  # no weights are drawn
        built = build_network(network, classes, in_channels=channels)
    blueprint = blueprint_of(built)
    assert blueprint is not None
    macs, side = 0, math.ceil(side / blueprint.stem.conv.stride[0])
    macs += side**2 * blueprint.stem.conv.weight.numel()
    for part in (part for block in blueprint.blocks for part in block.convs):
        side = math.ceil(side / part.stride)
        convs = [window for window in part.windows if isinstance(window, nn.Conv2d)]
        macs += side**2 * sum(conv.weight.numel() for conv in [*convs, part.pointwise])
    return count_parameters(built), macs + blueprint.head.linear.weight.numel()


class Counter:
    """Counter of networks' costs, which counts each network once.

    Args:
        budget: limits.
        classes: number of classes.
        channels: channels of the images, 3 or 1.
    """

    def __init__(self, budget: BudgetConfig, classes: int, channels: int = 3) -> None:
        self.budget, self.classes, self.channels = budget, classes, channels
        self.limits = {name: limit for name, limit in budget.limits.items() if limit}
        self.count = functools.cache(self._count)

    def _count(self, network: NetworkConfig, side: int) -> Counted:
        """Return a network's costs on images of a side, compared with the limits."""
        stored_as = self.budget.stored_as
        summary = _summary(network, self.classes, side, self.channels)
        ram = summary.ram_bytes
        cost: Cost = {
            "parameters": summary.parameters,
            "macs": summary.macs,
            "receptive_field": summary.receptive_field,
            "flash": summary.flash_bytes[stored_as],
            "ram": None if ram is None else ram[stored_as],
        }
        return Counted(cost, self._excess(summary))

    def keeps_quickly(self, network: NetworkConfig, side: int) -> bool:
        """Return whether a network meets the limits on parameters and MACs."""
        parameters, macs = quickly(network, self.classes, side, self.channels)
        counted = {"max_parameters": parameters, "max_macs": macs}
        return all(value <= self.limits.get(name, value) for name, value in counted.items())

    def _excess(self, summary: Summary) -> dict[str, float]:
        limits, unplanned = dict(self.limits), {}
        if summary.plan is None and "max_ram" in limits:
            del limits["max_ram"]
            unplanned = {"max_ram": UNPLANNED}
        # verdicts are in the order of LIMITED
        names = [name for name in LIMITED if name in limits]
        verdicts = check_limits(limits, summary, self.budget.stored_as)
        return unplanned | {
            name: -verdict.margin for name, verdict in zip(names, verdicts, strict=True)
        }

    def in_words(self, network: NetworkConfig, side: int) -> str:
        """Return a network's costs with the limits that it breaks: "812 parameters (limit 500)
        and …"."""
        counted = self.count(network, side)
        units = {"macs": "MACs", "receptive_field": "px of receptive field", "flash": "bytes of "
                 "weights", "ram": "bytes of RAM"}  # fmt: skip
        parts = []
        for limit, excess in counted.excess.items():
            if excess <= 0:
                continue
            name = LIMITED[limit]
            value = counted.cost[name]  # type: ignore[literal-required]
            said = "not planned" if value is None else f"{value:,}"
            parts.append(f"{said} {units.get(name, name)} (limit {self.limits[limit]:,})")
        return " and ".join(parts)
