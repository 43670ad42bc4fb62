"""Mixing of training images and their targets: (images, targets, generator=…) -> the mixed pair.

Images are B x C x H x W, uint8 or float, of any size; targets are B x K, float, one-hot at first.
Each image's row of targets becomes the exact share of pixels from each class, so rows still sum to
1; label smoothing is up to the loss. Inputs are never changed.

To add a mixer, add two fields to `MixingConfig`, a function and a line to `MIXERS`.

Partners are drawn for each image. Everything else (share, box) is drawn once per batch, or for each
image with `per_image`. `generator` is on the images' device. alpha and beta must be above 0 and may
be scalar tensors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sprat.deferred import deferred
from sprat.errors import SpratError
from sprat.optim.schedules import RAMPS
from sprat.settings.field import Table, probability_setting, refused, setting

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from sprat.augment import transforms

    Mixed = tuple[Tensor, Tensor]
else:
    torch, transforms = deferred("torch"), deferred("sprat.augment.transforms")


@dataclass(frozen=True, kw_only=True)
class MixingConfig(Table, name="mixing"):
    """Mixing of batches: which mixers, how often and how strongly."""

    mixup: float = probability_setting(0.0, "Probability that a batch is mixed by MixUp")
    cutmix: float = probability_setting(0.0, "Probability that a batch is mixed by CutMix")
    ricap: float = probability_setting(
        0.0,
        "Probability that a batch is mixed by RICAP; the remaining probability is for no mixing",
    )
    mixup_alpha: float = setting(
        1.0, "MixUp draws each image's share from Beta(alpha, alpha)", at_least=0.01, at_most=100
    )
    cutmix_alpha: float = setting(
        1.0, "CutMix draws each image's share from Beta(alpha, alpha)", at_least=0.01, at_most=100
    )
    ricap_beta: float = setting(
        0.3,
        "RICAP draws its point along either side from Beta(beta, beta)",
        at_least=0.01,
        at_most=100,
    )
    per_image: bool = setting(
        False, "Draw shares and boxes for each image instead of once per batch"
    )
    probability: str = setting(
        "constant",
        "How mixing probability changes over training: constant, rising from 0 or falling to 0",
        choices=RAMPS,
    )
    strength: str = setting(
        "constant",
        "How alpha and beta change over training: constant, rising from 0 or falling to 0",
        choices=RAMPS,
    )
    off_epochs: float = setting(
        0.0, "Epochs without mixing at the end of the run; may be a fraction", at_least=0
    )

    def check_together(self) -> None:
        total = math.fsum(self.probabilities.values())
        if total > 1 + 1e-9:
            raise refused(
                f"mixing.{' + '.join(MIXERS)}", total, "at most 1 in all", "Lower one of them."
            )

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each mixer."""
        return {name: getattr(self, name) for name in MIXERS}

    @property
    def any(self) -> bool:
        """Return whether any batch is mixed."""
        return any(self.probabilities.values())

    @property
    def strengths(self) -> dict[str, float]:
        """Alpha or beta of each mixer."""
        return {name: getattr(self, mixer.strength) for name, mixer in MIXERS.items()}


def mixup(
    images: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 1.0,
    per_image: bool = False,
    *,
    generator: torch.Generator,
) -> Mixed:
    """Return lam x image + (1 - lam) x partner, lam ~ Beta(alpha, alpha) (mixup, arXiv 1710.09412).

    uint8 images are returned as float32, without rounding.
    """
    lam = _beta(images, generator, alpha, 1, per_image)  # 1, n
    order = _orders(images, generator, 1)[0]
    partners, share = images[order].float(), lam.view(-1, 1, 1, 1)
    mixed = torch.lerp(partners, images.float(), share)
    return mixed, torch.lerp(targets[order], targets, lam.view(-1, 1))


def cutmix(
    images: Tensor,
    targets: Tensor,
    alpha: float | Tensor = 1.0,
    per_image: bool = False,
    *,
    generator: torch.Generator,
) -> Mixed:
    """Paste a box of the partner over each image (CutMix, arXiv 1905.04899). Its share of the area
    is 1 - lam, lam ~ Beta(alpha, alpha), before it is clipped at the border."""
    lam = _beta(images, generator, alpha, 1, per_image)
    order = _orders(images, generator, 1)[0]
    centres = _random(images, generator, 2, lam.shape[1])  # y, x as fractions of the side
    inside, areas = [], []
    for side, centre in zip(images.shape[2:], centres, strict=True):
        cut = (side * (1 - lam[0]).sqrt()).long()
        first = (centre * side).long() - cut // 2
        covered = transforms.between(side, first, first + cut)  # n, side
        inside.append(covered)
        areas.append(covered.sum(1))
    box = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    kept = 1 - areas[0] * areas[1] / (images.shape[2] * images.shape[3])
    mixed = torch.where(box, images[order], images)
    return mixed, torch.lerp(targets[order], targets, kept.view(-1, 1))


