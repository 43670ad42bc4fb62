"""Receptive field, by the recurrence of Araujo et al. (Distill 2019) over a traced graph."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from sprat.budget.graph import Op
from sprat.errors import SpratError


@dataclass(frozen=True)
class Span:
    """Pixels along one axis that a value of a map depends on: the value at i depends on pixels i x
    jump + first to i x jump + last."""

    jump: int = 1
    first: int = 0
    last: int = 0

    @property
    def size(self) -> int:
        """Receptive field along this axis, in pixels."""
        return self.last - self.first + 1

    def behind_window(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> "Span":
        """Return the span after a convolution or pooling."""
        return Span(
            self.jump * stride,
            self.first - padding * self.jump,
            self.last + ((kernel - 1) * dilation - padding) * self.jump,
        )


@dataclass(frozen=True)
class Reach:
    """Pixels that the values of a map depend on, and which of its dimensions are height and
    width."""

    height: Span = Span()
    width: Span = Span()
    dims: tuple[int, int] = (2, 3)

    @property
    def size(self) -> int:
        """Side of the receptive field; the longer one if they differ."""
        return max(self.height.size, self.width.size)

    @property
    def jump(self) -> int:
        """Pixels between the fields of adjacent values; the larger number if the axes differ."""
        return max(self.height.jump, self.width.jump)


POINTWISE = frozenset(
    """batch_norm dropout relu relu_ relu6 relu6_ hardtanh hardtanh_ gelu silu silu_ mish hardswish
    hardswish_ hardsigmoid sigmoid tanh leaky_relu elu prelu add add_ sub mul mul_ div neg cat
    chunk split getitem clone contiguous detach to alias clamp clamp_ pow sqrt exp""".split()  # noqa: SIM905
)


def reaches(ops: list[Op]) -> list[Reach | None]:
    """Return the reach of every op; None after global pooling, even where that joins a map again.

    Raises:
        SpratError: the recurrence does not support an op; the message names its module.
    """
    found: list[Reach | None] = []
    for op in ops:
        if op.kind == "input":
            found.append(Reach())
            continue
        sources = [found[place] for place in op.inputs]
        if not sources:  # computed from parameters alone
            found.append(None)
            continue
        known = [source for source in sources if source is not None]
        found.append(_behind(op, _joined(op, known)) if len(known) == len(sources) else None)
    return found


def place_before_global_pooling(ops: list[Op], found: list[Reach | None]) -> int | None:
    """Return the index of the op whose map the last global pooling reads, or of the result if there
    is none; None if that already depends on the whole image."""
    last = len(ops) - 1
    for op, reach in zip(ops, found, strict=True):
        if reach is None and _pools_globally(op):
            last = op.inputs[0]
    return None if found[last] is None else last


def _pools_globally(op: Op) -> bool:
    return op.kind in ("mean", "sum", "amax", "adaptive_avg_pool2d", "adaptive_max_pool2d")


def _joined(op: Op, sources: list[Reach]) -> Reach:
    """Return the reach of a sum or concatenation: from the first to the last pixel of any
    branch."""
    first = sources[0]
    if len(sources) == 1:
        return first
    if len({(s.height.jump, s.width.jump, s.dims) for s in sources}) != 1:
        raise SpratError(
            f"Branches with different strides meet in {op.module or 'the network'}. Give them the "
            "same stride."
        )

    def hull(spans: list[Span]) -> Span:
        return Span(spans[0].jump, min(s.first for s in spans), max(s.last for s in spans))

    return replace(
        first, height=hull([s.height for s in sources]), width=hull([s.width for s in sources])
    )


def _behind(op: Op, at: Reach) -> Reach | None:
    if op.kind in POINTWISE:
        return at
    if op.kind == "conv2d" and at.dims == (2, 3):
        kernel = op.args[1][2:]
        stride, dilation = _pair(op.arg(3, 1)), _pair(op.arg(5, 1))
        padding = op.arg(4, 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True))
        return _windowed(at, kernel, stride, _pair(0 if padding == "valid" else padding), dilation)
    if op.kind in ("max_pool2d", "avg_pool2d") and at.dims == (2, 3):
        kernel = _pair(op.args[1])
        stride, padding = _pair(op.arg(2) or kernel), _pair(op.arg(3, 0))
        dilation = _pair(op.arg(4, 1) if op.kind == "max_pool2d" else 1)
        return _windowed(at, kernel, stride, padding, dilation)
    if op.kind == "slice":
        dim, start, step = op.arg(1, 0), op.arg(2) or 0, op.arg(4, 1)
        return _along(at, dim, lambda span: _sliced(span, start, step))
    if op.kind == "pad":
        left, _, top, _ = (*op.args[1], 0, 0, 0, 0)[:4]
        at = _along(at, 3, lambda span: span.behind_window(1, 1, left))
        return _along(at, 2, lambda span: span.behind_window(1, 1, top))
    if _pools_globally(op):
        return _pooled(op, at)
    if op.kind in ("permute", "transpose", "unflatten", "flatten"):
        return _moved(op, at)
    if op.kind == "layer_norm" and min(at.dims) == 1 and len(op.args[1]) == 1 and 3 not in at.dims:
        return at  # over the channels, which come last
    if op.kind == "linear" and len(op.shape) - 1 not in at.dims:
        return at
    raise SpratError(
        f"sprat cannot compute the receptive field of {op.kind} (in "
        f"{op.module or 'the network itself'}). Replace that operation."
    )


def _windowed(
    at: Reach,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Reach:
    height, width = (
        span.behind_window(*window)
        for span, *window in zip(
            (at.height, at.width), kernel, stride, padding, dilation, strict=True
        )
    )
    return replace(at, height=height, width=width)


def _sliced(span: Span, start: int, step: int) -> Span:
    if start < 0:
        raise SpratError(
            "sprat cannot compute the receptive field of slices from the end. Slice from the start."
        )
    offset = start * span.jump
    return Span(span.jump * step, span.first + offset, span.last + offset)


def _along(at: Reach, dim: int, change: Callable[[Span], Span]) -> Reach:
    if dim == at.dims[0]:
        return replace(at, height=change(at.height))
    return replace(at, width=change(at.width)) if dim == at.dims[1] else at


def _pooled(op: Op, at: Reach) -> Reach | None:
    if op.kind.startswith("adaptive"):
        if _pair(op.args[1]) == (1, 1):
            return None
    elif {dim % 4 for dim in _tuple(op.arg(1, ()))} >= set(at.dims) or not op.arg(1):
        return None
    elif not {dim % 4 for dim in _tuple(op.arg(1))} & set(at.dims) and op.arg(2, False):
        return at  # over the channels, which are kept as one
    raise SpratError(
        f"sprat cannot compute the receptive field of {op.kind} over part of a map (in "
        f"{op.module or 'the network itself'}). Replace that operation."
    )


def _moved(op: Op, at: Reach) -> Reach:
    """Return the reach after dimensions were moved, split or joined."""
    if op.kind == "permute":
        order = [dim % len(op.shape) for dim in op.args[1]]
        return replace(at, dims=(order.index(at.dims[0]), order.index(at.dims[1])))
    if op.kind == "transpose":
        swap = [op.args[1] % len(op.shape), op.args[2] % len(op.shape)]
        swapped = {swap[0]: swap[1], swap[1]: swap[0]}
        return replace(at, dims=tuple(swapped.get(dim, dim) for dim in at.dims))
    if op.kind == "unflatten":
        new = len(op.args[2]) - 1
        if op.args[1] in at.dims:
            raise SpratError(
                f"The height or width of a map is split in {op.module or 'the network'}. Replace "
                "that operation."
            )
        return replace(at, dims=tuple(dim + new * (dim > op.args[1]) for dim in at.dims))
    start, end = op.arg(1, 0), op.arg(2, -1)
    if end == -1 or any(start <= dim <= end for dim in at.dims):
        raise SpratError(
            f"A map is flattened before it is pooled in {op.module or 'the network'}. Pool it "
            "first."
        )
    return replace(at, dims=tuple(dim - (end - start) * (dim > end) for dim in at.dims))


def _tuple(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    value = _tuple(value)
    return value * 2 if len(value) == 1 else value
