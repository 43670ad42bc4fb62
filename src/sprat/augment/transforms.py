"""Pixel arithmetic on whole batches with given parameters, which pipeline.py draws at random.

Images are B x C x H x W on any device, uint8 or float from 0 to 255. The dtype is kept and uint8 is
rounded. Inputs are never changed.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def alternating_flip(images: Tensor, mirrored_first: Tensor, epoch: int) -> Tensor:
    """Mirror each image every other epoch (airbench94, arXiv 2404.00498).

    Args:
        mirrored_first: bool, B: whether an image is mirrored in epochs 0, 2, 4, …
    """
    return mirror(images, mirrored_first if epoch % 2 == 0 else ~mirrored_first)


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirror left to right those images where `chosen` (bool, B) is true."""
    return on_some(images, chosen, lambda images: images.flip(3))


def pad(images: Tensor, padding: int, mode: str) -> Tensor:
    """Pad all four sides as `torch.nn.functional.pad` does, which cannot reflect uint8."""
    if mode == "constant":
        return F.pad(images, (padding,) * 4)
    return _pad_reflected(_pad_reflected(images, padding, 2), padding, 3)


def _pad_reflected(images: Tensor, padding: int, dim: int) -> Tensor:
    before = images.narrow(dim, 1, padding).flip(dim)
    after = images.narrow(dim, images.shape[dim] - 1 - padding, padding).flip(dim)
    return torch.cat((before, images, after), dim)


def affine(
    images: Tensor, shift: Tensor, scale: Tensor, degrees: Tensor, mode: str = "reflect"
) -> Tensor:
    """Scale, rotate counter-clockwise about the centre, then shift, in one bilinear resampling.

    Args:
        shift: B x 2, pixels to the right and down.
        scale: B x 2, along the width and the height.
        degrees: B.
        mode: "reflect" mirrors the image at its outermost pixels, "constant" surrounds it with 0.
    """
    height, width = images.shape[2:]
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    # per source axis: where a pixel comes from, relative to the centre; n is B
    turn = torch.stack((cos, -sin, sin, cos)).view(2, 2, -1) / scale.T[:, None]  # 2, 2, n
    fixed = (turn * shift.T).sum(1)  # 2, n
    along_x, along_y, fixed = (term[:, :, None, None] for term in (turn[:, 0], turn[:, 1], fixed))
    x, y = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (width, height))
    grid = along_x * x + (along_y * y[:, None] - fixed)  # 2, n, H, W
    for axis, side in enumerate((width, height)):  # grid_sample's coordinates are -1 to 1
        grid[axis] /= max(side - 1, 1) / 2
    padding = {"reflect": "reflection", "constant": "zeros"}[mode]
    moved = F.grid_sample(
        images.float(), grid.permute(1, 2, 3, 0), padding_mode=padding, align_corners=True
    )
    return _as_pixels(moved, images.dtype)


