"""A training step as one CUDA graph, so that a small network does not wait for its launches, and
one network next to another, where neither fills the device."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # eager ones: lazy initialisation must not end up in the graph


class Beside:
    """Work on a CUDA stream of its own, while the current one continues; elsewhere in its turn."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return what `work(*inputs)` gives; on CUDA it may be read only after `join`."""
        if self.stream is None:
            return work(*inputs)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            return work(*inputs)

    def join(self) -> None:
        """The current stream waits for all that was begun."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)


class CapturedStep:
    """Runs `step(*inputs) -> Tensor` eagerly at first, then replays what it did as a CUDA graph.

    Every call does the step once. From the fourth on nothing of it runs in Python: what it
    reads must be in tensors that stay where they are, and its random draws must come from the
    device's default generator or from `generators`; both may be seeded between calls. The
    result is overwritten by the next call.

    Args:
        step: takes CUDA tensors of the same shapes at every call.
        stream: to record on, and for the calls before. cuBLAS keeps a workspace for each stream,
            so graphs recorded on the same one must not be replayed at the same time.
        generators: of CUDA, besides the default one, that `step` draws from.
    """

    def __init__(
        self, step: Callable[..., Tensor], stream: torch.cuda.Stream, *generators: torch.Generator
    ) -> None:
        self.step, self.stream, self.generators = step, stream, generators
        self.graph: torch.cuda.CUDAGraph | None = None
        self.calls = 0

    def __call__(self, *inputs: Tensor) -> Tensor:
        if self.graph is None and self.calls < WARM_UP_CALLS:
            self.calls += 1
            return self._aside(*inputs)
        if self.graph is None:
            self._capture(*inputs)
        assert self.graph is not None
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.graph.replay()
        return self.output

    def _aside(self, *inputs: Tensor) -> Tensor:
        """Not on the current stream, as recording will not be."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            output = self.step(*inputs)
        torch.cuda.current_stream().wait_stream(self.stream)
        return output

    def _capture(self, *inputs: Tensor) -> None:
        self.inputs = [given.clone() for given in inputs]
        self.graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph, stream=self.stream):
            self.output = self.step(*self.inputs)
