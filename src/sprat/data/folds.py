"""Folds of cross-validation: the training images in parts, each of which is held out once."""

import torch
from torch import Tensor

from sprat.data.groups import deal
from sprat.data.imageset import ImageSet, class_counts
from sprat.errors import SpratError, shown


def folds(images: ImageSet, count: int, seed: int, groups: Tensor | None = None) -> Tensor:
    """Return the fold of each image: int64, N, 0 to `count` - 1.

    Without groups, fold sizes differ by at most one image, overall and in each class; with groups,
    by as little as whole groups allow.

    Args:
        count: number of folds, at least 2.
        seed: seed of the assignment, which is the same on every machine.
        groups: int64, N; images with the same number are in the same fold.

    Raises:
        SpratError: there are fewer than two folds, more folds than groups or than images of a
            class, or a class would be in a single fold, so that its run could not train on that
            class.
    """
    _check(images, count)
    if groups is not None:
        return _folds_of_groups(images, count, seed, groups)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(images), generator=generator)
    by_class = shuffled[images.targets.cpu()[shuffled].argsort(stable=True)]
    fold = torch.empty(len(images), dtype=torch.int64)
    fold[by_class] = torch.arange(len(images)) % count  # dealt like cards, class after class
    return fold


def _folds_of_groups(images: ImageSet, count: int, seed: int, groups: Tensor) -> Tensor:
    number = len(groups.unique())
    if number < count:
        remedy = f"Give at most {number} folds" if number > 1 else "Name a column with more groups"
        raise SpratError(
            f"folds is {count}, but the training images are in {number} groups, which cannot be "
            f"split. {remedy}, or leave --pictures.group-column out."
        )
    fold = deal(images.targets, groups, (1 / count,) * count, seed)
    for label, name in enumerate(images.classes):
        within = fold[images.targets.cpu() == label].unique()
        if len(within) == 1:
            raise SpratError(
                f"All training images of {shown(name)} are in one fold, because groups are not "
                "split, so the run of that fold would have none of them. Give fewer folds, or "
                "more groups with images of that class."
            )
    return fold


def _check(images: ImageSet, count: int) -> None:
    if count < 2:
        raise SpratError(f"folds is {count}, expected at least 2. Give another number of folds.")
    counts = {name: number for name, number in class_counts(images).items() if number}
    fewest = min(counts, key=counts.__getitem__)
    if count > counts[fewest]:
        most = counts[fewest]
        images_of = "1 training image" if most == 1 else f"{most} training images"
        remedy = f"Give at most {most} folds, or add" if most > 1 else "Add"
        raise SpratError(
            f"folds is {count}, but there are only {images_of} of {shown(fewest)}. {remedy} "
            "images of that class."
        )
