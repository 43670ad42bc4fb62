"""Augmentation with Albumentations 2.0.8, image by image: the reference that the batched pipeline
must agree with. The only module that imports Albumentations."""

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
    """Callable (images uint8 B x C x H x W, seed) -> augmented images of the same shape, uint8.

    Args:
        augment: probabilities and limits. Crop, cutout and alternating flips are not supported.
        channels: channels of the images: 3, or 1 if grey, without hue and saturation.
    """

    def __init__(self, augment: AugmentConfig, channels: int = 3) -> None:
        self.augment, self.coloured = augment, channels == 3

    def __call__(self, images: Tensor, seed: int) -> Tensor:
        # set_random_seed would put the generators of all transforms in the same state, so their
        # draws would be equal
        self.compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        pixels = np.ascontiguousarray(images.permute(0, 2, 3, 1).numpy())
        augmented = [self.compose(image=image)["image"] for image in pixels]
        return torch.from_numpy(np.stack(augmented)).permute(0, 3, 1, 2)

    @functools.cached_property
    def compose(self) -> Any:
        """The `albumentations.Compose`, created at first use, in the worker."""
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # or importing it would access the internet
        import albumentations as A
        import cv2

        cv2.setNumThreads(0)  # the worker processes are the parallelism
        by = self.augment
        hue, saturation = (by.hue, by.saturation) if self.coloured else (0, 0)
        border = {"reflect": cv2.BORDER_REFLECT_101, "constant": cv2.BORDER_CONSTANT}[by.crop_mode]
        holes = (by.hole_smallest, by.hole_largest)
        return A.Compose(
            [
                A.HorizontalFlip(p=by.flip),
                A.Affine(  # what ShiftScaleRotate does, without its warning
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
                    hue_shift_limit=hue / 2,  # OpenCV's unit is 2 degrees
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
