"""Tests of mixers: exact shares of pixels, and agreement with formulas image by image."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sprat.augment.mixing import MIXERS, choose, cutmix, mixup, ricap
from sprat.errors import SpratError

SHAPES = [(1, 3, 8, 8), (2, 3, 9, 14), (7, 1, 13, 6), (32, 3, 32, 32)]


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _flat_images(n: int, channels: int = 3, height: int = 9, width: int = 14) -> Tensor:
    """Return images of uniform grey, level i in image i, so that pixels show their origin."""
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, channels, height, width)


def _one_hot(n: int) -> Tensor:
    """Return targets with one class per image, so that mixed targets show what was mixed."""
    return torch.eye(n)


@pytest.mark.parametrize("per_image", [False, True])
@pytest.mark.parametrize("name", MIXERS)
class TestEveryMixer:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    def test_keeps_shapes_inputs_and_target_sums(
        self, name: str, per_image: bool, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        for seed in range(20):
            images = torch.randint(256, shape, generator=_generator(1)).to(dtype)
            targets = F.one_hot(torch.arange(shape[0]) % 10, 10).float()
            before = images.clone(), targets.clone()
            mixed, mixed_targets = MIXERS[name](
                images, targets, generator=_generator(seed), per_image=per_image
            )
            assert mixed.shape == images.shape
            assert mixed.dtype == (torch.float32 if name == "mixup" else dtype)
            assert mixed_targets.shape == targets.shape
            assert mixed_targets.min() >= 0
            torch.testing.assert_close(mixed_targets.sum(1), torch.ones(shape[0]))
            assert torch.equal(images, before[0])
            assert torch.equal(targets, before[1])

    def test_is_determined_by_its_generator(self, name: str, per_image: bool) -> None:
        images, targets = _flat_images(16), _one_hot(16)

        def run(seed: int) -> tuple[Tensor, Tensor]:
            return MIXERS[name](images, targets, generator=_generator(seed), per_image=per_image)

        assert all(map(torch.equal, run(3), run(3)))
        assert not torch.equal(run(3)[0], run(4)[0])

    def test_target_weights_equal_pixel_shares(self, name: str, per_image: bool) -> None:
        images, targets = _flat_images(11), _one_hot(11)
        for seed in range(40):
            mixed, mixed_targets = MIXERS[name](
                images, targets, generator=_generator(seed), per_image=per_image
            )
            if name == "mixup":  # the grey level is the weighted mean of the grey levels
                levels = mixed_targets @ torch.arange(11.0)
                torch.testing.assert_close(mixed.mean((1, 2, 3)), levels)
                continue
            shares = torch.stack([(mixed[:, 0] == i).double().mean((1, 2)) for i in range(11)], 1)
            torch.testing.assert_close(mixed_targets.double(), shares, atol=1e-6, rtol=0)

    def test_draws_once_per_batch_or_per_image(self, name: str, per_image: bool) -> None:
        images, targets = _flat_images(64, height=32, width=32), _one_hot(64)
        _, mixed = MIXERS[name](images, targets, 2.0, per_image, generator=_generator(2))
        # the sorted shares of each image, without images that were mixed with themselves
        patterns = {
            tuple(row[row > 0].sort().values.mul(1e5).round().tolist())
            for row in mixed
            if (row > 0).sum() == mixed.gt(0).sum(1).max()
        }
        assert (len(patterns) > 20) if per_image else (len(patterns) == 1)

    def test_accepts_strength_as_a_tensor(self, name: str, per_image: bool) -> None:
        images, targets = _flat_images(5), _one_hot(5)
        plain, tensor = (
            MIXERS[name](images, targets, strength, per_image, generator=_generator())
            for strength in (0.7, torch.tensor(0.7))
        )
        torch.testing.assert_close(plain[1], tensor[1])

    def test_zero_strength_is_refused(self, name: str, per_image: bool) -> None:
        with pytest.raises(SpratError, match="alpha or beta is 0, expected a number above 0"):
            MIXERS[name](_flat_images(4), _one_hot(4), 0, per_image, generator=_generator())


def _partners(mixed_targets: Tensor) -> list[int]:
    """Return the partner of each image according to its targets; itself if it has none."""
    others = mixed_targets - torch.diag(mixed_targets.diag())
    return [int(row.argmax()) if row.max() > 0 else i for i, row in enumerate(others)]


def test_mixup_matches_the_papers_formula() -> None:
    images = torch.randint(256, (9, 3, 5, 7), generator=_generator(5)).to(torch.uint8)
    mixed, targets = mixup(images, _one_hot(9), generator=_generator(1))
    for i, partner in enumerate(_partners(targets)):
        lam = targets[i, i].item()
        expected = lam * images[i].double() + (1 - lam) * images[partner].double()
        torch.testing.assert_close(mixed[i].double(), expected, atol=1e-3, rtol=1e-5)


def test_cutmix_pastes_one_box_of_the_partner() -> None:
    images = torch.randint(256, (9, 3, 16, 12), generator=_generator(5)).to(torch.uint8)
    for seed in range(30):
        mixed, targets = cutmix(images, _one_hot(9), generator=_generator(seed), per_image=True)
        for i, partner in enumerate(_partners(targets)):
            if partner == i:
                continue
            differs = (images[i] != images[partner]).any(0)
            pasted = (mixed[i] == images[partner]).all(0)
            kept = (mixed[i] == images[i]).all(0)
            assert (pasted | kept).all()
            rows, columns = (pasted & differs).nonzero().unbind(1)
            if len(rows):  # all of their bounding box came from the partner
                box = pasted[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
                assert box.all()


def test_cutmix_clips_boxes_and_counts_remaining_pixels() -> None:
    """Use an alpha so large that lam is about 1/2: a box's sides are 0.7 times the image's."""
    images, targets = _flat_images(2, height=20, width=20), _one_hot(2)
    shares = []
    for seed in range(200):
        _, mixed = cutmix(images, targets, alpha=100.0, generator=_generator(seed))
        shares.append(mixed[0, 1].item())
    shares = [share for share in shares if share]
    assert max(shares) == pytest.approx(0.5, abs=0.1)  # whole boxes
    assert min(shares) < 0.3  # clipped ones
    assert all(share * 400 == pytest.approx(round(share * 400), abs=1e-3) for share in shares)


def test_cutmix_centres_its_box_anywhere() -> None:
    """Check that both halves of an image are covered equally often, despite clipping."""
    images = _flat_images(200, height=32, width=32)
    covered = torch.zeros(32, 32)
    for seed in range(10):
        mixed, _ = cutmix(images, _one_hot(200), generator=_generator(seed), per_image=True)
        covered += (mixed != images)[:, 0].float().mean(0)
    for halves in (covered.split(16, 0), covered.split(16, 1)):
        assert halves[0].mean() == pytest.approx(halves[1].mean().item(), rel=0.1)


def test_ricap_combines_windows_of_four_images() -> None:
    """Check that every patch of the result is a window of one image."""
    height, width, n = 10, 8, 6
    place = torch.arange(height * width, dtype=torch.uint8).view(1, 1, height, width)
    who = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(n, 1, height, width)
    images = torch.cat((who, place.expand(n, -1, -1, -1)), 1)  # a pixel's image and place
    for seed in range(30):
        for per_image in (False, True):
            mixed, targets = ricap(
                images, _one_hot(n), beta=1.0, per_image=per_image, generator=_generator(seed)
            )
            for image, row in zip(mixed, targets, strict=True):
                seen = torch.zeros(n)
                rows, columns = image[1].long() // width, image[1].long() % width
                # neighbours in a patch were neighbours in their image
                right = (rows[:, 1:] == rows[:, :-1]) & (columns[:, 1:] == columns[:, :-1] + 1)
                down = (rows[1:] == rows[:-1] + 1) & (columns[1:] == columns[:-1])
                assert (~right.all(0)).sum() <= 1, "one cut from top to bottom"
                assert (~down.all(1)).sum() <= 1, "one cut from left to right"
                for source in image[0].unique().tolist():
                    seen[source] = (image[0] == source).float().mean()
                torch.testing.assert_close(row, seen)


def test_mixing_weights_follow_the_beta_distribution() -> None:
    """Compare with the mean and variance of Beta(a, a): 1/2 and 1 / (4 (2a + 1))."""
    images, targets = _flat_images(2, 1, 1, 1), _one_hot(2)
    for alpha in (0.2, 1.0, 4.0):
        images, targets = _flat_images(200, 1, 1, 1), _one_hot(200)
        lams = torch.cat(
            [
                mixup(images, targets, alpha, True, generator=_generator(seed))[1].diag()
                for seed in range(50)
            ]
        )
        lams = lams[lams < 1]  # 1: mixed with itself
        variance = 1 / (4 * (2 * alpha + 1))
        # four standard errors of 10,000 draws
        assert lams.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(variance / 1e4))
        assert lams.var().item() == pytest.approx(variance, rel=0.06)


def test_choice_follows_the_probabilities() -> None:
    table = {"mixup": 0.3, "cutmix": 0.3, "ricap": 0.2}
    for draw, name in [
        (0.0, "mixup"), (0.299, "mixup"), (0.3, "cutmix"), (0.59, "cutmix"),
        (0.61, "ricap"), (0.79, "ricap"), (0.81, None), (0.999, None),
    ]:  # fmt: skip
        assert choose(table, draw) == name
    assert choose(dict.fromkeys(table, 0.0), 0.0) is None


def test_smoothed_loss_is_linear_in_mixed_targets() -> None:
    """Check that smoothed cross-entropy on mixed targets is a mix of smoothed cross-entropies."""
    logits = torch.randn(8, 10, generator=_generator())
    labels = torch.arange(8)
    _, mixed = mixup(_flat_images(8), F.one_hot(labels, 10).float(), generator=_generator(1))
    loss = F.cross_entropy(logits, mixed, label_smoothing=0.1)
    expected = sum(
        weight * F.cross_entropy(logits[[i]], torch.tensor([label]), label_smoothing=0.1)
        for i, row in enumerate(mixed)
        for label, weight in enumerate(row.tolist())
        if weight
    )
    assert loss.item() == pytest.approx(float(expected) / 8, rel=1e-5)
