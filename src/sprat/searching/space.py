"""Space of a search: designs of the SpratNet family, with settings of their training.

A point of the space has a value for each of its choices, as drawn by Optuna. It describes a shape
of any size: its `width` is relative to the widest network of this shape that meets every limit. So
nearly every point is a network that uses its budget rather than one that breaks it, and what TPE
learns about shapes holds at any size. Shapes that break a limit at any width are refused.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sprat.deferred import deferred
from sprat.errors import SpratError
from sprat.models import NetworkConfig
from sprat.searching.cost import Counted, Counter
from sprat.settings.config import Config

if TYPE_CHECKING:
    from optuna import distributions
    from optuna.distributions import BaseDistribution
else:
    distributions = deferred("optuna.distributions")

Point = Mapping[str, Any]
MOST_WIDTH = 64  # channels of the first stage, unless a limit allows fewer: those of SpratL
UNIT = 4  # channels by which widths differ
NEARLY = 0.05  # share of a limit that may be left unused, if using it would need another trace
NEAR = 4.0  # learning rates and decay are at most so many times as high or as low as the recipe's
SIDES = (1.0, 0.75, 0.5)  # sides of own pictures, relative to the given side
LEAST_SIDE, SIDE_UNIT = 16, 8  # pixels
# near all designs that the trials of the family found good (docs/explanation/what-helps.md)
S: dict[str, Any] = {
    "width": 1.0, "stem": 1.0, "depth1": 3, "depth2": 3, "depth3": 0, "ratio2": 1.85,
    "ratio3": 1.5, "stride2": 2, "stride3": 2, "kernels": "1,3,5,7", "widening": 1.5,
    "shortcut": 1,
}  # fmt: skip
FAMILY: tuple[dict[str, Any], ...] = (
    S,
    S | {"depth1": 2, "depth2": 3, "depth3": 2, "ratio2": 3.25, "ratio3": 1.55, "kernels": "3"},
    S | {"depth1": 2, "depth2": 3, "depth3": 2, "ratio2": 1.75},
    S | {"depth1": 4, "depth2": 4, "ratio2": 1.65},
)


@dataclass(frozen=True)
class Design:
    """A network, the side of its images, and settings of its training: {"optim.lr": 0.1, …}."""

    network: NetworkConfig
    side: int
    settings: dict[str, float] = field(hash=False)

    def apply(self, config: Config, *, own: bool) -> Config:
        """Return a config with this design.

        Args:
            own: whether the dataset is own pictures, which are read at the design's side.
        """
        pictures = dataclasses.replace(config.pictures, side=self.side) if own else config.pictures
        config = config.changed(self.settings)
        return dataclasses.replace(config, network=self.network, pictures=pictures)


class Space:
    """The designs of a search.

    Args:
        config: final recipe; learning rates and weight decay are searched near its values.
        sides: sides of the images in pixels, largest first.
    """

    def __init__(self, config: Config, sides: Sequence[int]) -> None:
        self.sides = tuple(sides)
        # larger pictures are halved at once: no budget allows for all of their pixels
        self.stem_strides = (2, 4) if max(sides) >= 128 else (1, 2)
        rates = {"optim.lr": config.optim.lr, "optim.weight_decay": config.optim.weight_decay}
        if config.optim.name == "muon":
            rates["optim.muon_lr"] = config.optim.muon_lr
        self.rates = {name: rate for name, rate in rates.items() if rate}  # 0: switched off

    def choices(self) -> "dict[str, BaseDistribution]":
        """Return each choice and its values, as Optuna describes them."""
        one_of = distributions.CategoricalDistribution
        whole, number = distributions.IntDistribution, distributions.FloatDistribution
        found: dict[str, BaseDistribution] = {
            "width": number(0.7, 1.0, step=0.1),
            "stem": one_of((1.0, 0.5)),
            "stem_stride": one_of(self.stem_strides),
            "depth1": whole(0, 5),
            "depth2": whole(1, 5),
            "depth3": whole(0, 4),
            "ratio2": number(1.0, 3.5, step=0.05),
            "ratio3": number(1.0, 3.5, step=0.05),
            "stride2": one_of((2, 1)),
            "stride3": one_of((2, 1)),
            "kernels": one_of(("1,3,5,7", "3", "5", "3,5", "3,7", "1,3")),
            "widening": number(1.0, 3.0, step=0.25),
            "shortcut": one_of((1, 0)),
        }
        if len(self.sides) > 1:
            found["side"] = one_of(self.sides)
        for name, rate in self.rates.items():
            found[name] = number(rate / NEAR, rate * NEAR, log=True)
        return found

    def family(self) -> list[dict[str, Any]]:
        """Return the points that a search starts with: designs of the SpratNet family, with the
        recipe's learning rates. They are prior knowledge only: like any other point, they are
        scaled to the budget and tried."""
        common = {"stem_stride": self.stem_strides[0], **self.rates}
        if len(self.sides) > 1:
            common["side"] = self.sides[0]
        return [point | common for point in FAMILY]

    def design(self, point: Point, counter: Counter) -> tuple[Design, Counted]:
        """Return the design of a point, with its costs. It breaks a limit only if its shape does at
        any width."""
        side = point.get("side", self.sides[0])
        widest = _widest(point, side, counter)
        network = network_of(point, max(1, math.floor(point["width"] * widest + 1e-9)))
        settings = {name: point[name] for name in self.rates}
        return Design(network, side, settings), counter.count(network, side)

    def smallest(self) -> tuple[NetworkConfig, int]:
        """Return the smallest network of the space, and the side of its images."""
        point = {
            "stem": 1.0, "stem_stride": self.stem_strides[-1], "depth1": 0, "depth2": 1,
            "depth3": 0, "ratio2": 1.0, "stride2": 2, "kernels": "3", "widening": 1.0,
            "shortcut": 1,
        }  # fmt: skip
        return network_of(point, UNIT), self.sides[-1]

    def check(self, counter: Counter) -> None:
        """Check that a network of the space meets the limits.

        Raises:
            SpratError: even the smallest network breaks one.
        """
        network, side = self.smallest()
        limits = {name for name in counter.limits if not name.startswith("min_")}
        excess = counter.count(network, side).excess
        if any(excess[name] > 0 for name in limits):
            raise SpratError(
                f"No network of the search space meets the limits: the smallest, {network} at "
                f"{side} px, has {counter.in_words(network, side)}. Raise the limits."
            )


def _widest(point: Point, side: int, counter: Counter) -> int:
    """Return the greatest width of a shape's first stage that meets the limits, or nearly the
    greatest; 1 if none does. Costs rise with the width."""
    low, high = 1, MOST_WIDTH
    while low < high:
        middle = (low + high + 1) // 2
        if counter.keeps_quickly(network_of(point, middle), side):
            low = middle
        else:
            high = middle - 1
    # the other costs need a trace, which takes long
    traced = counter.limits.keys() & {"max_ram", "max_flash"}
    kept, broken, width = (1, low + 1, low) if traced else (low, low, low)
    while broken - kept > 1:
        excess = counter.count(network_of(point, width), side).excess
        worst = max(excess[name] for name in traced)
        if -NEARLY <= worst <= 0:
            return width
        kept, broken = (width, broken) if worst < 0 else (kept, width)
        # memory is nearly proportional to the width
        width = min(max(math.floor(width / (1 + worst)), kept + 1), broken - 1)
    return kept


def network_of(point: Point, width: int) -> NetworkConfig:
    """Return the network of a point's shape whose first stage has about `width` channels: each
    stage has the nearest number that its kernels can share evenly."""
    # the kernel sizes share the channels evenly
    unit = math.lcm(UNIT, len(_kernels(point)))
    widths, depth, strides = [_nearest(width, unit)], [point["depth1"]], [point["stem_stride"]]
    exact: float = width
    for stage in (2, 3):
        if point[f"depth{stage}"]:
            exact *= point[f"ratio{stage}"]
            widths.append(_nearest(exact, unit))
            depth.append(point[f"depth{stage}"])
            strides.append(point[f"stride{stage}"])
    if point["stem"] < 1:  # a narrower stem is a stage without blocks
        widths.insert(0, _nearest(width * point["stem"], unit))
        depth.insert(0, 0)
        strides.insert(1, 1)
    return NetworkConfig(
        name="SpratNet",
        widths=tuple(widths),
        depth=tuple(depth),
        strides=tuple(strides),
        widening=(point["widening"],),
        kernels=_kernels(point),
        shortcut=() if point["shortcut"] else (0,),
    )


def sides_of(side: int, *, own: bool) -> tuple[int, ...]:
    """Return the sides of images to search, largest first: only `side`, except for own pictures,
    which can be read at any."""
    if not own:
        return (side,)
    sides: Iterable[int] = (SIDE_UNIT * round(side * share / SIDE_UNIT) for share in SIDES)
    return tuple(dict.fromkeys([side, *(each for each in sides if LEAST_SIDE <= each < side)]))


def _kernels(point: Point) -> tuple[int, ...]:
    return tuple(map(int, point["kernels"].split(",")))


def _nearest(width: float, unit: int) -> int:
    return unit * max(1, math.floor(width / unit + 0.5))
