"""Augmentation of training images: its settings, the order of transforms and their random draws.

A transform is `(images, generator, …) -> images`, as in transforms.py. Each image gets its own draw
from `generator`, which is on the images' device; `p` is the probability that an image is changed.
To add a transform, add its settings and its place in the order to `AugmentConfig`, and a function
below.

Limits and distributions are those of Albumentations 2.0.8, which reference.py uses for the same.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from sprat.deferred import deferred
from sprat.settings.field import Table, probability_setting, refused, setting
from sprat.threads import MOST_THREADS

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprat.augment import transforms as t
else:
    torch, t = deferred("torch"), deferred("sprat.augment.transforms")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig(Table, name="augment"):
    """Augmentation of training images."""

    engine: Literal["batched", "albumentations"] = setting(
        "batched",
        "batched: whole batches at once; albumentations: image by image in worker processes "
        "(needs sprat[albumentations])",
    )
    workers: int = setting(
        0,
        "Worker processes of the albumentations engine",
        at_least=0,
        at_most=MOST_THREADS,
        zero="one per CPU thread",
    )
    flip: float = probability_setting(0.5, "Probability of a horizontal flip")
    flip_mode: Literal["random", "alternating"] = setting(
        "random",
        "random: flip at random; alternating: flip each image every other epoch (airbench94)",
    )
    crop: int = setting(
        4,
        "Padding on each side before a random crop",
        at_least=0,
        at_most=16,
        unit="pixels",
        zero="no crop",
    )
    crop_mode: Literal["reflect", "constant"] = setting(
        "reflect", "Fill for pixels beyond the border: reflect mirrors the image, constant is black"
    )
    affine: float = probability_setting(0.0, "Probability of a shift, scaling and rotation")
    shift: float = setting(
        0.1, "Largest shift, as a fraction of the image's side", at_least=0, at_most=0.5
    )
    scale: float = setting(
        0.1, "Largest change of scale: 0.1 scales by 0.9 to 1.1", at_least=0, at_most=0.9
    )
    rotate: float = setting(15.0, "Largest rotation", at_least=0, at_most=180, unit="degrees")
    brightness_contrast: float = probability_setting(
        0.0, "Probability of a change of brightness and contrast"
    )
    brightness: float = setting(
        0.2,
        "Largest change of brightness, as a fraction of full brightness",
        at_least=0,
        at_most=1,
    )
    contrast: float = setting(
        0.2, "Largest change of contrast: 0.2 multiplies by 0.8 to 1.2", at_least=0, at_most=1
    )
    hue_saturation_value: float = probability_setting(
        0.0, "Probability of a change of hue, saturation and value"
    )
    hue: float = setting(40.0, "Largest change of hue", at_least=0, at_most=180, unit="degrees")
    saturation: float = setting(
        30.0, "Largest change of saturation, on a scale of 0 to 255", at_least=0, at_most=255
    )
    value: float = setting(
        20.0, "Largest change of value, on a scale of 0 to 255", at_least=0, at_most=255
    )
    coarse_dropout: float = probability_setting(
        0.0, "Probability of one black rectangle inside the image"
    )
    hole_smallest: int = setting(
        4, "Smallest side of that rectangle", at_least=1, at_most=512, unit="pixels"
    )
    hole_largest: int = setting(
        8, "Largest side of that rectangle", at_least=1, at_most=512, unit="pixels"
    )
    cutout: int = setting(
        0,
        "Side of a black square centred anywhere in every image",
        at_least=0,
        at_most=512,
        unit="pixels",
        zero="none",
    )
    sides: tuple[int, ...] = setting(
        (),
        "Image side in pixels for each epoch, the last for all later epochs; empty: the original "
        "side",
        at_least=8,
        at_most=512,
        unit="pixels",
    )

    def check_together(self) -> None:
        if self.flip_mode == "alternating" and self.flip != 0.5:
            raise refused(
                "augment.flip",
                self.flip,
                "0.5, since augment.flip_mode is 'alternating'",
                "Leave augment.flip out, or set augment.flip_mode to 'random'.",
            )
        if self.hole_largest < self.hole_smallest:
            raise refused(
                "augment.hole_largest",
                self.hole_largest,
                f"at least augment.hole_smallest (= {self.hole_smallest})",
                "Raise the one or lower the other.",
            )
        if self.engine == "albumentations":
            self._check_albumentations()

    def _check_albumentations(self) -> None:
        """Check that only transforms that reference.py has are enabled.

        Raises:
            SpratError: another one is.
        """
        for name, off in (("crop", 0), ("cutout", 0), ("flip_mode", "random")):
            if (value := getattr(self, name)) != off:
                raise refused(
                    f"augment.{name}",
                    value,
                    f"{off!r}, since the engine 'albumentations' does not support it",
                    "Change it, or set augment.engine to 'batched'.",
                )

    def side_of(self, epoch: int) -> int:
        """Return the side of an epoch's images in pixels (epochs count from 0); 0: the original
        side."""
        return self.sides[min(epoch, len(self.sides) - 1)] if self.sides else 0

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Apply every enabled transform, in this order.

        The alternating flip is not among them: `Batches` applies it, since it counts the epochs.
        """
        if self.flip and self.flip_mode == "random":
            images = horizontal_flip(images, generator, self.flip)
        if self.crop:
            images = pad_and_crop(images, generator, self.crop, self.crop_mode)
        if p := self.affine:
            geometry = self.shift, self.scale, self.rotate
            images = shift_scale_rotate(images, generator, *geometry, p, self.crop_mode)
        if p := self.brightness_contrast:
            images = brightness_contrast(images, generator, self.brightness, self.contrast, p)
        if p := self.hue_saturation_value:
            colour = self.hue, self.saturation, self.value
            images = hue_saturation_value(images, generator, *colour, p)
        if p := self.coarse_dropout:
            sizes = self.hole_smallest, self.hole_largest
            images = coarse_dropout(images, generator, *sizes, p)
        if self.cutout:
            images = cutout(images, generator, self.cutout)
        return images


