"""Pictures of noise drawn for tests, in any size, mode and format."""

from pathlib import Path

import numpy as np
from PIL import Image

FORMS = [
    ("1", "png"), ("L", "jpg"), ("LA", "png"), ("P", "gif"), ("RGB", "bmp"), ("RGBA", "webp"),
    ("CMYK", "tif"), ("I;16", "png"), ("RGB", "jpg"),
]  # fmt: skip


def draw_picture(path: Path, mode: str = "RGB", seed: int = 0) -> None:
    """Save a picture of noise of random size; in a folder "red", it is reddish."""
    rng = np.random.default_rng(seed)
    height, width = rng.integers(20, 60, 2)
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (height, width), dtype=np.uint16))
    else:
        pixels = rng.integers(0, 120, (height, width, 3), dtype=np.uint8)
        if path.parent.name == "red":
            pixels[:, :, 0] = 255
        image = Image.fromarray(pixels).convert(mode)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def draw(folder: Path, **counts: int) -> Path:
    """Draw `counts` pictures into class folders; "__" in a class's name stands for a slash."""
    for seed, (name, count) in enumerate(counts.items()):
        for i in range(count):
            mode, suffix = FORMS[i % len(FORMS)]
            place = folder / name.replace("__", "/")
            draw_picture(place / f"{i}.{suffix}", mode, 1000 * seed + i)
    return folder
