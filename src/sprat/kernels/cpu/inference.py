"""A trained network frozen for inference on a CPU with compiled kernels.

`Inference(network)` computes what `network(images)` computes in evaluation mode, as `inference.c`
explains. The network itself is its plain twin.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.kernels.cpu.build import load
from sprat.kernels.cpu.memory import fewest_buffers
from sprat.kernels.support import supported
from sprat.models.blocks import Block, Normed, check_images

_Pointer = ctypes.c_void_p
_Int = ctypes.c_int64


class _Window(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("map", "vector", "kernel", "stride")),
        ("weights", _Pointer),
    )


class _Product(ctypes.Structure):
    _fields_ = (("inputs", _Int), ("outputs", _Int), ("weights", _Pointer), ("bias", _Pointer))


class _Step(ctypes.Structure):
    _fields_ = (
        ("windows_count", _Int),
        ("windows", ctypes.POINTER(_Window)),
        ("first", _Product),
        ("second", _Product),
        ("residual", _Int),
        ("buffer", _Int),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("steps_count", "margin", "buffers", "stride")),
        ("steps", ctypes.POINTER(_Step)),
        ("head", _Product),
    )


class _Batch(ctypes.Structure):
    _fields_ = (
        *((name, _Int) for name in ("images", "h", "w")),
        ("pixels", _Pointer),
        *((name, _Int) for name in ("image_stride", "channel_stride")),
        *((name, _Int) for name in ("row_stride", "column_stride")),
        ("logits", _Pointer),
        ("memory", _Pointer),
        ("threads", _Int),
    )


@dataclass
class _Affine:
    """A matrix product over channels, plus a bias."""

    weight: Tensor  # outputs x inputs
    bias: Tensor

    @classmethod
    def folded(cls, conv: nn.Conv2d, bn: Any) -> "_Affine":
        """Fold a BatchNorm in evaluation mode into the convolution before it (window flattened)."""
        scale = bn.weight.double() * (bn.running_var.double() + bn.eps).rsqrt()
        shift = bn.bias.double() - bn.running_mean.double() * scale
        return cls(scale[:, None] * conv.weight.double().flatten(1), shift)

    def plus(self, other: "_Affine", lanes: int) -> "_Affine":
        """Return the sum of both; the other's inputs follow this one's, in vectors of their own."""
        first = F.pad(self.weight, (0, -self.weight.shape[1] % lanes))
        return _Affine(torch.cat((first, other.weight), 1), self.bias + other.bias)


@dataclass
class _Map:
    """The map that one step computes, and how."""

    windows: list[_Window]  # empty: the stem, which reads the image
    first: _Affine
    second: _Affine | None = None
    residual: int = -1

    @property
    def read(self) -> set[int]:
        """Numbers of the maps it is computed from."""
        return {window.map for window in self.windows} | {self.residual}


class Inference:
    """A network with its current weights and statistics, ready to classify images.

    Takes normalised float32 images B x C x H x W on the CPU, in any memory format; returns float32
    logits B x num_classes, without gradient. It uses torch's number of threads; neither that nor B
    changes a bit of an image's logits. Python threads that share an Inference take turns.

    Raises:
        NoKernels: the kernels cannot be built here, or do not support the network.
        ValueError: images have another shape.
    """

    def __init__(self, network: nn.Module) -> None:
        blueprint = supported(network)
        stem = blueprint.stem
        self._library = load("inference")
        self._library.memory_size.restype = _Int
        self._lanes: int = self._library.lanes()
        self._min_side: int = getattr(network, "min_side", 1)
        self._channels: int = stem.conv.in_channels
        linear = blueprint.head.linear
        self._classes: int = linear.out_features
        self._tensors: list[Tensor] = []  # kept alive: the structures point into them
        with torch.no_grad():
            maps = [_Map([], _Affine.folded(stem.conv, stem.norm))]
            for block in blueprint.blocks:
                self._add(maps, block)
            steps = (_Step * len(maps))(*map(self._step, maps))
            head = self._product(_Affine(linear.weight, linear.bias))
        for step, buffer in zip(steps, fewest_buffers([made.read for made in maps]), strict=True):
            step.buffer = buffer
        kernels = (window.kernel for made in maps for window in made.windows)
        margin = max(kernels, default=1) // 2
        buffers = 1 + max(step.buffer for step in steps)
        stride = stem.conv.stride[0]
        self._network = _Network(len(steps), margin, buffers, stride, steps, head)
        self._memory = torch.empty(0)
        self._turn = Lock()

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self._channels, self._min_side)
        images = images.float()
        batch, _, h, w = images.shape
        threads = torch.get_num_threads()
        logits = torch.empty(batch, self._network.head.outputs * self._lanes)
        network = ctypes.byref(self._network)
        with self._turn:
            size = threads * self._library.memory_size(network, _Int(h), _Int(w))
            if len(self._memory) < size:
                self._memory = torch.empty(size)
            places = logits.data_ptr(), self._memory.data_ptr()
            made = _Batch(batch, h, w, images.data_ptr(), *images.stride(), *places, threads)
            self._library.answer(network, ctypes.byref(made))
        return logits[:, : self._classes]

    def _add(self, maps: list[_Map], block: Block) -> None:
        """Append the maps of a block, whose input is the last map so far."""
        before, shortcut = len(maps) - 1, block.shortcut
        for conv in block.convs:
            product = _Affine.folded(conv.pointwise, conv.norm)
            has_windows = any(isinstance(part, nn.Conv2d) for part in conv.windows)
            # a projection's product is part of the last convolution's
            projected = isinstance(shortcut, Normed) and conv is block.convs[-1]
            follows = len(maps) - 1 > before and maps[-1].second is None
            if follows and not has_windows and not projected:
                maps[-1].second = product  # its own map is never written to memory
            else:
                inputs = conv.pointwise.in_channels
                windows = self._windows(conv.windows, len(maps) - 1, inputs, conv.stride)
                maps.append(_Map(windows, product))
        if isinstance(shortcut, Normed):
            inputs, stride = shortcut.conv.in_channels, shortcut.conv.stride[0]
            maps[-1].windows += self._windows([nn.Identity()], before, inputs, stride)
            folded = _Affine.folded(shortcut.conv, shortcut.norm)
            maps[-1].first = maps[-1].first.plus(folded, self._lanes)
        elif shortcut is not None:
            maps[-1].residual = before

    def _windows(
        self, parts: Sequence[nn.Module], read: int, channels: int, stride: int
    ) -> list[_Window]:
        """Return the depthwise windows of equal shares of the channels, vector by vector.

        Each vector has the largest window among its channels; smaller ones are padded with zeros.
        """
        share = channels // len(parts)
        kernels = [part.kernel_size[0] if isinstance(part, nn.Conv2d) else 1 for part in parts]
        largest = max(kernels)
        weights = torch.zeros(-(-channels // self._lanes) * self._lanes, largest, largest)
        for i, (part, kernel) in enumerate(zip(parts, kernels, strict=True)):
            own = part.weight[:, 0] if isinstance(part, nn.Conv2d) else torch.ones(share, 1, 1)
            weights[i * share : (i + 1) * share] = F.pad(own, [(largest - kernel) // 2] * 4)
        windows = []
        for vector, first in enumerate(range(0, channels, self._lanes)):
            last = min(first + self._lanes, channels) - 1
            kernel = max(kernels[first // share : last // share + 1])
            edge = (largest - kernel) // 2
            inner = slice(edge, largest - edge)
            place = self._place(weights[first : first + self._lanes, inner, inner].permute(1, 2, 0))
            windows.append(_Window(read, vector, kernel, stride, place))
        return windows

    def _product(self, affine: _Affine | None) -> _Product:
        if affine is None:
            return _Product()
        outputs, inputs = affine.weight.shape
        missing = -outputs % self._lanes
        weight = F.pad(affine.weight, (0, 0, 0, missing)).view(-1, self._lanes, inputs)
        places = self._place(weight.transpose(1, 2)), self._place(F.pad(affine.bias, (0, missing)))
        return _Product(inputs, len(weight), *places)

    def _step(self, made: _Map) -> _Step:
        windows = (_Window * len(made.windows))(*made.windows)
        products = self._product(made.first), self._product(made.second)
        return _Step(len(windows), windows, *products, made.residual)

    def _place(self, tensor: Tensor) -> int:
        """Return the address of the values in float32, valid as long as this object."""
        kept = tensor.float().contiguous()
        self._tensors.append(kept)
        return kept.data_ptr()
