"""Geometry and colour on whole batches: (images, generator, …) -> images.

Images are B x C x H x W on any device, uint8 or float of 0 to 255; the type is kept, and uint8
is rounded. Each image gets its own draw from `generator`, which lives on the images' device; `p`
is each image's probability of being changed. The input is never changed.

What draws and what computes are apart: `shift_scale_rotate` draws for `affine`,
`brightness_contrast` for `adjust_brightness_contrast`, and so on. Limits and laws of the draws
are those of Albumentations 2.0.8, through which reference.py does the same.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def horizontal_flip(images: Tensor, generator: torch.Generator, p: float = 0.5) -> Tensor:
    """Mirrors each image left to right with probability `p`."""
    return mirror(images, _chosen(images, generator, p))


def alternating_flip(images: Tensor, mirrored_first: Tensor, epoch: int) -> Tensor:
    """Mirrors each image every other epoch (airbench94, arXiv 2404.00498).

    Args:
        mirrored_first: bool, B: whether an image is mirrored in epochs 0, 2, 4, …
    """
    return mirror(images, mirrored_first if epoch % 2 == 0 else ~mirrored_first)


def mirror(images: Tensor, chosen: Tensor) -> Tensor:
    """Mirrors the images left to right where `chosen` (bool, B)."""
    return _on_some(images, chosen, lambda images: images.flip(3))


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
    return _pad_reflected(_pad_reflected(images, padding, 2), padding, 3)


def _pad_reflected(images: Tensor, padding: int, dim: int) -> Tensor:
    before = images.narrow(dim, 1, padding).flip(dim)
    after = images.narrow(dim, images.shape[dim] - 1 - padding, padding).flip(dim)
    return torch.cat((before, images, after), dim)


def shift_scale_rotate(
    images: Tensor,
    generator: torch.Generator,
    shift: float = 0.1,
    scale: float = 0.1,
    rotate: float = 15.0,
    p: float = 0.5,
    mode: str = "reflect",
) -> Tensor:
    """Moves, zooms and turns in one resampling; each direction has its own shift and scale.

    Args:
        shift: largest shift as a share of the side; shifts are whole pixels, rounded to 0.
        scale: largest change of the scale: 0.1 for 0.9 to 1.1.
        rotate: largest angle, in degrees.
        mode: as in `affine`.
    """
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 5)
    height, width = images.shape[2:]
    shifts = torch.stack((draws[0] * (shift * width), draws[1] * (shift * height)), 1).trunc_()
    scales = 1 + scale * draws[2:4].T
    change = functools.partial(affine, mode=mode)
    return _on_some(images, chosen, change, shifts, scales, rotate * draws[4])


def affine(
    images: Tensor, shift: Tensor, scale: Tensor, degrees: Tensor, mode: str = "reflect"
) -> Tensor:
    """Scales, then turns counter-clockwise about the centre, then shifts; bilinear.

    Args:
        shift: B x 2 pixels, to the right and down.
        scale: B x 2, along the width and the height.
        degrees: B.
        mode: "reflect" mirrors the image about its outermost pixels, "constant" surrounds it
            with 0.
    """
    height, width = images.shape[2:]
    angle = degrees.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    # for each axis of the source: from where, about the centre, a pixel comes; n is B
    turn = torch.stack((cos, -sin, sin, cos)).view(2, 2, -1) / scale.T[:, None]  # 2, 2, n
    fixed = (turn * shift.T).sum(1)  # 2, n
    along_x, along_y, fixed = (term[:, :, None, None] for term in (turn[:, 0], turn[:, 1], fixed))
    x, y = (torch.arange(side, device=images.device) - (side - 1) / 2 for side in (width, height))
    grid = along_x * x + (along_y * y[:, None] - fixed)  # 2, n, H, W
    for axis, side in enumerate((width, height)):  # grid_sample counts from -1 to 1
        grid[axis] /= max(side - 1, 1) / 2
    padding = {"reflect": "reflection", "constant": "zeros"}[mode]
    moved = F.grid_sample(
        images.float(), grid.permute(1, 2, 3, 0), padding_mode=padding, align_corners=True
    )
    return _as_pixels(moved, images.dtype)


def brightness_contrast(
    images: Tensor,
    generator: torch.Generator,
    brightness: float = 0.2,
    contrast: float = 0.2,
    p: float = 0.5,
) -> Tensor:
    """Multiplies by 1 ± `contrast`, then adds up to ± `brightness` of full brightness."""
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 2)
    changes = draws[0] * brightness, draws[1] * contrast
    return _on_some(images, chosen, adjust_brightness_contrast, *changes)


def adjust_brightness_contrast(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """(1 + contrast) x images + 255 x brightness, both of B fractions."""
    factor, shift = (1 + contrast).view(-1, 1, 1, 1), (255 * brightness).view(-1, 1, 1, 1)
    return _as_pixels((images.float() * factor).add_(shift), images.dtype)


def hue_saturation_value(
    images: Tensor,
    generator: torch.Generator,
    hue: float = 40.0,
    saturation: float = 30.0,
    value: float = 20.0,
    p: float = 0.5,
) -> Tensor:
    """Turns the hue by up to `hue` degrees and adds to saturation and value (of 0 to 255)."""
    chosen = _chosen(images, generator, p)
    draws = _uniform(images, generator, 3)
    changes = draws[0] * hue, draws[1] * saturation, draws[2] * value
    return _on_some(images, chosen, adjust_hue_saturation_value, *changes)


def adjust_hue_saturation_value(
    images: Tensor, hue: Tensor, saturation: Tensor, value: Tensor
) -> Tensor:
    """Adds to the coordinates of HSV; greys, which have no hue, keep their saturation of 0.

    Args:
        images: B x 3 x H x W.
        hue: B degrees. saturation, value: B, on a scale of 0 to 255.
    """
    degrees, saturation, value = (change.view(-1, 1, 1) for change in (hue, saturation, value))
    floats = images.float()
    red, green, blue = floats.unbind(1)  # B, H, W
    brightest = floats.amax(1)
    chroma = brightest - floats.amin(1)
    coloured = (chroma * 1e6).clamp_(max=1)  # 0 for greys, 1 for all else
    # where on the circle of hues, in sixths: red at 0, green at 2, blue at 4 (or -2); the usual
    # three cases for the brightest channel come to this
    sixth = (green + blue).sub_(red).sub_(brightest).div_(chroma.clamp(min=1e-6)).add_(2)
    sixth = sixth.copysign_(green - blue).add_(degrees / 60)
    sixth -= 6 * (sixth / 6).floor_()
    saturated = (chroma / brightest.clamp(min=1)).add_(saturation / 255).clamp_(0, 1)
    brightest = (brightest + value).clamp_(0, 255)
    chroma = saturated.mul_(brightest).mul_(coloured)
    # each channel falls by the chroma as the hue goes from one to two sixths away from its own
    out = torch.empty(images.shape, device=images.device)
    torch.sub(2, (sixth - 3).abs_(), out=out[:, 0])
    torch.sub((sixth - 2).abs_(), 1, out=out[:, 1])
    torch.sub((sixth - 4).abs_(), 1, out=out[:, 2])
    out.clamp_(0, 1).mul_(chroma[:, None])
    return _as_pixels(torch.sub(brightest[:, None], out, out=out), images.dtype)


def coarse_dropout(
    images: Tensor,
    generator: torch.Generator,
    smallest: int = 4,
    largest: int = 8,
    p: float = 0.3,
) -> Tensor:
    """Blackens one rectangle inside the image, `smallest` to `largest` pixels high and wide."""
    chosen = _chosen(images, generator, p)
    draws = torch.rand(len(images), 4, generator=generator, device=images.device)
    first, end = [], []
    for axis, side in enumerate(images.shape[2:]):
        size = smallest + (draws[:, axis] * (largest - smallest + 1)).long()
        size = size.clamp_(max=side)
        first.append((draws[:, 2 + axis] * (side - size + 1)).long())
        end.append(first[axis] + size)
    return _on_some(images, chosen, erase, torch.stack(first, 1), torch.stack(end, 1))


def cutout(images: Tensor, generator: torch.Generator, size: int = 8, p: float = 1.0) -> Tensor:
    """Blackens a square of `size` pixels centred anywhere; what lies beyond the border is cut
    off (arXiv 1708.04552)."""
    chosen = _chosen(images, generator, p)
    draws = torch.rand(len(images), 2, generator=generator, device=images.device)
    centres = [draws[:, axis] * side for axis, side in enumerate(images.shape[2:])]
    first = torch.stack(centres, 1).long() - size // 2
    return _on_some(images, chosen, erase, first, first + size)


def erase(images: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Blackens one rectangle in each image.

    Args:
        first: int64, B x 2: its first row and column.
        end: int64, B x 2: those just behind it.
    """
    rows, columns = (
        between(side, first[:, axis], end[:, axis]) for axis, side in enumerate(images.shape[2:])
    )
    kept = ~(rows[:, None, :, None] & columns[:, None, None, :])
    return images * kept.to(images.dtype)


