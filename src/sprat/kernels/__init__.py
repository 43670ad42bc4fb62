"""Compiled kernels, optional and built at first use: for the training step, on a CPU and on an
NVIDIA GPU, and for a trained network's answers, on a CPU.

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

from sprat.kernels.build import NoKernels, is_built, load, load_trunk, store
from sprat.kernels.inference import Inference
from sprat.kernels.trunk import LANES, Trunk, blocks_of

__all__ = ["LANES", "CompiledNetwork", "Inference", "NoKernels", "is_built", "why_not"]


def why_not(
    model: type[nn.Module],
    device: torch.device,
    batch_size: int,
    bf16: bool,
    preparing: Callable[[str], None] = lambda what: None,
) -> str | None:
    """Return why the kernels cannot do a training step here, in words; None where they can.

    Builds them if they are not built yet, and announces that to `preparing`.
    """
    if device.type not in ("cpu", "cuda"):
        return f"the compiled kernels are for CPUs and NVIDIA GPUs, not {device.type}"
    if batch_size % LANES:
        return f"batch_size is {batch_size}, not a multiple of {LANES}"
    if device.type == "cuda":
        return _why_not_gpu(model, device)
    # averaged weights get their BatchNorm statistics in fp32; evaluation has kernels of its own
    needed = {("trunk", store(bf16)), ("trunk", store(False)), ("inference",)}
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn
            blocks_of(model())
        if not all(is_built(*library) for library in needed):
            preparing("compiling kernels for this processor, once")
        load("inference")
        for kept in {bf16, False}:
            load_trunk(kept)
    except NoKernels as reason:
        return str(reason)
    return None


def _why_not_gpu(model: type[nn.Module], device: torch.device) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"{torch.cuda.get_device_name(device)} is older than the compiled kernels support"
    try:
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn
            blocks_of(model())
    except NoKernels as reason:
        return str(reason)
    return None


class CompiledNetwork(nn.Module):
    """A network through the kernels; takes what it takes, gives what it gives.

    Args:
        network: on a CPU or on an NVIDIA GPU; shares its parameters and statistics with this.
        bf16: keep maps in bf16; else all is fp32.
        threads: CPU threads; changes no bit of the result.
        frozen: only for evaluation, by the weights and statistics as they are now; on a GPU too
            it then goes through the kernels.

    In training B x 3 x H x W images with B a multiple of 16; other batches go through the
    network itself. In evaluation any number; no gradient comes back from there. On a GPU an
    evaluation goes through the network itself, unless it is frozen.

    Raises:
        NoKernels: they cannot be built here, or do not support the network.
    """

    def __init__(
        self, network: nn.Module, *, bf16: bool, threads: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.network: Any = network
        self.frozen = frozen
        self.trunk: Any = None
        if next(network.parameters()).device.type == "cuda":
            from sprat.kernels.gpu import GPUTrunk  # Triton is there only beside CUDA

            self.trunk = GPUTrunk(network, torch.bfloat16 if bf16 else torch.float32, frozen=frozen)
        else:
            self.trunk = Trunk(network, bf16=bf16, threads=threads)

    def forward(self, images: Tensor) -> Tensor:
        if not self.trunk.stem_norm.training:
            if images.device.type == "cuda":
                if self.frozen and len(images) % LANES == 0:
                    return self.network.classify(self.trunk(images))
                return self.network(images)
            return self.network.classify(self.trunk.evaluate(images))
        if len(images) % LANES:
            return self.network(images)
        return self.network.classify(self.trunk(images))
