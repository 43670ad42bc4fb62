"""Preview of augmentation and mixing on a few pictures, one labelled row per transform."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sprat.augment import pipeline as by_chance
from sprat.augment import transforms as t
from sprat.augment.mixing import MIXERS
from sprat.augment.pipeline import AugmentConfig
from sprat.text import visible


@dataclass(frozen=True)
class Row:
    """Pictures with a title, and captions where there is something to say about each."""

    label: str
    images: Tensor  # uint8 B x C x H x W
    captions: Sequence[str] = ()


def preview(
    images: Tensor,
    labels: Sequence[int],
    classes: Sequence[str],
    *,
    augment: AugmentConfig,
    mixers: Mapping[str, float],
    generator: torch.Generator,
) -> list[Row]:
    """Return rows of the original pictures, each transform alone at its limits, the whole pipeline,
    and each mixer with the resulting targets.

    Args:
        images: uint8, B x C x H x W.
        labels: B indices into `classes`.
        mixers: alpha or beta by name of the mixer.
    """
    rows = [Row("originals", images, [classes[label] for label in labels])]
    rows += _alone(images, augment, generator)
    rows += [
        Row(f"whole pipeline, {nth} time", augment(images, generator)) for nth in ("1st", "2nd")
    ]
    targets = torch.nn.functional.one_hot(torch.tensor(labels), len(classes)).float()
    for name, strength in mixers.items():
        mixed, shares = MIXERS[name](images, targets, strength, True, generator=generator)
        captions = [_shares(row, classes) for row in shares]
        rows.append(Row(MIXERS[name].title, mixed.round().to(torch.uint8), captions))
    return rows


def _alone(images: Tensor, by: AugmentConfig, generator: torch.Generator) -> list[Row]:
    """Apply each transform at its limits, alternating their signs from picture to picture."""
    n, (height, width) = len(images), images.shape[2:]
    sign = 1.0 - 2 * (torch.arange(n) % 2)  # 1, -1, 1, …
    other = 1.0 - 2 * (torch.arange(n) // 2 % 2)  # 1, 1, -1, -1, …
    none = torch.zeros(n)
    still, same = torch.zeros(n, 2), torch.ones(n, 2)

    def moved(shift: Tensor = still, scale: Tensor = same, degrees: Tensor = none) -> Tensor:
        return t.affine(images, shift, scale, degrees, by.crop_mode)

    rows = []
    if by.flip:
        rows.append(Row(f"horizontal flip, p {by.flip:g}", images.flip(3)))
    if by.crop:
        cropped = by_chance.pad_and_crop(images, generator, by.crop, by.crop_mode)
        rows.append(Row(f"crop after padding by {by.crop} px", cropped))
    if p := by.affine:
        shift = torch.stack((sign * by.shift * width, other * by.shift * height), 1).trunc()
        scale = 1 + by.scale * torch.stack((sign, other), 1)
        rows += [
            Row(f"shift ±{by.shift:.0%}, p {p:g}".replace("%", " %"), moved(shift=shift)),
            Row(f"scale ±{by.scale:.0%}, p {p:g}".replace("%", " %"), moved(scale=scale)),
            Row(f"rotation ±{by.rotate:g}°, p {p:g}", moved(degrees=sign * by.rotate)),
        ]
    if p := by.brightness_contrast:
        brighter = t.adjust_brightness_contrast(images, sign * by.brightness, none)
        contrasted = t.adjust_brightness_contrast(images, none, sign * by.contrast)
        rows += [
            Row(f"brightness ±{by.brightness:g}, p {p:g}", brighter),
            Row(f"contrast ±{by.contrast:g}, p {p:g}", contrasted),
        ]
    if p := by.hue_saturation_value:
        for name, limits in (
            (f"hue ±{by.hue:g}°", (by.hue, 0.0, 0.0)),
            (f"saturation ±{by.saturation:g}", (0.0, by.saturation, 0.0)),
            (f"value ±{by.value:g}", (0.0, 0.0, by.value)),
        ):
            if images.shape[1] == 1 and not limits[2]:
                continue  # grey has neither hue nor saturation
            changes = (sign * limit for limit in limits)
            rows.append(Row(f"{name}, p {p:g}", t.adjust_hue_saturation_value(images, *changes)))
    if p := by.coarse_dropout:
        name = f"coarse dropout {by.hole_smallest} to {by.hole_largest} px, p {p:g}"
        sizes = by.hole_smallest, by.hole_largest
        rows.append(Row(name, by_chance.coarse_dropout(images, generator, *sizes, p=1.0)))
    if by.cutout:
        rows.append(Row(f"cutout {by.cutout} px", by_chance.cutout(images, generator, by.cutout)))
    return rows


def _shares(row: Tensor, classes: Sequence[str]) -> str:
    """Return lines such as "0.62 cat", the largest share first, without those below 0.005."""
    order = row.argsort(descending=True).tolist()
    shown = [(row[label].item(), classes[label]) for label in order if row[label] >= 0.005]
    return "\n".join(f"{share:.2f} {visible(name)}" for share, name in shown)
