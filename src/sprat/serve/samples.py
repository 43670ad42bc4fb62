"""Sample pictures: our own drawings of common classes."""

import tomllib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageDraw, ImageFilter
from torch import Tensor

from sprat.data import shapes10

DRAWINGS = Path(__file__).parent / "page" / "samples.toml"
SIDE = 160  # pixels
FINE = 3  # drawn so many times larger, then reduced, for smooth edges


def draw_samples(classes: Sequence[str]) -> dict[str, Tensor]:
    """Return drawings of those classes that there is a drawing of: uint8, 3 x side x side."""
    if tuple(classes) == shapes10.CLASSES:
        drawn, _ = shapes10.load(seed=1, train_images=len(classes), test_images=1)
        return dict(sorted(zip((classes[i] for i in drawn.targets), drawn.images[:], strict=True)))
    drawings = tomllib.loads(DRAWINGS.read_text(encoding="utf-8"))
    return {name: _draw(**drawings[name]) for name in classes if name in drawings}


def _draw(ground: tuple[str, str], shapes: Sequence[str]) -> Tensor:
    side = FINE * SIDE
    top, bottom = (np.array(ImageColor.getrgb(colour)) for colour in ground)
    fade = np.linspace(0, 1, side)[:, None, None]
    rows = ((1 - fade) * top + fade * bottom).round().astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(rows, (side, side, 3)))
    draw = ImageDraw.Draw(image)
    for shape in shapes:
        kind, colour, *points = shape.split()
        placed = [tuple(side / 100 * float(x) for x in point.split(",")) for point in points]
        if kind == "polygon":
            draw.polygon(placed, colour)
        elif kind == "ellipse":
            draw.ellipse(placed, colour)
        else:
            width = float(kind.removeprefix("line-"))
            draw.line(placed, colour, round(side / 100 * width), joint="curve")
    image = image.filter(ImageFilter.GaussianBlur(FINE / 2))
    image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