def horizontal_flip(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability `p`."""
    return t.mirror(images, _chosen(images, generator, p))


def pad_and_crop(
    images: Tensor, generator: torch.Generator, padding: int = 4, mode: str = "reflect"
) -> Tensor:
    """Pad each side by `padding` pixels, then crop a random window of the original size.

    Args:
        mode: "reflect" mirrors the image into the padding, "constant" fills it with 0.
    """
    if padding == 0:
        return images
    height, width = images.shape[2:]
    padded = t.pad(images, padding, mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # B, C, 2p+1, 2p+1, H, W
    top, left = torch.randint(
        2 * padding + 1, (2, len(images)), generator=generator, device=images.device
    )
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def shift_scale_rotate(
    images: Tensor,
    generator: torch.Generator,
    shift: float = 0.1,
    scale: float = 0.1,
    rotate: float = 15.0,
    p: float = 0.5,
    mode: str = "reflect",
) -> Tensor:
    """Shift, scale and rotate in one resampling, each axis with its own shift and scale.

    Args:
        shift: largest shift as a fraction of the side; shifts are truncated to whole pixels.
        scale: largest change of scale: 0.1 scales by 0.9 to 1.1.
        rotate: largest angle in degrees.
        mode: as in `transforms.affine`.
    """
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 5)
    height, width = images.shape[2:]
    shifts = torch.stack((draws[0] * (shift * width), draws[1] * (shift * height)), 1).trunc_()
    scales = 1 + scale * draws[2:4].T
    change = functools.partial(t.affine, mode=mode)
    return t.on_some(images, chosen, change, shifts, scales, rotate * draws[4])


def brightness_contrast(
    images: Tensor,
    generator: torch.Generator,
    brightness: float = 0.2,
    contrast: float = 0.2,
    p: float = 0.5,
) -> Tensor:
    """Multiply by 1 ± `contrast`, then add up to ± `brightness` of full brightness."""
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 2)
    changes = draws[0] * brightness, draws[1] * contrast
    return t.on_some(images, chosen, t.adjust_brightness_contrast, *changes)


def hue_saturation_value(
    images: Tensor,
    generator: torch.Generator,
    hue: float = 40.0,
    saturation: float = 30.0,
    value: float = 20.0,
    p: float = 0.5,
) -> Tensor:
    """Change hue by up to `hue` degrees, and saturation and value by up to that much (of 255)."""
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 3)
    changes = draws[0] * hue, draws[1] * saturation, draws[2] * value
    return t.on_some(images, chosen, t.adjust_hue_saturation_value, *changes)


def coarse_dropout(
    images: Tensor,
    generator: torch.Generator,
    smallest: int = 4,
    largest: int = 8,
    p: float = 0.3,
) -> Tensor:
    """Blacken one rectangle inside the image, `smallest` to `largest` pixels high and wide."""
    chosen = _chosen(images, generator, p)
    draws = torch.rand(len(images), 4, generator=generator, device=images.device)
    first, end = [], []
    for axis, side in enumerate(images.shape[2:]):
        size = smallest + (draws[:, axis] * (largest - smallest + 1)).long()
        size = size.clamp_(max=side)
        first.append((draws[:, 2 + axis] * (side - size + 1)).long())
        end.append(first[axis] + size)
    return t.on_some(images, chosen, t.erase, torch.stack(first, 1), torch.stack(end, 1))


def cutout(images: Tensor, generator: torch.Generator, size: int = 8, p: float = 1.0) -> Tensor:
    """Blacken a square of `size` pixels centred anywhere, clipped at the border (Cutout, arXiv
    1708.04552)."""
    chosen = _chosen(images, generator, p)
    draws = torch.rand(len(images), 2, generator=generator, device=images.device)
    centres = [draws[:, axis] * side for axis, side in enumerate(images.shape[2:])]
    first = torch.stack(centres, 1).long() - size // 2
    return t.on_some(images, chosen, t.erase, first, first + size)


def _chosen(images: Tensor, generator: torch.Generator, p: float) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < p


def _uniform(images: Tensor, generator: torch.Generator, draws: int) -> Tensor:
    """Draw `draws` x B numbers, uniform in [-1, 1)."""
    return torch.empty(draws, len(images), device=images.device).uniform_(
        -1, 1, generator=generator
    )
