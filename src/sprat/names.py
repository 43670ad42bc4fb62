"""Names of datasets, sets of views and files, apart from what they name: that loads
torch, and a mistyped name is to be answered at once.
"""

from pathlib import Path

from sprat.errors import SpratError

PUBLISHED = ("cifar10", "cifar100", "svhn")
DATASETS = ("auto", *PUBLISHED, "shapes10")
VIEWS = (1, 2, 6, 8, 10, 26)  # views of an image that test-time augmentation can average
WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes of a value where a network runs
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"


def check_dataset(name: str) -> None:
    """Check that a dataset has that name, or that it is a folder.

    Raises:
        SpratError: it is neither.
    """
    if name not in DATASETS and not Path(name).is_dir():
        raise SpratError(
            f"there is no dataset {name!r}; there are {', '.join(DATASETS)}, or give the path "
            "of a folder that holds a folder of pictures for each class"
        )


def check_published(name: str) -> None:
    """Check that a published dataset has that name.

    Raises:
        SpratError: none has.
    """
    if name not in PUBLISHED:
        raise SpratError(f"{name!r} is not a published dataset; there are {', '.join(PUBLISHED)}")


def check_views(views: int) -> None:
    """Check that there is a set of so many views.

    Raises:
        SpratError: there is none.
    """
    if views not in VIEWS:
        offered = ", ".join(map(str, VIEWS))
        raise SpratError(f"tta is {views}, expected a number of views among {offered}")


def check_png(path: str | Path | None, option: str) -> None:
    """Check that a picture's file, if one is given, ends in .png.

    Raises:
        SpratError: it does not.
    """
    if path is not None and Path(path).suffix.lower() != ".png":
        raise SpratError(f"{option} is {path}, expected a name that ends in .png")
