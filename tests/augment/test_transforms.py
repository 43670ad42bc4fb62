"""Tests of batched transforms, compared with plain ones that process image by image."""

import colorsys
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sprat.augment.pipeline import (
    AugmentConfig,
    brightness_contrast,
    coarse_dropout,
    cutout,
    horizontal_flip,
    hue_saturation_value,
    pad_and_crop,
    shift_scale_rotate,
)
from sprat.augment.transforms import (
    adjust_brightness_contrast,
    adjust_hue_saturation_value,
    affine,
    alternating_flip,
    normalize,
    pad,
    resize,
)

Transform = Callable[[Tensor, torch.Generator], Tensor]

TRANSFORMS: dict[str, Transform] = {
    "flip": horizontal_flip,
    "crop": pad_and_crop,
    "crop-constant": partial(pad_and_crop, padding=3, mode="constant"),
    "shift-scale-rotate": shift_scale_rotate,
    "shift-scale-rotate-constant": partial(shift_scale_rotate, mode="constant"),
    "brightness-contrast": brightness_contrast,
    "hue-saturation-value": hue_saturation_value,
    "coarse-dropout": coarse_dropout,
    "cutout": partial(cutout, size=5),
    "pipeline": AugmentConfig(
        crop=2,
        affine=0.5,
        brightness_contrast=0.5,
        hue_saturation_value=0.5,
        coarse_dropout=0.3,
        cutout=3,
    ),
}


def _images(n: int = 6, height: int = 11, width: int = 9, dtype: torch.dtype = torch.uint8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, height, width), generator=generator)
    return images.to(dtype)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_images_with_its_probability() -> None:
    images = _images(400)
    out = horizontal_flip(images, _generator(), p=0.3)
    kept = (out == images).all(dim=(1, 2, 3))
    mirrored = (out == images.flip(3)).all(dim=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 0.2 < mirrored.double().mean() < 0.4


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("padding", [1, 4])
def test_padding_equals_numpys(mode: str, padding: int) -> None:
    images = _images()
    width = ((0, 0), (0, 0), (padding, padding), (padding, padding))
    expected = np.pad(images.numpy(), width, mode=mode)
    assert np.array_equal(pad(images, padding, mode).numpy(), expected)


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_every_crop_is_one_window_of_its_own_padded_image(mode: str) -> None:
    images = _images(200)
    out = pad_and_crop(images, _generator(), padding=2, mode=mode)
    padded = pad(images, 2, mode)
    places = []
    for image, source in zip(out, padded, strict=True):
        here = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(image, source[:, y : y + 11, x : x + 9])
        ]
        assert here
        places += here
    assert set(places) == {(y, x) for y in range(5) for x in range(5)}


