"""Augmentation image by image through Albumentations 2.0.8, which the batched pipeline must agree
with. The only file that imports it."""

import functools
import importlib.util
import os
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sprat.augment.pipeline import AugmentConfig
from sprat.errors import SpratError


def require_albumentations() -> None:
    """Check that Albumentations is installed.

    Raises:
        SpratError: it is not.
    """
    if importlib.util.find_spec("albumentations") is None:
        raise SpratError(
            "augment.engine is 'albumentations', but Albumentations is not installed. Set "
            "augment.engine to 'batched', or install Albumentations with pip install "
            "'sprat[albumentations]'"
        )


class AlbumentationsPipeline:
    """(images uint8 B x C x H x W, seed) -> images of the same shape, uint8.

    Args:
        augment: its probabilities and limits. Crop, cutout and alternating flips are not supported.
        channels: of the images: 3, or 1 of grey ones, which have neither hue nor saturation.
    """

    def __init__(self, augment: AugmentConfig, channels: int = 3) -> None:
        self.augment, self.coloured = augment, channels == 3

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        # set_random_seed would give every transform a generator in the same state, so that their
        # coins would fall together
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        augmented = [self.compose(image=image)["image"] for image in pixels]
        return torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)

    @functools.cached_property
    def compose(self) -> Any:
        """The `albumentations.Compose`; made at first use, in the worker."""
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the network at import
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # the workers are the threads
        by = self.augment
        hue, saturation = (by.hue, by.saturation) if self.coloured else (0, 0)
        border = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}[by.crop_mode]
        holes = (by.hole_smallest, by.hole_largest)
        return A.Compose(
            [
                A.HorizontalFlip(p=by.flip),
                A.Affine(  # ShiftScaleRotate is this, and warns
                    translate_percent=(-by.shift, by.shift),
                    scale=(1 - by.scale, 1 + by.scale),
                    rotate=(-by.rotate, by.rotate),
                    interpolation=cv2.INTER_LINEAR,
                    border_mode=border,
                    fill=0,
                    p=by.affine,
                ),
                A.RandomBrightnessContrast(
                    brightness_limit=by.brightness,
                    contrast_limit=by.contrast,
                    p=by.brightness_contrast,
                ),
                A.HueSaturationValue(
                    hue_shift_limit=hue / 2,  # OpenCV counts in steps of 2 degrees
                    sat_shift_limit=saturation,
                    val_shift_limit=by.value,
                    p=by.hue_saturation_value,
                ),
                A.CoarseDropout(
                    num_holes_range=(1, 1),
                    hole_height_range=holes,
                    hole_width_range=holes,
                    fill=0,
                    p=by.coarse_dropout,
                ),
            ]
        )
