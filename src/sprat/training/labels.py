"""Label check by cross-validation: which labels models that were not trained on them doubt."""

import hashlib
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Unpack

import torch
from safetensors.torch import load_file
from torch import Tensor

from sprat.data import Dataset, assemble
from sprat.data.check import DataCheck
from sprat.data.folds import folds
from sprat.data.suspects import LabelCheck, find_suspects
from sprat.errors import SpratError, shown
from sprat.evaluation.evaluate import top1
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe
from sprat.training.folds import PROBABILITIES_FILE, train_folds
from sprat.training.several import How

RECIPE = "sprint"  # default recipe, with its epochs adapted
IMAGES, EPOCHS = 60_000, (5, 60)  # images each run should see, and the limits of epochs for that


def quick_config(dataset: Dataset, count: int) -> Config:
    """Return RECIPE with enough epochs to learn `count` folds of a dataset roughly, and a batch
    size that the run with the fewest images can fill."""
    config = load_recipe(RECIPE)
    images = len(dataset.train) - int(_fold(dataset, count).bincount().max())
    fewest, most = EPOCHS
    epochs = min(max(fewest, math.ceil(IMAGES / images)), most)
    batch_size = max(2, min(config.batch_size, images))
    return config.changed({"epochs": epochs, "batch_size": batch_size})


def labelled(found: DataCheck, dataset: Dataset) -> Dataset:
    """Return all images of a dataset, whatever their part, as one set to fold. Those found to be
    copies are grouped, since a copy with the same wrong label would confirm it."""
    links = [(pair.first, pair.second) for pair in (*found.leaks, *found.duplicates)]
    if dataset.groups is not None:
        first: dict[int, int] = {}
        grouped = enumerate(dataset.groups.tolist())
        links += [(first.setdefault(group, place), place) for place, group in grouped]
    return assemble(
        dataset.name,
        found.images,
        found.images.subset(torch.tensor([], dtype=torch.int64)),
        groups=_linked(len(found.images), links) if links else None,
        own=dataset.own,
    )


def check_foldable(dataset: Dataset, count: int) -> None:
    """Check that the run of every fold has images of every class to learn from.

    Args:
        dataset: the result of `labelled`.

    Raises:
        SpratError: there are fewer than two classes, or a class has fewer images than there are
            folds or consists of copies of one image.
    """
    images = dataset.train
    if len(images.targets.unique()) < 2:
        raise SpratError(
            f"{dataset.name} has pictures of only one class, so no label can be wrong. Add "
            "pictures of another class, or leave --labels out."
        )
    if dataset.groups is not None:
        for label in images.targets.unique().tolist():
            if len(dataset.groups[images.targets == label].unique()) < 2:
                raise SpratError(
                    f"All pictures of {shown(images.classes[label])} are copies of one another or "
                    "in one group, so a model trained without them would have seen none of that "
                    "class. Add other pictures, or leave --labels out."
                )
    _fold(dataset, count)


def name_of_runs(dataset: Dataset, config: Config) -> str:
    """Return the folder name of a label check's runs; it depends only on data and settings."""
    decides = json.dumps([dataset.md5, dataset.train.classes, config.to_dict()])
    digest = hashlib.blake2b(decides.encode(), digest_size=4).hexdigest()
    return f"labels-{Path(dataset.name).name[:40]}-{digest}"


def check_labels(dataset: Dataset, config: Config, folder: Path, **how: Unpack[How]) -> LabelCheck:
    """Train config.folds runs into `folder`; return what their models say about the labels of the
    images that each was trained without.

    Finished folds are kept and an interrupted one is resumed.

    Args:
        dataset: the result of `labelled`.

    Raises:
        SpratError: as `train_folds`.
    """
    train_folds(config, dataset, folder, **how)
    probabilities, targets = (
        load_file(folder / PROBABILITIES_FILE)["probabilities"],
        dataset.train.targets,
    )
    return LabelCheck(
        how["recipe"],
        config.epochs,
        config.folds,
        top1(probabilities, targets),
        find_suspects(probabilities.numpy(), targets.numpy()),
    )


def _fold(dataset: Dataset, count: int) -> Tensor:
    return folds(dataset.train, count, 0, dataset.groups)


def _linked(count: int, links: Iterable[tuple[int, int]]) -> Tensor:
    """Return the smallest index that each index is linked to, directly or not: int64."""
    least = list(range(count))

    def find(place: int) -> int:
        while least[place] != place:
            least[place] = place = least[least[place]]
        return place

    for one, other in links:
        low, high = sorted((find(one), find(other)))
        least[high] = low
    return torch.tensor([find(place) for place in range(count)])
