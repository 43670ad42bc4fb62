"""A training step as a CUDA graph, so that a small network does not wait for kernel launches, and
work on a second stream, where one network does not fill the GPU."""

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP_CALLS = 3  # eager, to keep lazy initialisation out of the graph


class SideStream:
    """Work on a CUDA stream of its own, in parallel to the current one; on a CPU, done at once."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self, work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return the result of `work(*inputs)`, which on CUDA may be read only after `join`."""
        if self.stream is None:
            return work(*inputs)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            return work(*inputs)

    def join(self) -> None:
        """Make the current stream wait for everything begun."""
        if self.stream is not None:
            torch.cuda.current_stream().wait_stream(self.stream)


class CapturedStep:
    """Run `step(*inputs) -> Tensor` eagerly at first, then replay it as a CUDA graph.

    Each call does the step once. From the fourth call on, none of it runs in Python: everything it
    reads must be in tensors that stay in place, and it must draw random numbers from the device's
    default generator or from `generators`, which may be seeded between calls. The next call
    overwrites the result.

    Args:
        step: takes CUDA tensors of the same shapes at every call.
        stream: to capture on, and for the calls before. cuBLAS has a workspace for each stream, so
            graphs captured on the same stream must not be replayed at the same time.
        generators: other CUDA generators that `step` draws from.
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
        """Run eagerly on another stream than the current one, as capturing requires too."""
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
