"""Batched transforms beside plain ones that go image by image."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from sprat.augment.transforms import horizontal_flip, normalize, pad, pad_and_crop, resize


def _images(n: int = 6, height: int = 11, width: int = 9, dtype: torch.dtype = torch.uint8):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (n, 3, height, width), generator=generator)
    return images.to(dtype)


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_the_drawn_images_and_no_others() -> None:
    images = _images(400)
    out = horizontal_flip(images, _generator(), p=0.3)
    kept = (out == images).all(dim=(1, 2, 3))
    mirrored = (out == images.flip(3)).all(dim=(1, 2, 3))
    assert (kept ^ mirrored).all()
    assert 0.2 < mirrored.double().mean() < 0.4


@pytest.mark.parametrize("mode", ["reflect", "constant"])
@pytest.mark.parametrize("padding", [1, 4])
def test_padding_is_numpys(mode: str, padding: int) -> None:
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


@pytest.mark.parametrize(
    "transform", [horizontal_flip, pad_and_crop, lambda i, g: pad_and_crop(i, g, 3, "constant")]
)
class TestEveryTransform:
    def test_is_repeatable_by_its_generator(self, transform) -> None:
        images = _images(64)
        first, again = transform(images, _generator()), transform(images, _generator())
        assert torch.equal(first, again)
        assert not torch.equal(first, transform(images, _generator(1)))

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_keeps_shape_type_and_its_input(self, transform, dtype: torch.dtype) -> None:
        for n in (1, 7):
            images = _images(n, dtype=dtype)
            before = images.clone()
            out = transform(images, _generator())
            assert out.shape == images.shape
            assert out.dtype == dtype
            assert torch.equal(images, before)


def test_no_padding_is_no_crop() -> None:
    images = _images()
    assert torch.equal(pad_and_crop(images, _generator(), padding=0), images)


def test_normalize_is_the_textbook_formula() -> None:
    images = _images()
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.3])
    expected = (images.double() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    out = normalize(images, mean, std)
    torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
    assert out.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("side", [5, 9, 11, 24])
def test_resize_is_the_antialiased_bilinear_filter(side: int) -> None:
    images = _images()
    expected = F.interpolate(images.float(), (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(images, side), expected, atol=1e-2, rtol=0)


def test_resize_to_the_same_side_changes_no_pixel() -> None:
    images = _images(height=9)
    assert torch.equal(resize(images, 9), images.float())
