"""Intact pictures in every form, to be damaged, and to be used after damaged ones."""

import io
import json
import multiprocessing
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from faults.world import CLASSES, World

PICTURES = 6  # in each class
TARS = {".tar": "w", ".tgz": "w:gz", ".gz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}


class Sound:
    """Intact pictures of a few classes, as class folders or as a file whose suffix says its form.

    rows: path and label of each picture. pixels: those of all pictures, as the cache stores them.
    """

    def __init__(self, world: World) -> None:
        root = world.scratch / "own"
        self.folder, self.shards = root / "folder", root / "shards"
        if not root.exists():
            for label in range(CLASSES):
                (self.folder / f"class-{label}").mkdir(parents=True)
                for number in range(PICTURES):
                    name = f"class-{label}/{number}.png"
                    shutil.copy(world.pictures / name, self.folder / name)
        self.rows = [
            (f"class-{label}/{number}.png", f"class-{label}")
            for label in range(CLASSES)
            for number in range(PICTURES)
        ]
        self.pixels = b"".join(map(self._pixels, self.rows))

    def _pixels(self, row: tuple[str, str]) -> bytes:
        from PIL import Image

        with Image.open(self.folder / row[0]) as image:
            return np.asarray(image).transpose(2, 0, 1).tobytes()

    def copy(self, to: Path) -> Path:
        """Copy the class folders into a folder; return that folder."""
        shutil.copytree(self.folder, to, dirs_exist_ok=True)
        return to

    def packed(self, suffix: str) -> bytes:
        """Return an archive of the pictures."""
        file = io.BytesIO()
        if suffix == ".zip":
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
                for path, _ in self.rows:
                    packed.write(self.folder / path, path)
        else:
            with tarfile.open(fileobj=file, mode=TARS[suffix]) as tar:  # type: ignore[call-overload]
                for path, _ in self.rows:
                    tar.add(self.folder / path, path)
        return file.getvalue()

    def table(self, separator: str = ",") -> str:
        """Return a table of the pictures, to be put next to the class folders."""
        return "".join(separator.join(row) + "\n" for row in [("path", "label"), *self.rows])

    def put(self, place: Path) -> Path:
        """Write the pictures to a path, as a file if its suffix says so or else as a folder; return
        the path."""
        suffix = place.suffix.lower()
        if suffix == ".zip" or suffix in TARS:
            place.write_bytes(self.packed(suffix))
        elif suffix == ".parquet":
            shutil.copy(self.shards / "sound.parquet", place)
        elif suffix in (".csv", ".tsv", ".jsonl"):
            self.copy(place.parent)
            rows = [{"path": path, "label": label} for path, label in self.rows]
            lines = "\n".join(map(json.dumps, rows))
            text = self.table("\t" if suffix == ".tsv" else ",")
            place.write_text(lines if suffix == ".jsonl" else text)
        else:
            self.copy(place)
        return place


def in_a_process(make: Callable[[], None]) -> None:
    """Run a function that starts threads in a separate process, so that this one can still fork."""
    process = multiprocessing.get_context("fork").Process(target=make)
    process.start()
    process.join()
    assert process.exitcode == 0
