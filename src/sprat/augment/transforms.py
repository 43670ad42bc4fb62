"""Geometry and colour on whole batches: (images, generator, …) -> images.

Images are B x C x H x W, uint8 or float, on any device; each image gets its own draw from
`generator`, which lives on that device. The input is never changed.
"""

import functools

import torch
import torch.nn.functional as F
from torch import Tensor


def horizontal_flip(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirrors each image left to right with probability `p`."""
    chosen = torch.rand(len(images), generator=generator, device=images.device) < p
    return torch.where(chosen.view(-1, 1, 1, 1), images.flip(3), images)


def pad_and_crop(
    images: Tensor, generator: torch.Generator, padding: int = 4, mode: str = "reflect"
) -> Tensor:
    """Pads each side by `padding` pixels, then cuts a window of the old size at random.

    Args:
        mode: "reflect" mirrors the image into the padding, "constant" fills it with 0.
    """
    if padding == 0:
        return images
    height, width = images.shape[2:]
    padded = pad(images, padding, mode)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # B, C, 2p+1, 2p+1, H, W
    top, left = torch.randint(
        2 * padding + 1, (2, len(images)), generator=generator, device=images.device
    )
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """`torch.nn.functional.pad` on all four sides, for uint8 too (which it cannot reflect)."""
    if mode == "constant":
        return F.pad(images, (padding,) * 4)
    rows, columns = (
        torch.arange(-padding, side + padding, device=images.device).abs()
        for side in images.shape[2:]
    )
    height, width = images.shape[2:]
    rows = torch.where(rows < height, rows, 2 * (height - 1) - rows)
    columns = torch.where(columns < width, columns, 2 * (width - 1) - columns)
    return images[:, :, rows][:, :, :, columns]


def resize(images: Tensor, side: int) -> Tensor:
    """Resamples to side x side pixels with the antialiased bilinear filter; float32.

    The filter is separable, so this is two small matrix products.
    """
    if tuple(images.shape[2:]) == (side, side):
        return images.float()
    rows, columns = (_resampling(old, side, images.device) for old in images.shape[2:])
    return rows @ images.float() @ columns.T


@functools.cache
def _resampling(old: int, new: int, device: torch.device) -> Tensor:
    """new x old: the share of each old pixel in each new one."""
    identity = torch.eye(old)[None, None]
    return F.interpolate(identity, (new, old), mode="bilinear", antialias=True)[0, 0].to(device)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Pixels to the network's input: (images / 255 - mean) / std, float32, channels last.

    Args:
        images: B x C x H x W, uint8 or float, 0 to 255.
        mean, std: C values each, as fractions of full brightness.
    """
    shift, scale = (mean * 255).view(1, -1, 1, 1), (1 / (std * 255)).view(1, -1, 1, 1)
    # channels last first, on uint8: a quarter of the bytes to move
    floats = images.contiguous(memory_format=torch.channels_last).float()
    return floats.sub(shift).mul_(scale)