def adjust_brightness_contrast(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Return (1 + contrast) x images + 255 x brightness; both are fractions, of shape B."""
    factor, shift = (1 + contrast).view(-1, 1, 1, 1), (255 * brightness).view(-1, 1, 1, 1)
    return _as_pixels((images.float() * factor).add_(shift), images.dtype)


def adjust_hue_saturation_value(
    images: Tensor, hue: Tensor, saturation: Tensor, value: Tensor
) -> Tensor:
    """Add to hue, saturation and value. Greys, which have no hue, keep saturation 0.

    Args:
        images: B x 3 x H x W; or grey, B x 1 x H x W, where only the value changes.
        hue: B, degrees. saturation, value: B, on a scale of 0 to 255.
    """
    if images.shape[1] == 1:
        return _as_pixels(images.float() + value.view(-1, 1, 1, 1), images.dtype)
    degrees, saturation, value = (change.view(-1, 1, 1) for change in (hue, saturation, value))
    floats = images.float()
    red, green, blue = floats.unbind(1)  # B, H, W
    brightest = floats.amax(1)
    chroma = brightest - floats.amin(1)
    coloured = (chroma * 1e6).clamp_(max=1)  # 0 for greys, else 1
    # hue in sixths of the circle: red at 0, green at 2, blue at 4 (or -2); equivalent to the usual
    # three cases by brightest channel
    sixth = (green + blue).sub_(red).sub_(brightest).div_(chroma.clamp(min=1e-6)).add_(2)
    sixth = sixth.copysign_(green - blue).add_(degrees / 60)
    sixth -= 6 * (sixth / 6).floor_()
    saturated = (chroma / brightest.clamp(min=1)).add_(saturation / 255).clamp_(0, 1)
    brightest = (brightest + value).clamp_(0, 255)
    chroma = saturated.mul_(brightest).mul_(coloured)
    # each channel falls by the chroma as the hue moves from one to two sixths away from its own
    out = torch.empty(images.shape, device=images.device)
    torch.sub(2, (sixth - 3).abs_(), out=out[:, 0])
    torch.sub((sixth - 2).abs_(), 1, out=out[:, 1])
    torch.sub((sixth - 4).abs_(), 1, out=out[:, 2])
    out.clamp_(0, 1).mul_(chroma[:, None])
    return _as_pixels(torch.sub(brightest[:, None], out, out=out), images.dtype)


def erase(images: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Blacken one rectangle in each image.

    Args:
        first: int64, B x 2: first row and column of the rectangle.
        end: int64, B x 2: row and column just past it.
    """
    rows, columns = (
        between(side, first[:, axis], end[:, axis]) for axis, side in enumerate(images.shape[2:])
    )
    kept = ~(rows[:, None, :, None] & columns[:, None, None, :])
    return images * kept.to(images.dtype)


def between(side: int, first: Tensor, end: Tensor) -> Tensor:
    """Return which positions along a side are in [first, end) (both int64, n): bool, n x side."""
    place = torch.arange(side, device=first.device)
    return (place >= first[:, None]) & (place < end[:, None])


def resize(images: Tensor, side: int) -> Tensor:
    """Resample to side x side pixels with an antialiased bilinear filter; float32.

    The filter is separable, so two small matrix products suffice.
    """
    if tuple(images.shape[2:]) == (side, side):
        return images.float()
    rows, columns = (_resampling(old, side, images.device) for old in images.shape[2:])
    return rows @ images.float() @ columns.T


@functools.cache
def _resampling(old: int, new: int, device: torch.device) -> Tensor:
    """Return the new x old matrix of weights of the old pixels in each new one."""
    identity = torch.eye(old)[None, None]
    return F.interpolate(identity, (new, old), mode="bilinear", antialias=True)[0, 0].to(device)


def normalize(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn pixels into network input: (images / 255 - mean) / std, float32, channels last.

    Args:
        images: B x C x H x W, uint8 or float, 0 to 255.
        mean, std: C values each, as fractions of full brightness.
    """
    shift, scale = (mean * 255).view(1, -1, 1, 1), (1 / (std * 255)).view(1, -1, 1, 1)
    floats = images.float().sub_(shift) if images.dtype == torch.uint8 else images - shift
    return floats.mul_(scale).contiguous(memory_format=torch.channels_last)


def on_some(
    images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """Return `change(images, *parameters)` where `chosen` (bool, B) is true, else the images
    unchanged.

    A CPU computes only the chosen ones. On a GPU, counting them would synchronise and a CUDA graph
    cannot change shapes, so all are computed.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, *parameters), images)
    index = chosen.nonzero().flatten()
    if not len(index):
        return images
    drawn = (parameter.index_select(0, index) for parameter in parameters)
    changed = change(images.index_select(0, index), *drawn)
    # index_copy would copy uint8 byte by byte, index_select copies whole images
    place = torch.arange(len(images))
    place[index] = torch.arange(len(images), len(images) + len(index))
    return torch.cat((images, changed)).index_select(0, place)


def _as_pixels(floats: Tensor, dtype: torch.dtype) -> Tensor:
    """Clamp to 0 to 255, in place, and round if the dtype is integer."""
    floats.clamp_(0, 255)
    if dtype.is_floating_point:
        return floats
    return floats.round_().int().to(dtype)  # via int32: three times as fast as directly
