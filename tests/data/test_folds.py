"""Tests of cross-validation folds: each image in one, classes balanced, groups whole."""

from pathlib import Path

import pytest
import torch
from own_pictures import draw
from torch import Tensor

from sprat.data import Dataset, load_dataset
from sprat.data.folds import folds
from sprat.data.groups import deal
from sprat.data.imageset import ImageSet
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError
from sprat.settings.config import Config
from sprat.training.images import split_off_val


def _images(targets: Tensor, classes: int) -> ImageSet:
    names = tuple(f"class {label}" for label in range(classes))
    return ImageSet(torch.zeros(len(targets), 3, 1, 1, dtype=torch.uint8), targets, names)


def _drawn(seed: int, fewest: int = 2) -> tuple[ImageSet, int, torch.Generator]:
    """Return an imbalanced set in random order, a number of folds it allows, and the generator."""
    generator = torch.Generator().manual_seed(seed)

    def between(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    classes = between(1, 8)
    targets = torch.arange(classes).repeat_interleave(
        torch.tensor([between(fewest, 40) for _ in range(classes)])
    )
    targets = targets[torch.randperm(len(targets), generator=generator)]
    return _images(targets, classes), between(2, int(targets.bincount().min()) + 1), generator


@pytest.mark.parametrize("seed", range(60))
def test_folds_are_balanced_in_size_and_class(seed: int) -> None:
    images, count, _ = _drawn(seed)
    fold = folds(images, count, seed)
    assert fold.shape == images.targets.shape
    assert fold.dtype == torch.int64
    by_fold = torch.zeros(count, len(images.classes), dtype=torch.int64)
    by_fold.index_put_((fold, images.targets), torch.tensor(1), accumulate=True)
    assert by_fold.sum() == len(images)
    assert (by_fold.amax(0) - by_fold.amin(0)).max() <= 1
    assert by_fold.sum(1).max() - by_fold.sum(1).min() <= 1
    assert torch.equal(fold, folds(images, count, seed))


def test_other_seed_gives_other_folds() -> None:
    images = _images(torch.arange(5).repeat(40), 5)
    assert not torch.equal(folds(images, 4, 0), folds(images, 4, 1))


@pytest.mark.parametrize("seed", range(60))
def test_groups_stay_whole_and_classes_nearly_even(seed: int) -> None:
    images, _, generator = _drawn(seed, fewest=12)
    groups = torch.randint(0, len(images) // 2, (len(images),), generator=generator)
    count = 2 + seed % 4
    fold = folds(images, count, seed, groups)
    for group in groups.unique():
        assert len(fold[groups == group].unique()) == 1
    assert len(fold.unique()) == count
    largest = int(groups.bincount().max())
    for label in range(len(images.classes)):
        by_fold = fold[images.targets == label].bincount(minlength=count)
        assert by_fold.max() - by_fold.min() <= 2 * largest
    sizes = fold.bincount()
    assert sizes.max() - sizes.min() <= 2 * largest


def test_groups_of_one_image_balance_exactly() -> None:
    images = _images(torch.arange(4).repeat(25), 4)
    fold = folds(images, 5, 0, torch.arange(100))
    for label in range(4):
        assert fold[images.targets == label].bincount().tolist() == [5] * 5


@pytest.mark.parametrize("seed", range(20))
def test_a_part_is_dealt_its_share_in_whole_groups(seed: int) -> None:
    images, _, generator = _drawn(seed)
    targets = images.targets.repeat(10)
    groups = torch.randint(0, len(targets) // 3, (len(targets),), generator=generator)
    part = deal(targets, groups, (0.8, 0.2), seed)
    assert abs((part == 1).float().mean() - 0.2) < 0.05
    for group in groups.unique():
        assert len(part[groups == group].unique()) == 1


@pytest.mark.parametrize(
    ("targets", "count", "groups", "said"),
    [
        ([0, 0, 0, 1, 1], 1, None, r"folds is 1, expected at least 2"),
        ([0, 0, 0, 1, 1], 3, None, r"folds is 3, .* only 2 training images of 'class 1'"),
        ([0, 0, 0, 1], 2, None, r"only 1 training image of 'class 1'\. Add images"),
        ([0, 0, 0, 1, 1, 1], 3, [0, 0, 1, 0, 1, 1], r"folds is 3, .* in 2 groups"),
        ([0, 0, 0, 1, 1, 1], 2, [0, 1, 2, 3, 3, 3], r"All training images of 'class 1'"),
    ],
)  # fmt: skip
def test_impossible_folds_are_refused(
    targets: list[int], count: int, groups: list[int] | None, said: str
) -> None:
    images = _images(torch.tensor(targets), 2)
    with pytest.raises(SpratError, match=said):
        folds(images, count, 0, None if groups is None else torch.tensor(groups))


def _patients(folder: Path, rows: str = "") -> Path:
    """Write a table of 40 pictures of two classes, four per patient."""
    files = sorted(draw(folder / "eyes", red=20, blue=20).rglob("*.*"))
    lines = ["path,label,patient", *(f"{f},{f.parent.name},{n // 4}" for n, f in enumerate(files))]
    table = folder / "eyes" / "all.csv"
    table.write_text("\n".join(lines) + f"\n{rows}")
    return table


def _load(place: Path, column: str = "patient") -> Dataset:
    own = PicturesConfig(side=16, group_column=column)
    return load_dataset(str(place), own=own, log=lambda text: None)


def test_table_groups_stay_together_in_every_part(tmp_path: Path) -> None:
    table = _patients(tmp_path)
    dataset = _load(table)
    groups = dataset.groups
    assert groups is not None
    assert groups.shape == dataset.train.targets.shape
    assert set(groups.bincount().tolist()) == {0, 4}, "no group is in both training and test"
    assert len(dataset.train) == 32
    kept, val = split_off_val(dataset, Config(val_fraction=0.25))
    assert not set(groups[kept].tolist()) & set(groups[val].tolist())
    assert len(val) == 8
    without = _load(table, "")
    assert without.groups is None
    assert without.md5 != dataset.md5
    table.write_text(table.read_text().replace(",9\n", ",8\n"))
    assert _load(table).md5 != dataset.md5, "other groups give other folds"
    assert _load(table, "").md5 == without.md5


def test_groups_are_read_from_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = _patients(tmp_path)
    rows = [line.split(",") for line in table.read_text().split()[1:]]
    columns = {
        "image": [{"bytes": Path(path).read_bytes(), "path": None} for path, _, _ in rows],
        "label": [label for _, label, _ in rows],
        "patient": [int(patient) for _, _, patient in rows],
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "eyes.parquet")
    groups = _load(tmp_path / "eyes.parquet").groups
    assert groups is not None
    assert set(groups.bincount().tolist()) == {0, 4}


@pytest.mark.parametrize(
    ("column", "rows", "said"),
    [
        ("pateint", "", r"no column 'pateint'; did you mean 'patient'\?|no column 'pateint'"),
        ("patient", "red/0.png,red,\n", "Line 42 of .* has no value in 'patient'. Fill it in"),
        ("patient", "red/0.png,red,99\n", "'red/0.png' a different group than Line"),
    ],
)
def test_a_wrong_group_column_is_refused(tmp_path: Path, column: str, rows: str, said: str) -> None:
    with pytest.raises(SpratError, match=said):
        _load(_patients(tmp_path, rows), column)


@pytest.mark.parametrize("option", ["path", "label", "group"])
def test_column_options_for_class_folders_are_refused(tmp_path: Path, option: str) -> None:
    folder = draw(tmp_path / "eyes", red=4, blue=4)
    own = PicturesConfig(side=16, **{f"{option}_column": "patient"})
    said = f"no column 'patient', because it is a folder .* leave --pictures.{option}-column out"
    with pytest.raises(SpratError, match=said):
        load_dataset(str(folder), own=own)


def test_parts_that_divide_groups_are_reported(tmp_path: Path) -> None:
    table = _patients(tmp_path)
    lines = [f"{line},{'test' if n % 8 == 0 else 'train'}" for n, line in enumerate(
        table.read_text().split()[1:]
    )]  # fmt: skip
    table.write_text("\n".join(["path,label,patient,split", *lines]))
    said: list[str] = []
    own = PicturesConfig(side=16, group_column="patient")
    load_dataset(str(table), own=own, log=said.append)
    assert any("5 groups of 'patient' are in more than one part" in text for text in said)