@pytest.mark.parametrize("name", TRANSFORMS)
class TestEveryTransform:
    def test_is_determined_by_its_generator(self, name: str) -> None:
        images = _images(64)
        transform = TRANSFORMS[name]
        first, again = transform(images, _generator()), transform(images, _generator())
        assert torch.equal(first, again)
        assert not torch.equal(first, transform(images, _generator(1)))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_keeps_shape_type_range_and_its_input(self, name: str, dtype: torch.dtype) -> None:
        for n in (1, 7):
            for seed in range(5):
                images = _images(n, dtype=dtype)
                before = images.clone()
                out = TRANSFORMS[name](images, _generator(seed))
                assert out.shape == images.shape
                assert out.dtype == dtype
                assert out.min() >= 0
                assert out.max() <= 255
                assert torch.equal(images, before)

    def test_each_image_has_its_own_draw(self, name: str) -> None:
        images = _images(1).expand(32, -1, -1, -1)
        out = TRANSFORMS[name](images, _generator())
        assert len({image.numpy().tobytes() for image in out}) >= 2

    def test_transforming_chosen_images_equals_transforming_all(
        self, name: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Check that transforming only the chosen images, as on CPUs, equals computing all."""
        from sprat.augment import transforms

        def on_all(
            images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor
        ) -> Tensor:
            return torch.where(chosen.view(-1, 1, 1, 1), change(images, *parameters), images)

        images = _images(40)
        expected = TRANSFORMS[name](images, _generator())
        monkeypatch.setattr(transforms, "on_some", on_all)
        assert torch.equal(TRANSFORMS[name](images, _generator()), expected)


def test_alternating_flip_mirrors_each_image_every_other_epoch() -> None:
    images = _images(8)
    first = torch.arange(8) % 3 == 0
    even, odd = (alternating_flip(images, first, epoch) for epoch in (0, 1))
    assert torch.equal(even, torch.where(first.view(-1, 1, 1, 1), images.flip(3), images))
    assert torch.equal(odd, even.flip(3))
    assert torch.equal(alternating_flip(images, first, 2), even)


def _reflect(place: int, side: int) -> int:
    place = abs(place) % (2 * side - 2)
    return min(place, 2 * side - 2 - place)


def _affine_twin(
    image: Tensor, shift: Tensor, scale: Tensor, degrees: float, mode: str
) -> np.ndarray:
    """Transform pixel by pixel: find where each came from and interpolate its four neighbours."""
    channels, height, width = image.shape
    pixels = image.double().numpy()
    out = np.zeros(image.shape)
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    centre_x, centre_y = (width - 1) / 2, (height - 1) / 2
    for y in range(height):
        for x in range(width):
            dx, dy = x - centre_x - shift[0].item(), y - centre_y - shift[1].item()
            # the image is turned counter-clockwise, so the way back is clockwise
            from_x = (cos * dx - sin * dy) / scale[0].item() + centre_x
            from_y = (sin * dx + cos * dy) / scale[1].item() + centre_y
            left, top = math.floor(from_x), math.floor(from_y)
            for row, row_share in ((top, top + 1 - from_y), (top + 1, from_y - top)):
                for column, share in ((left, left + 1 - from_x), (left + 1, from_x - left)):
                    if mode == "reflect":
                        value = pixels[:, _reflect(row, height), _reflect(column, width)]
                    elif 0 <= row < height and 0 <= column < width:
                        value = pixels[:, row, column]
                    else:
                        value = np.zeros(channels)
                    out[:, y, x] += row_share * share * value
    return out


@pytest.mark.parametrize("mode", ["reflect", "constant"])
def test_affine_matches_plain_implementation(mode: str) -> None:
    images = _images(4, 11, 14, dtype=torch.float32)
    shift = torch.tensor([[0.0, 0.0], [2.0, -3.0], [-1.5, 0.5], [0.0, 4.0]])
    scale = torch.tensor([[1.0, 1.0], [0.9, 1.1], [1.2, 0.8], [0.7, 0.7]])
    degrees = torch.tensor([20.0, 0.0, -15.0, 90.0])
    out = affine(images, shift, scale, degrees, mode)
    for i, image in enumerate(images):
        expected = _affine_twin(image, shift[i], scale[i], degrees[i].item(), mode)
        np.testing.assert_allclose(out[i].numpy(), expected, atol=0.02)


def test_identity_affine_changes_no_pixel() -> None:
    images = _images(3)
    still = affine(images, torch.zeros(3, 2), torch.ones(3, 2), torch.zeros(3))
    assert torch.equal(still, images)


def test_shifts_are_whole_pixels_within_their_limit() -> None:
    images = _images(300, 20, 40)
    out = shift_scale_rotate(images, _generator(), shift=0.1, scale=0.0, rotate=0.0, p=1.0)
    seen = set()
    for down in range(-2, 3):
        for right in range(-4, 5):
            by = torch.tensor([[float(right), float(down)]]).expand(len(images), 2)
            there = affine(images, by, torch.ones(len(images), 2), torch.zeros(len(images)))
            if (there == out).flatten(1).all(1).any():
                seen.add((right, down))
    assert {right for right, _ in seen} == set(range(-3, 4))  # 4 = 0.1 x 40 is excluded
    assert {down for _, down in seen} == set(range(-1, 2))


def test_brightness_and_contrast_match_the_formula() -> None:
    images = _images(4)
    brightness = torch.tensor([0.2, -0.1, 0.0, 0.05])
    contrast = torch.tensor([0.0, 0.2, -0.2, 0.1])
    out = adjust_brightness_contrast(images, brightness, contrast)
    for image, changed, b, c in zip(images, out, brightness, contrast, strict=True):
        expected = ((1 + c.double()) * image.double() + 255 * b.double()).clamp(0, 255)
        torch.testing.assert_close(changed.double(), expected, atol=0.51, rtol=0)


def test_hue_saturation_value_matches_colorsys() -> None:
    images = _images(5, dtype=torch.float32)
    images[0, :, 0, :4] = 77.0  # greys must stay without hue
    images[1, :, 0, 0] = 0.0
    hue = torch.tensor([40.0, -40.0, 0.0, 180.0, 13.0])
    saturation = torch.tensor([30.0, -30.0, 10.0, 0.0, -200.0])
    value = torch.tensor([20.0, -20.0, 0.0, 5.0, 90.0])
    out = adjust_hue_saturation_value(images, hue, saturation, value)
    for i, image in enumerate(images):
        for y in range(image.shape[1]):
            for x in range(image.shape[2]):
                r, g, b = (image[:, y, x].double() / 255).tolist()
                h, s, v = colorsys.rgb_to_hsv(r, g, b)
                if s > 0:
                    s = min(max(s + saturation[i].item() / 255, 0), 1)
                v = min(max(v + value[i].item() / 255, 0), 1)
                expected = colorsys.hsv_to_rgb((h + hue[i].item() / 360) % 1, s, v)
                got = (out[i, :, y, x].double() / 255).tolist()
                assert got == pytest.approx(expected, abs=2e-4)


def test_coarse_dropout_blackens_one_rectangle_inside() -> None:
    images = torch.full((500, 3, 12, 20), 9, dtype=torch.uint8)
    out = coarse_dropout(images, _generator(), smallest=4, largest=6, p=0.3)
    sizes, places = set(), set()
    for image in out:
        assert (image == image[0]).all(), "all channels alike"
        rows, columns = (image[0] == 0).nonzero().unbind(1)
        if not len(rows):
            continue
        top, left = int(rows.min()), int(columns.min())
        height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
        assert len(rows) == height * width, "a whole rectangle"
        sizes |= {height, width}
        places.add((top, left))
    assert sizes == {4, 5, 6}
    assert {top for top, _ in places} == set(range(9))
    assert 0.2 < (out == 0).flatten(1).any(1).double().mean() < 0.4


def test_a_hole_larger_than_the_image_blackens_it() -> None:
    images = torch.full((4, 3, 6, 6), 9, dtype=torch.uint8)
    assert not coarse_dropout(images, _generator(), smallest=8, largest=9, p=1.0).any()


def test_cutout_is_centred_anywhere_and_clipped() -> None:
    images = torch.full((400, 3, 10, 10), 9, dtype=torch.uint8)
    blackened = (cutout(images, _generator(), size=4) == 0)[:, 0].flatten(1).sum(1)
    assert blackened.max() == 16
    assert blackened.min() == 4  # centred in a corner
    assert set(blackened.tolist()) == {a * b for a in (2, 3, 4) for b in (2, 3, 4)}


def test_probability_applies_to_each_image() -> None:
    images = _images(2000)
    for transform in (
        shift_scale_rotate, brightness_contrast, hue_saturation_value, coarse_dropout
    ):  # fmt: skip
        changed = (transform(images, _generator(), p=0.3) != images).flatten(1).any(1)
        assert 0.25 < changed.double().mean() < 0.35, transform
        assert torch.equal(transform(images, _generator(), p=0.0), images)


def test_crop_without_padding_changes_nothing() -> None:
    images = _images()
    assert torch.equal(pad_and_crop(images, _generator(), padding=0), images)


def test_normalize_matches_the_textbook_formula() -> None:
    images = _images()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    out = normalize(images, mean, std)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [5, 9, 11, 24])
def test_resize_matches_antialiased_bilinear_interpolation(side: int) -> None:
    images = _images()
    expected = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(images, side), expected, atol=1e-2, rtol=0)


def test_resize_to_the_same_side_changes_no_pixel() -> None:
    images = _images(height=9)
    assert torch.equal(resize(images, 9), images.float())


@pytest.mark.parametrize("name", TRANSFORMS)
def test_one_channel_matches_three_equal_channels(name: str) -> None:
    grey = torch.randint(256, (16, 1, 12, 16), dtype=torch.uint8)
    for images in (grey, grey.float()):
        one, three = (
            TRANSFORMS[name](given, torch.Generator().manual_seed(1))
            for given in (images, images.repeat(1, 3, 1, 1))
        )
        assert one.shape == grey.shape
        assert torch.allclose(one.float().expand_as(three), three.float(), rtol=0, atol=1e-3)
