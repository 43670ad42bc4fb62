"""Checks of a dataset: leaks, duplicates, conflicting or suspect labels, blank pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sprat.data import Dataset
from sprat.data.duplicates import FLAT, Pair, find_pairs, traits_of
from sprat.data.found import PARTS
from sprat.data.imageset import ImageSet, Rows, class_counts, joined
from sprat.data.pictures import files_of
from sprat.data.suspects import LabelCheck

BLANK = 3  # grey levels between the brightest and darkest value of a blank picture's channel
_HOW = ("recipe", "epochs", "folds", "top1", "confident")  # what is reported of a label check
MOST_COMPARED = 2 * 10**9  # pairs of pictures up to which training looks for near copies


@dataclass(frozen=True)
class DataCheck:
    """Problems found in a dataset. Pictures are numbered consecutively through train, val and
    test."""

    dataset: str
    """Name of the dataset, or path of your own pictures."""
    images: ImageSet
    """All pictures."""
    parts: tuple[str, ...]
    """Part of each picture: train, val or test."""
    names: tuple[str, ...]
    """Path of each picture; without one, its part and number: test/17."""
    per_class: dict[str, dict[str, int]]
    """Number of pictures of each class, by part."""
    leaks: list[Pair]
    """Pairs of equal or nearly equal pictures in different parts."""
    duplicates: list[Pair]
    """Pairs of equal or nearly equal pictures in the same part."""
    conflicts: list[Pair]
    """Pairs of leaks and duplicates whose labels differ."""
    unreadable: list[tuple[str, str]]
    """Path of each file that is not a picture, and the reason."""
    tiny: list[int]
    """Pictures whose shorter side is less than half the side used for training."""
    blank: list[int]
    """Pictures of a single colour, within 3 grey levels."""
    nearly_constant: list[int]
    """Pictures of nearly a single colour."""
    labels: LabelCheck | None = None
    """Result of checking the labels by cross-validation; None if it was not requested."""

    @property
    def ok(self) -> bool:
        """Return whether there are neither leaks nor conflicting labels."""
        return not self.leaks and not self.conflicts

    def label(self, place: int) -> str:
        """Return the class of a picture."""
        return self.images.classes[int(self.images.targets[place])]

    def short(self, name: str) -> str:
        """Return a picture's path within the dataset's folder or archive."""
        return name.removeprefix(f"{self.dataset}/").removeprefix(f"{self.dataset}: ")

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; pairs are pairs of names."""
        named = {
            name: [[self.names[pair.first], self.names[pair.second]] for pair in pairs]
            for name, pairs in (
                ("leaks", self.leaks),
                ("duplicates", self.duplicates),
                ("conflicts", self.conflicts),
                ("near", [p for p in (*self.leaks, *self.duplicates) if not p.exact]),
            )
        }
        return {
            "dataset": self.dataset,
            "ok": self.ok,
            "per_class": self.per_class,
            **named,
            "conflict_labels": [
                [self.label(pair.first), self.label(pair.second)] for pair in self.conflicts
            ],
            **self._labels_to_dict(),
            "unreadable": [list(each) for each in self.unreadable],
            **{
                name: [self.names[place] for place in places]
                for name, places in (
                    ("tiny", self.tiny),
                    ("blank", self.blank),
                    ("nearly_constant", self.nearly_constant),
                )
            },
        }

    def _labels_to_dict(self) -> dict[str, Any]:
        if self.labels is None:
            return {"labels": None, "suspects": None}
        about = {name: getattr(self.labels, name) for name in _HOW}
        return {
            "labels": about,
            "suspects": [
                {
                    "path": self.names[each.place],
                    "label": self.images.classes[each.label],
                    "suggested": self.images.classes[each.suggested],
                    "label_probability": each.label_probability,
                    "suggested_probability": each.suggested_probability,
                    "confident": each.confident,
                }
                for each in self.labels.suspects
            ],
        }


def check(dataset: Dataset) -> DataCheck:
    """Find problems that would make results on a dataset misleading.

    Raises:
        SpratError: your own pictures are no longer where they were.
    """
    images, numbers = _together(dataset)
    traits = traits_of(images.images)
    pairs = find_pairs(images.images, numbers, traits)
    across = [bool(numbers[pair.first] != numbers[pair.second]) for pair in pairs]
    targets = images.targets.numpy()
    blank = traits.ranges <= BLANK
    names = [f"train/{n}" for n in range(len(dataset.train))]
    names += [f"test/{n}" for n in range(len(dataset.test))]
    unreadable: list[tuple[str, str]] = []
    tiny: list[int] = []
    if dataset.own is not None and isinstance(images.images, Rows):
        files, rows = files_of(Path(dataset.name), dataset.own), images.images.rows.tolist()
        names, unreadable = [files.names[row] for row in rows], files.unreadable
        least = dataset.own.side / 2
        tiny = [place for place, row in enumerate(rows) if min(files.sizes[row]) < least]
    return DataCheck(
        dataset=dataset.name,
        images=images,
        parts=tuple(PARTS[number] for number in numbers.tolist()),
        names=tuple(names),
        per_class={
            PARTS[number]: class_counts(
                images.subset(torch.from_numpy(np.flatnonzero(numbers == number)))
            )
            for number in np.unique(numbers).tolist()
        },
        leaks=[pair for pair, leaks in zip(pairs, across, strict=True) if leaks],
        duplicates=[pair for pair, leaks in zip(pairs, across, strict=True) if not leaks],
        conflicts=[pair for pair in pairs if targets[pair.first] != targets[pair.second]],
        unreadable=unreadable,
        tiny=tiny,
        blank=np.flatnonzero(blank).tolist(),
        nearly_constant=np.flatnonzero((traits.spreads < FLAT) & ~blank).tolist(),
    )


def count_leaks(dataset: Dataset) -> int:
    """Count the pictures of val and test that are also in an earlier part, exactly or nearly.

    Near copies are not looked for in a set so large that this would delay training (MOST_COMPARED).
    """
    images, numbers = _together(dataset)
    traits = traits_of(images.images)
    counts = np.bincount(numbers, minlength=len(PARTS))
    near = int(counts[:-1].sum()) * int(counts[1:].sum()) <= MOST_COMPARED
    pairs = find_pairs(images.images, numbers, traits, within=False, near=near)
    return len({pair.second for pair in pairs})


def _together(dataset: Dataset) -> tuple[ImageSet, NDArray[np.int64]]:
    """Return the images of all parts, training images first, and the part number of each."""
    numbers = np.repeat([0, 2], [len(dataset.train), len(dataset.test)])
    if dataset.val is not None:
        numbers[dataset.val.numpy()] = 1
    return joined(dataset.train, dataset.test), numbers
