"""Tests that the batched pipeline draws from the same distributions as Albumentations."""

from dataclasses import replace

import pytest
import torch
from albumentations_twin import ALL, NOTHING, float_shift_hsv
from torch import Tensor

from sprat.augment.pipeline import AugmentConfig
from sprat.augment.reference import AlbumentationsPipeline
from sprat.data import Dataset

pytest.importorskip("albumentations", reason="needs sprat[albumentations]")

DRAWS = 20_000


def _assert_same_law(pipeline: AugmentConfig, picture: Tensor) -> None:
    """Compare mean and variance of every pixel over 20,000 draws of one picture.

    The difference of two means of n independent draws has a standard error of
    sqrt((v1 + v2) / n), that of two variances sqrt((k1 - v1**2 + k2 - v2**2) / n), where k is the
    fourth central moment. The largest of 3,072 normal deviations is near 4; 5 is exceeded by chance
    once in 600 tests, and the seeds are fixed. Systematic differences are allowed for in addition:
    Albumentations rounds to uint8 after each transform, and OpenCV weights neighbours in 32nds.
    They amount to half a grey level of the mean and 2 % of the standard deviation.
    """
    images = picture.expand(DRAWS, -1, -1, -1)
    theirs = AlbumentationsPipeline(pipeline)(images, seed=1).float()
    ours = pipeline(images, torch.Generator().manual_seed(1)).float()
    means = [sample.mean(0) for sample in (ours, theirs)]
    centred = [sample - mean for sample, mean in zip((ours, theirs), means, strict=True)]
    variances = [(c**2).mean(0) for c in centred]
    fourths = [(c**4).mean(0) for c in centred]
    error = ((variances[0] + variances[1]) / DRAWS).sqrt()
    assert ((means[0] - means[1]).abs() <= 5 * error + 0.5).all()
    noise = sum(k - v**2 for k, v in zip(fourths, variances, strict=True))
    error = (torch.as_tensor(noise) / DRAWS).sqrt()
    systematic = 0.04 * variances[1] + 1
    assert ((variances[0] - variances[1]).abs() <= 5 * error + systematic).all()


@pytest.mark.parametrize(
    "pipeline",
    [
        replace(NOTHING, flip=0.5),
        replace(NOTHING, affine=0.5),
        replace(NOTHING, brightness_contrast=0.5),
        replace(NOTHING, coarse_dropout=0.3),
        ALL,
    ],
    ids=["flip", "affine", "brightness-contrast", "dropout", "whole"],
)
def test_engines_draw_from_the_same_distribution(
    pipeline: AugmentConfig, shapes10: Dataset
) -> None:
    _assert_same_law(pipeline, shapes10.train.images[5:6])


def test_engines_draw_hues_from_the_same_distribution(
    shapes10: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compare with Albumentations' hues before rounding.

    It truncates hues to steps of 2 degrees, which exceeds the tolerance in a saturated picture.
    """
    from albumentations.augmentations.pixel import functional

    monkeypatch.setattr(functional, "shift_hsv", float_shift_hsv)
    _assert_same_law(replace(NOTHING, hue_saturation_value=0.5), shapes10.train.images[5:6])
