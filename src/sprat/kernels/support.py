"""Networks that the compiled kernels support: those whose parts they compute as torch does."""

import math
from collections.abc import Iterator

from torch import nn

from sprat.models.blocks import Block, Blueprint, Normed, Separable, blueprint_of

LANES = 16  # images per widest vector; batches are multiples of it
MAX_KERNEL = 7  # px
IMAGE_CHANNELS = (1, 3)  # grey and colour


class NoKernels(Exception):
    """The kernels cannot be used here; the message says why."""


def supported(network: nn.Module) -> Blueprint:
    """Return the blueprint of a network that the kernels support.

    Raises:
        NoKernels: the network has no blueprint, or the kernels do not support something in it.
    """
    name, blueprint = type(network).__name__, blueprint_of(network)
    if blueprint is None:
        raise _unsupported(name)
    stem = blueprint.stem.conv
    width = stem.out_channels
    if stem.in_channels not in IMAGE_CHANNELS:
        raise _unsupported(f"images of {stem.in_channels} channels")
    if not _is_conv(stem, stem.in_channels, width, 3, stem.stride[0]):
        raise _unsupported(f"the stem of {name}")
    _check_norm(blueprint.stem.norm, width)
    for block in blueprint.blocks:
        width = _check_block(block, width)
    dropout, linear = blueprint.head.dropout, blueprint.head.linear
    if type(dropout) is not nn.Dropout:
        raise _unsupported(dropout)
    if type(linear) is not nn.Linear or linear.bias is None or linear.in_features != width:
        raise _unsupported(linear)
    described = [parameter for part in _parts(blueprint) for parameter in part.parameters()]
    if len(described) > len(set(described)):
        raise _unsupported(f"weights that two layers of {name} share")
    if set(described) != set(network.parameters()):
        raise NoKernels(f"the blocks that {name} describes do not hold all of its parameters")
    return blueprint


def check_momenta(network: nn.Module) -> None:
    """Check that no BatchNorm counts steps, since on a GPU no step is counted on the CPU.

    Raises:
        NoKernels: a BatchNorm averages its statistics over all steps.
    """
    norms = (module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    if any(norm.momentum is None for norm in norms):
        raise NoKernels("on a GPU the compiled kernels do not support BatchNorm2d(momentum=None)")


def _unsupported(what: object) -> NoKernels:
    return NoKernels(f"the compiled kernels do not support {what}")


def _is_conv(
    conv: nn.Module, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> bool:
    if type(conv) is not nn.Conv2d or conv.bias is not None or conv.padding_mode != "zeros":
        return False
    sizes = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    expected = tuple((n, n) for n in (kernel, stride, kernel // 2, 1))
    counts = conv.in_channels, conv.out_channels, conv.groups
    return sizes == expected and counts == (inputs, outputs, groups)


def _check_norm(norm: nn.Module, width: int) -> None:
    if type(norm) is not nn.BatchNorm2d:
        raise _unsupported(type(norm).__name__)
    if norm.num_features != width or not (norm.affine and norm.track_running_stats):
        raise _unsupported(norm)


def _check_normed(normed: Normed, inputs: int, outputs: int, stride: int) -> None:
    if not _is_conv(normed.conv, inputs, outputs, 1, stride):
        raise _unsupported(normed.conv)
    _check_norm(normed.norm, outputs)


def _check_block(block: Block, inputs: int) -> int:
    """Check a block; return the number of channels of its output."""
    width = inputs
    for conv in block.convs:
        _check_windows(conv, width)
        _check_normed(Normed(conv.pointwise, conv.norm), width, conv.pointwise.out_channels, 1)
        width = conv.pointwise.out_channels
    stride = math.prod(conv.stride for conv in block.convs)
    if isinstance(block.shortcut, Normed):
        _check_normed(block.shortcut, inputs, width, stride)
    elif block.shortcut is not None and (stride > 1 or inputs != width):
        raise _unsupported(f"the sum of {inputs} and {width} channels, or of two sizes of maps")
    if not block.convs:
        raise _unsupported("a block without convolutions")
    return width


def _check_windows(conv: Separable, width: int) -> None:
    count = len(conv.windows)
    if not count or width % count:
        raise _unsupported(f"{count} windows over {width} channels")
    share = width // count
    for window in conv.windows:
        if type(window) is nn.Identity:
            continue
        kernel = window.kernel_size[0] if isinstance(window, nn.Conv2d) else 0
        if kernel > MAX_KERNEL:
            raise NoKernels(
                f"the compiled kernels have no windows above {MAX_KERNEL} pixels, and one of the "
                f"network's has {kernel}"
            )
        if kernel % 2 == 0:
            raise _unsupported(window)
        if not _is_conv(window, share, share, kernel, conv.stride, groups=share):
            raise _unsupported(window)


def _parts(blueprint: Blueprint) -> Iterator[nn.Module]:
    """Yield every module with parameters."""
    yield from (blueprint.stem.conv, blueprint.stem.norm)
    for block in blueprint.blocks:
        for conv in block.convs:
            yield from (*conv.windows, conv.pointwise, conv.norm)
        if isinstance(block.shortcut, Normed):
            yield from (block.shortcut.conv, block.shortcut.norm)
    yield blueprint.head.linear
