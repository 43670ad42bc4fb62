"""The transforms of a training batch in a row."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sprat.augment import transforms


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """(images, generator) -> images, as in transforms.py; by default the brief's.

    flip, affine, brightness_contrast, hue_saturation_value and coarse_dropout are each image's
    probabilities, the rest limits.
    """

    flip: float = 0.5
    crop: int = 0  # pixels of padding; 0: no crop
    crop_mode: str = "reflect"  # beyond the border: "reflect" or "constant"
    affine: float = 0.5
    shift: float = 0.1  # of the side
    scale: float = 0.1
    rotate: float = 15.0  # degrees
    brightness_contrast: float = 0.5
    brightness: float = 0.2  # of full brightness
    contrast: float = 0.2
    hue_saturation_value: float = 0.5
    hue: float = 40.0  # degrees
    saturation: float = 30.0  # of 255
    value: float = 20.0  # of 255
    coarse_dropout: float = 0.3
    hole_smallest: int = 4  # pixels
    hole_largest: int = 8  # pixels
    cutout: int = 0  # pixels; 0: none

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        t = transforms
        if self.flip:
            images = t.horizontal_flip(images, generator, self.flip)
        if self.crop:
            images = t.pad_and_crop(images, generator, self.crop, self.crop_mode)
        if p := self.affine:
            geometry = self.shift, self.scale, self.rotate
            images = t.shift_scale_rotate(images, generator, *geometry, p, self.crop_mode)
        if p := self.brightness_contrast:
            tone = self.brightness, self.contrast
            images = t.brightness_contrast(images, generator, *tone, p)
        if p := self.hue_saturation_value:
            colour = self.hue, self.saturation, self.value
            images = t.hue_saturation_value(images, generator, *colour, p)
        if p := self.coarse_dropout:
            sizes = self.hole_smallest, self.hole_largest
            images = t.coarse_dropout(images, generator, *sizes, p)
        if self.cutout:
            images = t.cutout(images, generator, self.cutout)
        return images
