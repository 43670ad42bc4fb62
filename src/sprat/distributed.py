"""Training one run with several processes started by torchrun, on one or several machines:

    torchrun --nproc-per-node 4 -m sprat train --output runs/large

Each process computes the gradient of its part of every batch; one all-reduce averages the
gradients, so all processes take the same step. Only the first evaluates, reports and writes.
Without torchrun there is one process, the first, and nothing here has any effect.
"""

import contextlib
import datetime
import json
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from sprat import torchrun
from sprat.errors import PeerEnded, SpratError
from sprat.runtime import choose_device, derive_seed

Value = TypeVar("Value")
PATIENCE = datetime.timedelta(hours=1)  # timeout while others wait for the first to evaluate


def rank() -> int:
    """Return the index of this process, counted from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else torchrun.rank()


def count() -> int:
    """Return the number of processes that train this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_first() -> bool:
    """Return whether this process is the one that evaluates, reports and writes."""
    return rank() == 0


@contextlib.contextmanager
def joined(device: str) -> Iterator[None]:
    """Join the processes that torchrun started, for the block.

    Args:
        device: the config's device; each process uses a GPU of its own.

    Raises:
        SpratError: there are fewer GPUs than processes, or the processes cannot be reached.
    """
    if torchrun.world_size() == 1:
        yield
        return
    backend = "gloo"
    if choose_device(device).type == "cuda":
        backend = "cpu:gloo,cuda:nccl"
        _take_gpu()
    with _words():
        store, this, of = next(rendezvous("env://", timeout=PATIENCE))
        # torchrun's store survives a restart, with the addresses of processes that have ended
        prefix = f"restart-{torchrun.restarts()}"
        store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=store, rank=this, world_size=of, timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()


def _take_gpu() -> None:
    here = torchrun.local_world_size()
    if here > torch.cuda.device_count():
        raise SpratError(
            f"torchrun started {here} processes on this machine, but torch finds "
            f"{torch.cuda.device_count()} GPUs. Use at most that many for --nproc-per-node."
        )
    torch.cuda.set_device(torchrun.local_rank())


def check_batch_size(batch_size: int) -> int:
    """Return how many images of each batch a process gets.

    Raises:
        SpratError: the batch cannot be divided evenly.
    """
    if batch_size % count():
        raise SpratError(
            f"batch_size is {batch_size}, which {count()} processes cannot divide evenly. Give a "
            f"multiple of {count()}."
        )
    return batch_size // count()


def part(batch: Tensor) -> Tensor:
    """Return this process's part of a batch, whose size `check_batch_size` has accepted."""
    return batch.chunk(count())[rank()] if count() > 1 else batch


def seed(*parts: int | str) -> int:
    """Return a seed as `derive_seed` does, but a different one for each process; that of the first
    is the same as without other processes."""
    return derive_seed(*parts, rank()) if count() > 1 and rank() else derive_seed(*parts)


def average(tensors: list[Tensor]) -> None:
    """Replace tensors of one dtype with their mean over all processes, with one all-reduce.

    Raises:
        PeerEnded: another process has ended.
    """
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with _words():
        dist.all_reduce(flat)
    _take(tensors, flat.div_(count()))


def share(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one dtype with those of the first process.

    Raises:
        PeerEnded: another process has ended.
    """
    if count() > 1:
        tensors = [tensor.detach() for tensor in tensors]
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with _words():
            dist.broadcast(flat, src=0)
        _take(tensors, flat)


def any_of(flag: bool) -> bool:
    """Return whether the flag is set in any process; all processes must call this.

    Raises:
        PeerEnded: another process has ended.
    """
    if count() == 1:
        return flag
    flags = torch.tensor(int(flag))  # on the CPU, so that no GPU is synchronised
    with _words():
        dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def wait() -> None:
    """Wait until all processes have called this.

    Raises:
        PeerEnded: another process has ended.
    """
    any_of(False)


def broadcast_value(value: Value | None) -> Value:
    """Return the value of the first process, which must be JSON; those of others are ignored.

    Raises:
        PeerEnded: another process has ended.
    """
    if count() == 1:
        assert value is not None
        return value
    text = json.dumps(value).encode()
    with _words():
        size = torch.tensor(len(text))
        dist.broadcast(size, src=0)
        content = torch.zeros(int(size), dtype=torch.uint8)
        if is_first():
            content.copy_(torch.frombuffer(bytearray(text), dtype=torch.uint8))
        dist.broadcast(content, src=0)
    received: Value = json.loads(bytes(content.tolist()))
    return received


def _take(tensors: Iterable[Tensor], flat: Tensor) -> None:
    begin = 0
    for tensor in tensors:
        tensor.copy_(flat[begin : begin + tensor.numel()].view(tensor.shape))
        begin += tensor.numel()


@contextlib.contextmanager
def _words() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0][:200]
        raise PeerEnded(
            f"Another process of this run has ended or cannot be reached ({reason}). Its own "
            "message, or torchrun's report, says why."
        ) from error
