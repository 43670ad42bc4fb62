"""Tests of the batched pipeline against Albumentations, whose limits and formulas it follows."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from albumentations_twin import ALL, NOTHING, float_shift_hsv
from torch import Tensor

from sprat.augment.reference import AlbumentationsPipeline, require_albumentations
from sprat.augment.transforms import (
    adjust_brightness_contrast,
    adjust_hue_saturation_value,
    affine,
    erase,
)
from sprat.data import Dataset, cifar10
from sprat.errors import SpratError

albumentations = pytest.importorskip("albumentations", reason="needs sprat[albumentations]")


@pytest.fixture(scope="module")
def images(shapes10: Dataset) -> Tensor:
    """Set of 64 pictures with edges, shades and noise."""
    return shapes10.train.images[:64]


def _one_by_one(images: Tensor, transform: object, **parameters: list[object]) -> Tensor:
    """Apply an Albumentations transform with the given parameters, image by image."""
    out = []
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        given = {name: values[i] for name, values in parameters.items()}
        out.append(transform.apply(np.ascontiguousarray(image), **given))  # type: ignore[attr-defined]
    return torch.from_numpy(np.stack(out)).permute(0, 3, 1, 2)


def _share_within(ours: Tensor, theirs: Tensor, levels: float = 2, border: int = 0) -> float:
    inner = slice(border, -border or None)
    difference = (ours.double() - theirs.double()).abs()[:, :, inner, inner]
    return (difference <= levels).double().mean().item()


class TestGivenTheSameDraws:
    def test_shift_scale_rotate(self, images: Tensor) -> None:
        import cv2
        from albumentations.augmentations.geometric import functional as geometric

        generator = torch.Generator().manual_seed(0)
        draws = torch.rand(64, 5, generator=generator, dtype=torch.float64) * 2 - 1
        shift, scale, degrees = (
            (3.2 * draws[:, :2]).trunc(),
            1 + 0.1 * draws[:, 2:4],
            15 * draws[:, 4],
        )
        transform = albumentations.Affine(border_mode=cv2.BORDER_REFLECT_101, p=1)
        matrices: list[object] = [
            geometric.create_affine_transformation_matrix(
                {"x": x, "y": y}, {"x": 0, "y": 0}, {"x": sx, "y": sy}, angle, (15.5, 15.5)
            )
            for (x, y), (sx, sy), angle in zip(
                shift.tolist(), scale.tolist(), degrees.tolist(), strict=True
            )
        ]
        theirs = _one_by_one(images, transform, matrix=matrices, output_shape=[(32, 32)] * 64)
        ours = affine(images, shift.float(), scale.float(), degrees.float())
        assert _share_within(ours, theirs, border=4) >= 0.99
        assert _share_within(ours, theirs) >= 0.98

    def test_brightness_contrast(self, images: Tensor) -> None:
        draws = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) * 0.4 - 0.2
        transform = albumentations.RandomBrightnessContrast(p=1)
        alphas, betas = (1 + draws[1]).tolist(), (255 * draws[0]).tolist()
        theirs = _one_by_one(images, transform, alpha=alphas, beta=betas)
        assert _share_within(adjust_brightness_contrast(images, *draws), theirs, levels=1) == 1

    def test_hue_saturation_value_in_float32(self, images: Tensor) -> None:
        """Compare with OpenCV's float32 conversion: Albumentations, which builds on OpenCV, always
        converts to uint8, where hue has only 180 steps."""
        hue, saturation, value = self._changes()
        expected = torch.stack(
            [
                torch.from_numpy(float_shift_hsv(image, h / 2, s, v)).permute(2, 0, 1)
                for image, h, s, v in zip(
                    images.permute(0, 2, 3, 1).numpy(),
                    hue.tolist(),
                    saturation.tolist(),
                    value.tolist(),
                    strict=True,
                )
            ]
        )
        ours = adjust_hue_saturation_value(images.float(), hue, saturation, value)
        assert _share_within(ours, expected) >= 0.99

    def test_hue_saturation_value_in_uint8(self, images: Tensor) -> None:
        """Compare as closely as hue steps of 2 degrees allow: at full chroma a degree is 4.25
        levels, and converting there and back rounds twice."""
        hue, saturation, value = self._changes()
        transform = albumentations.HueSaturationValue(p=1)
        theirs = _one_by_one(
            images,
            transform,
            hue_shift=(hue / 2).tolist(),
            sat_shift=saturation.tolist(),
            val_shift=value.tolist(),
        )
        ours = adjust_hue_saturation_value(images, hue, saturation, value)
        assert _share_within(ours, theirs, levels=9) >= 0.99

    def test_coarse_dropout(self, images: Tensor) -> None:
        first = torch.randint(0, 24, (64, 2), generator=torch.Generator().manual_seed(0))
        end = first + torch.randint(4, 9, (64, 2), generator=torch.Generator().manual_seed(1))
        transform = albumentations.CoarseDropout(fill=0, p=1)
        holes: list[object] = [
            np.array([[left, top, right, bottom]])
            for (top, left), (bottom, right) in zip(first.tolist(), end.tolist(), strict=True)
        ]
        theirs = _one_by_one(images, transform, holes=holes, seed=[0] * 64)
        assert torch.equal(erase(images, first, end), theirs)

    @staticmethod
    def _changes() -> tuple[Tensor, Tensor, Tensor]:
        draws = torch.rand(3, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return draws[0] * 40, draws[1] * 30, draws[2] * 20


def test_albumentations_transforms_are_drawn_independently(shapes10: Dataset) -> None:
    """Check that draws are independent, which they are not if Compose itself is seeded."""
    pipeline = replace(NOTHING, flip=0.5, coarse_dropout=0.5)
    image = torch.full((4000, 3, 32, 32), 200, dtype=torch.uint8)
    image[..., 31] = 100  # marks the right edge
    out = AlbumentationsPipeline(pipeline)(image, seed=0)
    flipped = (out[..., 0] == 100).flatten(1).any(1)
    dropped = (out == 0).flatten(1).any(1)
    both = (flipped & dropped).double().mean().item()
    # within four standard errors of a share of 1/4
    assert both == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 4000))


def test_albumentations_takes_one_channel(images: Tensor) -> None:
    grey = images[:8, :1]
    out = AlbumentationsPipeline(ALL, channels=1)(grey, seed=0)
    assert out.shape == grey.shape
    assert not torch.equal(out, grey)


def test_albumentations_is_determined_by_its_seed(images: Tensor) -> None:
    pipeline = AlbumentationsPipeline(ALL)
    first, again, other = (pipeline(images, seed) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_importing_the_engine_does_not_import_albumentations() -> None:
    code = (
        "import sys, sprat.training.start, sprat.augment.reference\n"
        "heavy = {'albumentations', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_extra_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpratError, match=r"pip install 'sprat\[albumentations\]'"):
        require_albumentations()


def test_agreement_holds_on_photographs(cifar10_place: object) -> None:
    """Repeat the comparisons on CIFAR-10, with the colours and edges of a camera."""
    train, _ = cifar10.load(cifar10_place)  # type: ignore[arg-type]
    photographs = train.images[:64]
    given = TestGivenTheSameDraws()
    given.test_shift_scale_rotate(photographs)
    given.test_brightness_contrast(photographs)
    given.test_hue_saturation_value_in_float32(photographs)
    given.test_hue_saturation_value_in_uint8(photographs)
    given.test_coarse_dropout(photographs)
