"""Compiled kernels, optional: for the training step, on a CPU and on an NVIDIA GPU, and for a
trained network's answers, on a CPU, where they are compiled at first use.

why_not(network, device, batch_size)  # None: the kernels can train it
prepare(device, bf16=True)  # compiles what is not compiled yet
fast = CompiledNetwork(network, bf16=True, threads=2)
logits = fast(images)  # as network(images) would, autograd included

frozen = Inference(network)
logits = frozen(images)  # as network.eval()(images) would, without autograd
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sprat.kernels.cpu.build import check_compiler, is_built, load, load_trunk, store
from sprat.kernels.cpu.inference import Inference
from sprat.kernels.cpu.plan import CPUTrunk
from sprat.kernels.support import LANES, NoKernels, check_momenta, supported

__all__ = ["LANES", "CompiledNetwork", "Inference", "NoKernels", "is_built", "prepare", "why_not"]


def why_not(network: nn.Module, device: torch.device, batch_size: int = LANES) -> str | None:
    """Return why the kernels cannot do a network's training steps on a device, in words; None where
    they can. Compiles nothing: that a compiler fails is found by `prepare`, and then known here.
    """
    if device.type not in ("cpu", "cuda"):
        return f"the compiled kernels are for CPUs and NVIDIA GPUs, not {device.type}"
    if batch_size % LANES:
        return f"batch_size is {batch_size}, not a multiple of {LANES}"
    try:
        if device.type == "cuda":
            _check_gpu(device)
        supported(network)
        if device.type == "cuda":
            check_momenta(network)
        else:
            check_compiler()
    except NoKernels as reason:
        return str(reason)
    return None


def prepare(
    device: torch.device, bf16: bool, announce: Callable[[str], None] = lambda what: None
) -> None:
    """Compile the kernels of a CPU that are not compiled yet, and announce that to `announce`.

    Raises:
        NoKernels: they cannot be compiled, or not be kept.
    """
    if device.type != "cpu":
        return
    # averaged weights get their BatchNorm statistics in fp32; evaluation has kernels of its own
    needed = {("trunk", store(bf16)), ("trunk", store(False)), ("inference",)}
    if not all(is_built(*library) for library in needed):
        announce("compiling kernels for this processor, once")
    load("inference")
    for kept in {bf16, False}:
        load_trunk(kept)


def _check_gpu(device: torch.device) -> None:
    if importlib.util.find_spec("triton") is None:
        raise NoKernels("Triton is not installed")
    if torch.cuda.get_device_capability(device) < (8, 0):
        raise NoKernels(
            f"{torch.cuda.get_device_name(device)} is older than the compiled kernels support"
        )


class CompiledNetwork(nn.Module):
    """A network computed by the kernels; has the same input and output as the network.

    Args:
        network: on a CPU or on an NVIDIA GPU; shares its parameters and statistics with this.
        bf16: keep maps in bf16; else all is fp32.
        threads: CPU threads; changes no bit of the result.
        frozen: only for evaluation, by the weights and statistics as they are now. On a CPU the
            kernels of inference then compute, in fp32 and with as many threads as torch has.

    In training B x C x H x W images with B a multiple of 16; other batches go through the
    network itself. In evaluation any number; no gradient comes back from there. On a GPU an
    evaluation goes through the network itself, unless it is frozen.

    Raises:
        NoKernels: they cannot be built here, or do not support the network.
    """

    def __init__(
        self, network: nn.Module, *, bf16: bool, threads: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.network, self.frozen, self.blueprint = network, frozen, supported(network)
        self.inference: Inference | None = None
        self.trunk: Any = None
        if next(network.parameters()).device.type == "cuda":
            from sprat.kernels.cuda.plan import GPUTrunk  # Triton is there only with CUDA

            check_momenta(network)
            self.trunk = GPUTrunk(network, torch.bfloat16 if bf16 else torch.float32, frozen=frozen)
        elif frozen:
            self.inference = Inference(network)
        else:
            self.trunk = CPUTrunk(network, bf16=bf16, threads=threads)

    def forward(self, images: Tensor) -> Tensor:
        if self.frozen or not self.blueprint.stem.norm.training:
            return self._evaluate(images)
        if len(images) % LANES:
            return self.network(images)
        return self.blueprint.head(self.trunk(images))

    def _evaluate(self, images: Tensor) -> Tensor:
        if self.inference is not None:
            return self.inference(images)
        if isinstance(self.trunk, CPUTrunk):
            return self.blueprint.head(self.trunk.evaluate(images))
        if not self.frozen or len(images) % LANES:
            return self.network(images)
        return self.blueprint.head(self.trunk(images))
