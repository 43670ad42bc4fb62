"""Class activation maps of pictures, drawn into a folder, one PNG for each picture."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.errors import SpratError
from sprat.files import writing

if TYPE_CHECKING:
    from sprat.classifier import Classifier, Prediction

DRAWN_SIDE = 384  # pixels
LONGEST_STEM = 200  # bytes; file systems allow 255 for a name


def plan(folder: Path, pictures: Sequence[Path]) -> list[Path]:
    """Return the file in `folder` for each picture: cat.png for a/cat.jpg, cat-2.png for b/cat.jpg.

    Raises:
        SpratError: `folder` is a file, or one of the files exists already.
    """
    if folder.exists() and not folder.is_dir():
        raise SpratError(f"--explain is {folder}, which is not a folder. Name a folder.")
    taken: set[str] = set()
    planned = []
    for picture in pictures:
        name = next(name for name in _names(picture.stem) if name.casefold() not in taken)
        taken.add(name.casefold())  # systems differ in whether case matters
        planned.append(folder / name)
    if existing := next((path for path in planned if os.path.lexists(path)), None):
        raise SpratError(
            f"{existing} exists already and is not overwritten. Name another folder for --explain, "
            "or move that file away."
        )
    return planned


def _names(stem: str) -> Iterator[str]:
    while len(os.fsencode(stem)) > LONGEST_STEM:
        stem = stem[:-1]
    yield f"{stem}.png"
    number = 2
    while True:
        yield f"{stem}-{number}.png"
        number += 1


def make_folder(folder: Path) -> None:
    """Create the folder if it does not exist.

    Raises:
        SpratError: it cannot be created.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def draw(classifier: "Classifier", prediction: "Prediction", path: Path) -> None:
    """Draw where in a picture the evidence for the predicted class is, and add that to the
    prediction; skip a picture that could not be read.

    Raises:
        SpratError: the picture no longer exists, or the drawing cannot be written.
    """
    if not prediction["predictions"]:
        return

    from sprat.data.picture import read_picture
    from sprat.figures.png import draw_explanation

    file, best = Path(prediction["file"]), prediction["predictions"][0]
    (explanation,) = classifier.explain(file, [best["class"]])
    title = f"{best['class']}, {100 * best['probability']:.1f} %"
    seen = read_picture(file, DRAWN_SIDE, classifier.channels)
    draw_explanation(seen, explanation, title, path)
    prediction["where"], prediction["map"] = explanation.where, str(path)
