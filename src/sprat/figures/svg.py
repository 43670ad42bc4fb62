"""Figures as SVG: positions in pixels, for a template to write out."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.ticker import MaxNLocator

from sprat.figures.data import Calibration, Curve, Curves

LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 26  # px around the plot, for tick labels

Point = tuple[float, float]


@dataclass(frozen=True)
class Tick:
    """A labelled position on an axis, in px."""

    place: float
    label: str


@dataclass(frozen=True)
class Axis:
    """An axis with values from `low` to `high`, drawn from pixel `start` to pixel `end`."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[Tick, ...]

    def place(self, value: float) -> float:
        """Return the pixel of a value, rounded to a tenth."""
        return _place(value, self.low, self.high, self.start, self.end)


@dataclass(frozen=True)
class Frame:
    """Size of a chart in px, and its axes; y counts downwards, as in SVG."""

    width: int
    height: int
    x: Axis
    y: Axis


@dataclass(frozen=True)
class Line:
    """Points in px, joined by a line.

    look: its class in the style sheet. first, last: first and last value, as text.
    """

    name: str
    look: str
    points: tuple[Point, ...]
    first: str
    last: str


@dataclass(frozen=True)
class Box:
    """A rectangle in px. text: what it shows."""

    x: float
    y: float
    width: float
    height: float
    text: str


@dataclass(frozen=True)
class Chart:
    """Lines over epochs. text: what they show."""

    title: str
    frame: Frame
    lines: tuple[Line, ...]
    text: str


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Accuracy by confidence and, below it, the number of images by confidence.

    marks: at the mean confidence.
    """

    accuracy: Frame
    hits: tuple[Box, ...]
    marks: tuple[Box, ...]
    histogram: Frame
    counts: tuple[Box, ...]


def curve_charts(curves: Curves) -> tuple[Chart, Chart, Chart]:
    """Return charts of a run's loss, accuracy and learning rate by epoch."""
    on = "val" if curves.on == "val" else "training images"
    return (
        _chart(curves, "Training loss", (curves.loss,), "{:.4f}"),
        _chart(curves, f"Accuracy on {on}, %", curves.accuracy, "{:.2f} %", factor=100),
        _chart(curves, "Learning rate", (curves.learning_rate,), "{:.4g}", low=0),
    )


def _chart(
    run: Curves,
    title: str,
    curves: Sequence[Curve],
    form: str,
    factor: float = 1,
    low: float | None = None,
) -> Chart:
    """Return one chart.

    form: format of a value as text. low: where the axis starts; by default near the lowest value.
    """
    values = [factor * value for curve in curves for _, value in curve.points]
    axes = _frame(run.epochs, (min(values) if low is None else low, max(values)), x_whole=True)
    lines = tuple(_line(axes, curve, form, factor) for curve in curves)
    first, last = run.epochs
    said = "; ".join(f"{line.name} from {line.first} to {line.last}" for line in lines)
    return Chart(title, axes, lines, f"{title}, by epoch, {first} to {last}: {said}")


def _line(axes: Frame, curve: Curve, form: str, factor: float) -> Line:
    values = [factor * value for _, value in curve.points]
    places = tuple(
        (axes.x.place(epoch), axes.y.place(value))
        for (epoch, _), value in zip(curve.points, values, strict=True)
    )
    first, last = form.format(values[0]), form.format(values[-1])
    return Line(curve.name, curve.role, places, first, last)


def reliability_diagram(calibration: Calibration) -> ReliabilityDiagram:
    """Return the diagram of accuracy by confidence."""
    square = _frame((0, 100), (0, 100), height=320)
    flat = _frame((0, 100), (0, max(b.n for b in calibration.bins)), height=130, y_parts=3)
    hits, marks, counts = [], [], []
    for each in calibration.bins:
        span = (100 * each.low, 100 * each.high)
        accuracy, confidence = 100 * each.accuracy, 100 * each.confidence
        said = (
            f"{span[0]:.0f} to {span[1]:.0f} %: {each.n:,} images, confidence {confidence:.1f} %, "
            f"accuracy {accuracy:.1f} %"
        )
        hits.append(_box(square, span, (0, accuracy), said))
        marks.append(_box(square, span, (confidence, confidence), said))
        counts.append(_box(flat, span, (0, each.n), said))
    return ReliabilityDiagram(square, tuple(hits), tuple(marks), flat, tuple(counts))


def _frame(
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    width: int = 340,
    height: int = 220,
    x_whole: bool = False,
    y_parts: int = 5,
) -> Frame:
    """Return axes for these values: x exactly from the lowest to the highest, y to round numbers.

    Args:
        x_whole: whether ticks on x are whole numbers only.
        y_parts: largest number of intervals between ticks on y.
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


def _box(frame: Frame, x: tuple[float, float], y: tuple[float, float], text: str) -> Box:
    """Return the rectangle between these values, a pixel apart from its neighbours."""
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
