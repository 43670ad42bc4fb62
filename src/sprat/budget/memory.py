"""Memory needed to run a network on one image, if maps are freed as soon as possible."""

import heapq
import math
from dataclasses import dataclass

from sprat.budget.graph import Op

VIEWS = frozenset(
    """getitem chunk split slice view reshape permute transpose unflatten flatten contiguous alias
    detach clone to dropout squeeze unsqueeze""".split()  # noqa: SIM905
)
IN_PLACE = frozenset(
    """batch_norm relu relu_ relu6 relu6_ hardtanh hardtanh_ gelu silu silu_ mish hardswish
    hardswish_ hardsigmoid sigmoid tanh leaky_relu elu add add_ sub mul mul_ div neg clamp
    layer_norm""".split()  # noqa: SIM905
)
MOST_STATES = 100_000  # above this, take the traced order


@dataclass(frozen=True)
class Peak:
    """The largest number of values held at once, and the op at which this happens."""

    values: int
    op: Op


def peak_activations(ops: list[Op]) -> Peak:
    """Return the lowest possible peak over all orders of execution, for a batch of one.

    An op holds what it reads and what it writes; a value is held until its last reader is done.
    BatchNorm, activations and sums overwrite an input that nothing reads later; views and dropout
    hold nothing. The image itself counts. If there are too many branches to try all orders, the
    rest follows the traced order.
    """
    buffer_of = _buffers(ops)
    steps = [place for place, op in enumerate(ops) if buffer_of[place] == place]
    number = {place: n for n, place in enumerate(steps)}
    sizes = [math.prod(ops[place].shape) for place in steps]
    reads = [sorted({number[buffer_of[i]] for i in ops[place].inputs}) for place in steps]
    readers: list[int] = [0] * len(steps)  # as bit sets
    for n, sources in enumerate(reads):
        for source in sources:
            readers[source] |= 1 << n
    readers[number[buffer_of[len(ops) - 1]]] |= 1 << len(steps)  # the result is read at the end

    def held(done: int) -> int:
        """Return the number of values that ops not yet done will read."""
        return sum(size for n, size in enumerate(sizes) if done >> n & 1 and readers[n] & ~done)

    def after(done: int, n: int) -> int:
        """Return the number of values held during step n."""
        dying = [s for s in reads[n] if not readers[s] & ~(done | 1 << n)]
        overwrites = ops[steps[n]].kind in IN_PLACE and any(sizes[s] == sizes[n] for s in dying)
        return held(done) + (0 if overwrites else sizes[n])

    everything = (1 << len(steps)) - 1
    queue = [(sizes[0], 1, 0)]  # peak so far, what is done, where the peak was
    best = {1: sizes[0]}
    seen = 0
    while queue:
        peak, done, where = heapq.heappop(queue)
        if done == everything:
            return Peak(peak, ops[steps[where]])
        if best[done] < peak:
            continue
        seen += 1
        ready = [
            n
            for n in range(len(steps))
            if not done >> n & 1 and all(done >> s & 1 for s in reads[n])
        ]
        for n in ready if seen < MOST_STATES else ready[:1]:
            now = after(done, n)
            reached = done | 1 << n
            if max(peak, now) < best.get(reached, math.inf):
                best[reached] = max(peak, now)
                heapq.heappush(queue, (max(peak, now), reached, n if now > peak else where))
    raise AssertionError("every graph has an order")


def _buffers(ops: list[Op]) -> list[int]:
    """Return, for each op, the op that computed its values: itself, unless it is only a view."""
    buffer_of: list[int] = []
    for place, op in enumerate(ops):
        is_view = op.kind in VIEWS and op.inputs
        buffer_of.append(buffer_of[op.inputs[0]] if is_view else place)
    return buffer_of