def ricap(
    images: Tensor,
    targets: Tensor,
    beta: float | Tensor = 0.3,
    per_image: bool = False,
    *,
    generator: torch.Generator,
) -> Mixed:
    """Patch crops of four images together at a point whose coordinates, as fractions of the sides,
    are drawn from Beta(beta, beta) (RICAP, arXiv 1811.09030)."""
    height, width = images.shape[2:]
    cut_y, cut_x = _beta(images, generator, beta, 2, per_image)  # n each
    cuts = (height * cut_y).round().long(), (width * cut_x).round().long()
    orders = _orders(images, generator, 4)  # 4, B
    corners = _random(images, generator, 4, 2, len(cut_y))

    image = row = column = torch.zeros((), dtype=torch.long, device=images.device)
    mixed_targets = torch.zeros_like(targets)
    for window, (below, right) in enumerate(itertools.product((False, True), repeat=2)):
        inside_y, rows, high = _window(height, cuts[0], below, corners[window, 0])
        inside_x, columns, wide = _window(width, cuts[1], right, corners[window, 1])
        inside = inside_y[:, :, None] & inside_x[:, None, :]  # n, H, W
        image = torch.where(inside, orders[window].view(-1, 1, 1), image)
        row = torch.where(inside, rows[:, :, None], row)
        column = torch.where(inside, columns[:, None, :], column)
        share = high * wide / (height * width)  # n
        mixed_targets += share.view(-1, 1) * targets[orders[window]]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, images.shape[1])  # B x H x W, C
    taken = pixels.index_select(0, ((image * height + row) * width + column).flatten())
    return taken.view(-1, height, width, images.shape[1]).permute(0, 3, 1, 2), mixed_targets


def _window(side: int, cut: Tensor, beyond: bool, corner: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return one crop along one side, before the cuts (n, pixels) or beyond them: which pixels it
    covers, where in its image they come from (both n x side), and its size (n)."""
    begin, size = (cut, side - cut) if beyond else (torch.zeros_like(cut), cut)
    start = (corner * (side - size + 1)).long()
    place = torch.arange(side, device=cut.device)
    return transforms.between(side, begin, begin + size), place + (start - begin).view(-1, 1), size


@dataclass(frozen=True)
class Mixer:
    """A way of mixing; its key in MIXERS is the setting of its probability."""

    title: str
    strength: str
    """Name of the setting with its alpha or beta."""
    mix: Callable[..., Mixed]

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        *how: float | Tensor | bool,
        generator: torch.Generator,
        **named: float | Tensor | bool,
    ) -> Mixed:
        return self.mix(images, targets, *how, generator=generator, **named)


MIXERS = {
    "mixup": Mixer("MixUp", "mixup_alpha", mixup),
    "cutmix": Mixer("CutMix", "cutmix_alpha", cutmix),
    "ricap": Mixer("RICAP", "ricap_beta", ricap),
}


def choose(probabilities: Mapping[str, float], draw: float) -> str | None:
    """Return the mixer selected by a draw from [0, 1); None above the sum of probabilities."""
    ends = itertools.accumulate(probabilities.values())
    return next((name for name, end in zip(probabilities, ends, strict=True) if draw < end), None)


def _beta(
    images: Tensor,
    generator: torch.Generator,
    alpha: float | Tensor,
    draws: int,
    per_image: bool,
) -> Tensor:
    """Draw `draws` x n numbers from Beta(alpha, alpha), float32; n is 1 or B."""
    if isinstance(alpha, float | int) and not alpha > 0:
        raise SpratError(f"alpha or beta is {alpha}, expected a number above 0. Give a larger one.")
    alpha = torch.as_tensor(alpha, dtype=torch.float64, device=images.device)
    shape = (draws, len(images) if per_image else 1, 2)
    # torch.distributions uses this, but takes no generator
    return torch._sample_dirichlet(alpha.expand(shape), generator)[..., 0].float()


def _orders(images: Tensor, generator: torch.Generator, orders: int) -> Tensor:
    """Draw random orders of the batch: orders x B."""
    return _random(images, generator, orders, len(images)).argsort()


def _random(images: Tensor, generator: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=generator, device=images.device)
