"""Overlay of a class activation map on a grey picture, as pixels."""

import torch
from torch import Tensor

from sprat.evaluation.explain import enlarged

# From no evidence to the most: five colours of matplotlib's viridis, whose lightness always rises,
# so that it also works for colour-blind readers and in grey print.
COLOURS = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
OPACITY = 0.6
GREY = (0.299, 0.587, 0.114)  # weights of red, green and blue in brightness


def overlay(picture: Tensor, activation: Tensor) -> Tensor:
    """Return a picture in grey, overlaid with the positive part of the map, coloured from 0 to its
    largest value: uint8, 3 x side x side.

    Args:
        picture: uint8, C x side x side.
        activation: the map, float, H' x W', finite.
    """
    evidence = enlarged(activation, picture.shape[-1]).clamp(min=0)
    evidence = evidence / evidence.max().clamp(min=torch.finfo(evidence.dtype).tiny)
    grey = torch.einsum("chw,c->hw", picture.float().expand(3, -1, -1), torch.tensor(GREY))
    return blended(evidence, grey).permute(2, 0, 1).round().to(torch.uint8)


def blended(evidence: Tensor, grey: Tensor) -> Tensor:
    """Return colours (0 to 255, … x 3) for evidence from 0 to 1, blended with greys of 0 to 255."""
    colours = torch.tensor(COLOURS, dtype=torch.float32)
    place = evidence.clamp(0, 1) * (len(colours) - 1)
    below = place.floor().clamp(max=len(colours) - 2).long()
    colour = torch.lerp(colours[below], colours[below + 1], (place - below)[..., None])
    return torch.lerp(grey[..., None].expand_as(colour), colour, OPACITY)
