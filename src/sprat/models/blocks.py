"""Description of a network by its blocks, for the compiled kernels and others that compute it
without calling its modules.

    class MyNet(PooledClassifier):
        def blocks(self) -> Blueprint | None: ...

    blueprint = blueprint_of(network)  # None: only the network itself can compute it

The description refers to the network's own modules, so its weights and statistics are read and
trained in place.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Normed:
    """A convolution and its BatchNorm: norm(conv(x))."""

    conv: nn.Conv2d
    norm: nn.BatchNorm2d


@dataclass(frozen=True)
class Separable:
    """A depthwise separable convolution: norm(pointwise(windows(x)))."""

    windows: tuple[nn.Conv2d | nn.Identity, ...]
    """A depthwise convolution for each equal share of the channels; nn.Identity leaves its share
    unchanged."""
    pointwise: nn.Conv2d
    """1x1."""
    norm: nn.BatchNorm2d

    @property
    def stride(self) -> int:
        """Stride of the windows."""
        return next((w.stride[0] for w in self.windows if isinstance(w, nn.Conv2d)), 1)


@dataclass(frozen=True)
class Block:
    """A sequence of separable convolutions, each followed by ReLU; the last ReLU comes after the
    sum with the shortcut, if there is one."""

    convs: tuple[Separable, ...]
    shortcut: Normed | nn.Identity | None = None
    """A strided 1x1 convolution and its BatchNorm, the block's input itself, or no shortcut."""


@dataclass(frozen=True)
class Head:
    """linear(dropout(x)) of the mean of each channel over the pixels."""

    dropout: nn.Dropout
    linear: nn.Linear

    def __call__(self, pooled: Tensor) -> Tensor:
        """Return the logits of pooled features B x width."""
        return self.linear(self.dropout(pooled))


@dataclass(frozen=True)
class Blueprint:
    """A whole network: the stem with ReLU, the blocks in sequence, the head."""

    stem: Normed
    blocks: tuple[Block, ...]
    head: Head


def blueprint_of(network: nn.Module) -> Blueprint | None:
    """Return the result of `network.blocks()`; None if there is no such method or it does not
    describe this network.

    `blocks` describes the class that defines it. A subclass that overrides another method of that
    class, such as `features`, computes something else, so it needs a `blocks` of its own.
    """
    kinds = type(network).__mro__
    author = next((i for i, kind in enumerate(kinds) if "blocks" in vars(kind)), None)
    if author is None or not callable(vars(kinds[author])["blocks"]):
        return None
    written_since = {name for kind in kinds[:author] for name in vars(kind)} | set(vars(network))
    overridden = (name for name in written_since if callable(getattr(kinds[author], name, None)))
    if any(not name.startswith("__") or name == "__call__" for name in overridden):
        return None
    return vars(kinds[author])["blocks"](network)


def in_a_row(layers: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of an nn.Sequential in order, including those of nested ones."""
    if type(layers) is not nn.Sequential:
        yield layers
        return
    for layer in layers:
        yield from in_a_row(layer)


def stem_of(layers: nn.Module) -> Normed | None:
    """Describe a sequence of convolution, BatchNorm and ReLU; None if it is anything else."""
    found: list[Any] = list(in_a_row(layers))
    if [type(layer) for layer in found] != [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]:
        return None
    return Normed(found[0], found[1])


def check_images(images: Tensor, channels: int, min_side: int = 1) -> None:
    """Raise ValueError unless `images` is B x channels x H x W, H and W at least `min_side`."""
    if images.ndim != 4 or images.shape[1] != channels or min(images.shape[2:]) < min_side:
        raise ValueError(
            f"images have shape {tuple(images.shape)}; expected B x {channels} x H x W with H and "
            f"W at least {min_side}: resize them or add the missing dimension"
        )
