"""Names of sets of views and of files, separate from what they name: that imports torch, and a
mistyped name should be reported at once."""

from pathlib import Path

from sprat.errors import SpratError

VIEWS = (1, 2, 6, 8, 10, 26)  # views of an image that test-time augmentation can average
CHECK_FOLDS = 5  # default number of folds for checking labels
WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes per value on the device
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"
PACKED_FILE = f"{MODEL_FILE}.xz"  # of a pretrained model


def check_views(views: int) -> None:
    """Check that there is a set of that many views.

    Raises:
        SpratError: there is none.
    """
    if views not in VIEWS:
        offered = ", ".join(map(str, VIEWS))
        raise SpratError(
            f"tta is {views}, expected a number of views among {offered}. Give one of these."
        )


def check_one_run(folder: Path) -> None:
    """Check that a folder that is not a run does not contain several runs.

    Raises:
        SpratError: it contains the runs of seeds or folds.
    """
    for kind in ("seed", "fold"):
        runs = [path for path in folder.glob(f"{kind}-[0-9]*") if path.is_dir()]
        runs.sort(key=lambda path: (len(path.name), path.name))
        if runs:
            names = ", ".join(path.name for path in runs[:10]) + (", …" if runs[10:] else "")
            raise SpratError(
                f"{folder} contains several {kind}s ({names}). Name one of them: {runs[0]}"
            )


def check_png(path: str | Path | None, option: str) -> None:
    """Check that the path of a picture to write, if given, ends in .png.

    Raises:
        SpratError: it does not.
    """
    if path is not None and Path(path).suffix.lower() != ".png":
        raise SpratError(
            f"{option} is {path}, expected a name that ends in .png. Give another name."
        )


def check_page(path: Path, overwrite: bool, *, may_replace: Path | None = None) -> Path:
    """Return the path of a page to write, if it ends in .html and may be written.

    Args:
        may_replace: a page that is always replaced, whatever `overwrite` is.

    Raises:
        SpratError: it does not end in .html, or exists and must not be overwritten.
    """
    if path.suffix.lower() not in (".html", ".htm"):
        raise SpratError(
            f"--output is {path}, expected a name that ends in .html. Give another name."
        )
    own = may_replace is not None and path.resolve() == may_replace.resolve()
    if path.exists() and not overwrite and not own:
        raise SpratError(
            f"{path} exists already and is not overwritten. Give another --output, or --overwrite."
        )
    return path
