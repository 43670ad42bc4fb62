"""Common corruptions, after CIFAR-10-C (Hendrycks and Dietterich 2019, arXiv 1903.12261).

An approximation: ten of its corruptions at similar strengths, so results are comparable with each
other but not with published ones.
"""

import io
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

SEVERITIES = (1, 2, 3, 4, 5)

# maps float images in [0, 1], N x C x H x W, to the same
Corruption = Callable[[Tensor, float, torch.Generator], Tensor]


def _gaussian_noise(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    return x + sigma * torch.randn(x.shape, generator=generator)


def _shot_noise(x: Tensor, photons: float, generator: torch.Generator) -> Tensor:
    return torch.poisson(x * photons, generator=generator) / photons


def _impulse_noise(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    draw = torch.rand(x.shape, generator=generator)
    return torch.where(draw < share / 2, 0.0, torch.where(draw < share, 1.0, x))


def _gaussian_blur(x: Tensor, sigma: float, generator: torch.Generator) -> Tensor:
    offsets = torch.arange(-3, 4)
    weights = torch.exp(-(offsets**2) / (2 * sigma**2))
    weights = (weights / weights.sum()).expand(x.shape[1], 1, 1, 7)
    rows = F.conv2d(F.pad(x, (3, 3, 0, 0), mode="reflect"), weights, groups=len(weights))
    return F.conv2d(F.pad(rows, (0, 0, 3, 3), mode="reflect"), weights.mT, groups=len(weights))


def _motion_blur(x: Tensor, length: float, generator: torch.Generator) -> Tensor:
    """Average along a line of `length` pixels, at a random angle for each image."""
    angles = torch.rand(len(x), generator=generator) * torch.pi
    still = torch.eye(2, 3).repeat(len(x), 1, 1)
    mean = torch.zeros_like(x)
    steps = torch.linspace(-0.5, 0.5, 7)
    for step in steps:
        moved = still.clone()
        moved[:, 0, 2] = 2 * step * length * angles.cos() / x.shape[3]
        moved[:, 1, 2] = 2 * step * length * angles.sin() / x.shape[2]
        grid = F.affine_grid(moved, list(x.shape), align_corners=False)
        mean += F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return mean / len(steps)


def _brightness(x: Tensor, shift: float, generator: torch.Generator) -> Tensor:
    return x + shift


def _contrast(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    mean = x.mean((2, 3), keepdim=True)
    return mean + factor * (x - mean)


def _saturation(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    grey = x.mean(1, keepdim=True)
    return grey + factor * (x - grey)


def _pixelation(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    small = [round(side * factor) for side in x.shape[2:]]
    return F.interpolate(F.interpolate(x, small, mode="area"), x.shape[2:], mode="nearest")


def _jpeg(x: Tensor, quality: float, generator: torch.Generator) -> Tensor:
    pictures = (255 * x).round().byte().permute(0, 2, 3, 1).numpy()
    decoded = []
    for picture in pictures:
        file = io.BytesIO()
        grey = picture.shape[-1] == 1
        Image.fromarray(picture[..., 0] if grey else picture).save(
            file, "JPEG", quality=int(quality)
        )
        decoded.append(np.asarray(Image.open(file)).reshape(picture.shape))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2) / 255


# name -> function, and its strength at each severity
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "motion blur": (_motion_blur, (2, 3, 4, 5, 6)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "saturation": (_saturation, (1.25, 1.5, 1.75, 2.0, 2.5)),
    "pixelation": (_pixelation, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "JPEG": (_jpeg, (80, 65, 58, 50, 40)),
}


def corrupt(images: Tensor, name: str, severity: int, seed: int = 0) -> Tensor:
    """Apply a corruption to images.

    Args:
        images: uint8, N x C x H x W, on the CPU.
        name: a key of CORRUPTIONS. severity: 1 (slight) to 5.
        seed: seed of the random draws.
    """
    corruption, strengths = CORRUPTIONS[name]
    generator = torch.Generator().manual_seed(seed)
    changed = corruption(images.float() / 255, strengths[severity - 1], generator)
    return (255 * changed).round().clamp(0, 255).byte()
