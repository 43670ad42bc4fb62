"""Tests of test-time views, compared with plain ones, and of every available set of views."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sprat.augment.views import VIEWS, find_views, flipped, identity, shifted, turned
from sprat.errors import SpratError


def _images(n: int = 5, height: int = 12, width: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 3, height, width), generator=generator).to(torch.uint8)


@pytest.mark.parametrize("number", VIEWS)
class TestEverySet:
    def test_has_distinct_views_with_weights_summing_to_1(self, number: int) -> None:
        views = VIEWS[number]
        assert len(views) == number
        assert sum(weight for _, weight in views) == pytest.approx(1)
        assert min(weight for _, weight in views) > 0
        seen = {view(_images()).contiguous().numpy().tobytes() for view, _ in views}
        assert len(seen) == number

    def test_begins_with_the_unchanged_image(self, number: int) -> None:
        images = _images()
        assert torch.equal(VIEWS[number][0][0](images), images)

    @pytest.mark.parametrize("shape", [(1, 12, 9), (3, 32, 32), (2, 8, 33)])
    def test_keeps_shape_type_and_its_input(self, number: int, shape: tuple[int, int, int]) -> None:
        images = _images(*shape)
        before = images.clone()
        for view, _ in VIEWS[number]:
            out = view(images)
            assert out.shape == images.shape
            assert out.dtype == torch.uint8
        assert torch.equal(images, before)


def test_identity_and_flip_are_exact() -> None:
    images = _images()
    assert torch.equal(identity(images), images)
    assert np.array_equal(flipped(images).numpy(), images.numpy()[..., ::-1])


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, -2), (-1, 2), (2, 2)])
def test_a_shift_moves_whole_pixels_and_reflects(right: int, down: int) -> None:
    images = _images()
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (2, 2), (2, 2)), mode="reflect")
    expected = np.roll(padded, (down, right), (2, 3))[:, :, 2:-2, 2:-2]
    assert np.array_equal(shifted(images, right, down).numpy(), expected)


def test_quarter_turn_equals_rot90() -> None:
    images = _images(height=9)
    assert torch.equal(turned(images, degrees=90.0), images.rot90(1, (2, 3)))


def test_zooming_keeps_the_centre() -> None:
    images = _images(height=9)
    zoomed = turned(images, scale=2.0)
    assert torch.equal(zoomed[:, :, 4, 4], images[:, :, 4, 4])
    assert torch.equal(zoomed[:, :, 4, 6], images[:, :, 4, 5])


def test_unavailable_number_of_views_is_refused() -> None:
    with pytest.raises(SpratError, match="tta is 7, expected a number of views among 1, 2, 6, 8"):
        find_views(7)
