"""Writes docs/images/explain.png, the drawing of docs/how-to/explain.md.

python docs/draw.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import sprat
from sprat.serve.samples import draw_samples
from sprat.serve.uploads import png

IMAGES = Path(__file__).parent / "images"


def main() -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "truck.png").write_bytes(png(draw_samples(["truck"])["truck"]))
        (found,) = sprat.predict(folder / "truck.png", explain=folder / "maps", quiet=True)
        (IMAGES / "explain.png").write_bytes(Path(found["map"]).read_bytes())
        print(found["predictions"][0], found["where"])


if __name__ == "__main__":
    main()
