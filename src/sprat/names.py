"""Names of datasets, networks, sets of views and files, apart from what they name: that loads
torch, and a mistyped name is to be answered at once.
"""

from collections.abc import Iterable
from pathlib import Path

from sprat.errors import SpratError, did_you_mean, plain

PUBLISHED = ("cifar10", "cifar100", "svhn")
DATASETS = ("auto", *PUBLISHED, "shapes10")
NETWORKS = (
    "OptimizedCIFAR10Net200K",
    "SpratT",
    "SpratS",
    "SpratM",
    "SpratL",
    "ResNet8",
    "ResNet20",
    "ResNet20A",
    "WRN16x1",
    "Tiniest",
    "DenseNetBC40",
    "ShuffleNetV2x05",
    "MobileNetV2",
    "ResNet18",
)
VIEWS = (1, 2, 6, 8, 10, 26)  # views of an image that test-time augmentation can average
WIDTHS = {"fp32": 4, "fp16": 2, "int8": 1}  # bytes of a value where a network runs
MODEL_FILE, CARD_FILE = "model.safetensors", "card.json"


def find_network(name: str, known: Iterable[str] = NETWORKS) -> str:
    """Return the known name that `name` stands for; case, "-" and "_" do not matter.

    Raises:
        SpratError: no network has that name; gives the names there are and the nearest.
    """
    by_plain_name = {plain(each): each for each in known}
    if plain(name) in by_plain_name:
        return by_plain_name[plain(name)]
    names = list(by_plain_name.values())
    raise SpratError(
        f"there is no model {name!r}{did_you_mean(name, names)} Known: {', '.join(names)}"
    )


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