def between(side: int, first: Tensor, end: Tensor) -> Tensor:
    """Which places along a side lie from `first` to before `end` (int64, n); bool, n x side."""
    place = torch.arange(side, device=first.device)
    return (place >= first[:, None]) & (place < end[:, None])


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
    floats = images.float().sub_(shift) if images.dtype == torch.uint8 else images - shift
    return floats.mul_(scale).contiguous(memory_format=torch.channels_last)


def _chosen(images: Tensor, generator: torch.Generator, p: float) -> Tensor:
    return torch.rand(len(images), generator=generator, device=images.device) < p


def _uniform(images: Tensor, generator: torch.Generator, draws: int) -> Tensor:
    """draws x B numbers, uniform in [-1, 1)."""
    return torch.empty(draws, len(images), device=images.device).uniform_(
        -1, 1, generator=generator
    )


def _on_some(
    images: Tensor, chosen: Tensor, change: Callable[..., Tensor], *parameters: Tensor
) -> Tensor:
    """`change(images, *parameters)` where `chosen`, the images as they are elsewhere.

    A CPU computes the chosen ones alone. A GPU would have to wait for their number, and a
    recorded graph cannot change shapes: there all are computed.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), change(images, *parameters), images)
    index = chosen.nonzero().flatten()
    if not len(index):
        return images
    drawn = (parameter.index_select(0, index) for parameter in parameters)
    changed = change(images.index_select(0, index), *drawn)
    # index_copy would move uint8 byte by byte; index_select goes image by image
    place = torch.arange(len(images))
    place[index] = torch.arange(len(images), len(images) + len(index))
    return torch.cat((images, changed)).index_select(0, place)


def _as_pixels(floats: Tensor, dtype: torch.dtype) -> Tensor:
    """In place: 0 to 255, rounded where they become whole numbers."""
    floats.clamp_(0, 255)
    if dtype.is_floating_point:
        return floats
    return floats.round_().int().to(dtype)  # by way of int32, thrice as fast as directly
