"""Charts as places in pixels, for a template to write as SVG."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26  # px around the drawn area, for the ticks' labels

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled place on an axis, in px."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """Values from `low` to `high`, drawn from the pixel `start` to the pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        return _place(value, self.low, self.high, self.start, self.end)


@dataclass(frozen=True)
class Frame:
    """The size of a chart in px, and its axes; y counts downwards, as in SVG."""

    width: int
    height: int
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Line:
    """Points in px joined by a line. `look` is its class in the style sheet."""

    name: str
    look: str
    points: tuple[Point, ...]
    last: str  # what the last value is, in words


@dataclass(frozen=True)
class Box:
    """A rectangle in px, and what it says in words."""

    x: float
    y: float
    width: float
    height: float
    text: str


def frame(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    width: int = 340,
    height: int = 220,
    x_whole: bool = False,
    y_parts: int = 5,
) -> Frame:
    """Axes over these values: x exactly from its least to its greatest, y to round numbers.

    Args:
        x_whole: whether ticks on x stand at whole numbers alone.
        y_parts: at most so many between the ticks on y.
    """
    right, bottom = width - RIGHT, height - BOTTOM
    x_ticks = [tick for tick in _round(*x, 5, x_whole) if x[0] <= tick <= x[1]]
    y_ticks = _round(*y, y_parts)
    return Frame(
        width,
        height,
        _axis(x, (LEFT, right), x_ticks),
        _axis((y_ticks[0], y_ticks[-1]), (bottom, TOP), y_ticks),
    )


def line(frame: Frame, name: str, look: str, points: Sequence[Point], form: str) -> Line:
    """Points in the chart's values, joined; at least one. `form`: how the last is told."""
    places = tuple((frame.x.place(x), frame.y.place(y)) for x, y in points)
    return Line(name, look, places, form.format(points[-1][1]))


def box(frame: Frame, x: tuple[float, float], y: tuple[float, float], text: str) -> Box:
    """The rectangle between these values, a pixel apart from its neighbours."""
    left, right = map(frame.x.place, x)
    bottom, top = sorted(map(frame.y.place, y), reverse=True)
    return Box(left + 0.5, top, round(right - left - 1, 1), round(bottom - top, 1), text)


def _round(low: float, high: float, parts: int, whole: bool = False) -> list[float]:
    steps = [1, 2, 4, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    locator = MaxNLocator(parts, steps=steps, integer=whole, min_n_ticks=1)
    return [float(tick) for tick in locator.tick_values(low, high)]


def _axis(span: tuple[float, float], pixels: tuple[float, float], ticks: list[float]) -> Axis:
    places = tuple(Tick(_place(tick, *span, *pixels), f"{round(tick, 9):,g}") for tick in ticks)
    return Axis(*span, *pixels, places)


def _place(value: float, low: float, high: float, start: float, end: float) -> float:
    share = (value - low) / (high - low) if high > low else 0.5
    return round(start + share * (end - start), 1)
