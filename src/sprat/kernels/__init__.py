"""Optional compiled kernels: for training steps on a CPU or an NVIDIA GPU, and for inference on a
CPU. CPU kernels are compiled at first use.

why_not(network, device, batch_size)  # None: the kernels can train it
prepare(device, bf16=True)  # compile the kernels unless they are cached
fast = CompiledNetwork(network, bf16=True, threads=2)
logits = fast(images)  # as network(images), including autograd

frozen = Inference(network)
logits = frozen(images)  # as network.eval()(images), without autograd
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
    """Return why the kernels cannot train a network on a device; None if they can.

    Compiles nothing: a compiler that fails is found by `prepare`, and reported here from then on.
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
    """Compile the CPU kernels that are not cached yet, and announce it with `announce`.

    Raises:
        NoKernels: they cannot be compiled or cached.
    """
    if device.type != "cpu":
        return
    # BatchNorm statistics of averaged weights are computed in fp32; inference has its own kernels
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
    """A network computed by the kernels, with the same input and output as the network itself.

    Args:
        network: on a CPU or an NVIDIA GPU; its parameters and statistics are shared.
        bf16: keep maps in bf16; otherwise everything is fp32.
        threads: number of CPU threads, which does not change a bit of the result.
        frozen: for evaluation only, with the current weights and statistics. On a CPU this uses the
            inference kernels, in fp32 and with torch's number of threads.

    Takes images B x C x H x W. Training batches that are not a multiple of 16 are computed by the
    network itself. Evaluation has no gradient and takes any B; on a GPU it is computed by the
    network itself unless frozen and B is a multiple of 16.

    Raises:
        NoKernels: the kernels cannot be built here, or do not support the network.
    """

    def __init__(
        self, network: nn.Module, *, bf16: bool, threads: int, frozen: bool = False
    ) -> None:
        super().__init__()
        self.network, self.frozen, self.blueprint = network, frozen, supported(network)
        self.inference: Inference | None = None
        self.trunk: Any = None
        if next(network.parameters()).device.type == "cuda":
            from sprat.kernels.cuda.plan import GPUTrunk  # Triton is installed only with CUDA

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
