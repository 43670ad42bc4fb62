"""Helpers for the comparisons with Albumentations."""

import numpy as np

from sprat.augment.pipeline import AugmentConfig
from sprat.settings.recipes import load_recipe

NOTHING = AugmentConfig(crop=0, flip=0)
ALL = load_recipe("reference").augment  # all transforms that Albumentations also has


def float_shift_hsv(
    image: np.ndarray, hue_shift: float, sat_shift: float, val_shift: float
) -> np.ndarray:
    """Apply Albumentations' `shift_hsv` in float32, rounding to uint8 only at the end."""
    import cv2

    h, s, v = cv2.split(cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2HSV))
    s = np.where(s > 0, (s + sat_shift / 255).clip(0, 1), s)
    v = (v + val_shift / 255).clip(0, 1)
    merged = cv2.merge(((h + 2 * hue_shift) % 360, s, v)).astype(np.float32)
    return (255 * cv2.cvtColor(merged, cv2.COLOR_HSV2RGB)).round().astype(np.uint8)
