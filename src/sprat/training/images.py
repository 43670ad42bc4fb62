"""Images that a run trains on, and those that it is evaluated on meanwhile."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sprat.augment.preview import Row, preview
from sprat.augment.reference import AlbumentationsPipeline
from sprat.data import Dataset
from sprat.data.batches import Batches
from sprat.data.folds import folds
from sprat.data.imageset import Images, ImageSet, class_counts, stratified_split
from sprat.data.workers import WorkerBatches
from sprat.errors import SpratError, shown
from sprat.settings.config import Config

PROBE_IMAGES = 2_000  # training images, not augmented, on which a final run's progress is measured
BATCHNORM_IMAGES = 5_120  # training images for the BatchNorm statistics of the average
BATCHNORM_BATCH = 64  # of them per batch; only full batches are used


@dataclass(frozen=True)
class RunImages:
    """Images of a run, by purpose.

    batches: to train on. val: held out to choose weights; None in a final run. probe: training
    images without augmentation. batchnorm: uint8, to estimate BatchNorm statistics of the average
    from.
    """

    batches: Batches
    val: ImageSet | None
    probe: ImageSet
    batchnorm: Images

    @classmethod
    def of(cls, dataset: Dataset, config: Config) -> "RunImages":
        """Divide the training images of a dataset; `config` is settled for this machine.

        Raises:
            SpratError: there are too few.
        """
        train_set, val = dataset.train, None
        if not config.final:
            kept, held_out = split_off_val(dataset, config)
            val = train_set.subset(held_out).to(torch.device(config.device))
            train_set = train_set.subset(kept)
        train_set = _fewer(train_set, config)
        count = min(BATCHNORM_IMAGES, len(train_set))
        count -= count % BATCHNORM_BATCH if count > BATCHNORM_BATCH else 0
        return cls(
            batches=make_batches(train_set, config),
            val=val,
            probe=_some(train_set, PROBE_IMAGES, config),
            batchnorm=_some(train_set, count, config).images,
        )

    def batchnorm_batches(self) -> Iterable[Tensor]:
        """Return the batches to estimate BatchNorm statistics from."""
        return self.batchnorm.split(BATCHNORM_BATCH)

    @property
    def evaluated(self) -> tuple[Literal["val", "probe"], ImageSet]:
        """Name and images that accuracy during the run is measured on."""
        return ("probe", self.probe) if self.val is None else ("val", self.val)


def split_off_val(dataset: Dataset, config: Config) -> tuple[Tensor, Tensor]:
    """Return the indices of the training images that a run without `final` trains on, and those of
    its val: its fold if it has one, else the dataset's own val, else a fraction of each class.

    Raises:
        SpratError: val would be empty, or the images cannot be divided into folds.
    """
    train_set = dataset.train
    if config.fold:
        held = folds(train_set, config.folds, config.split_seed, dataset.groups) == config.fold - 1
        return (~held).nonzero().flatten(), held.nonzero().flatten()
    if dataset.val is not None:
        kept = torch.ones(len(train_set), dtype=torch.bool)
        kept[dataset.val] = False
        return kept.nonzero().flatten(), dataset.val
    held_out = round(len(train_set) * config.val_fraction)
    if held_out < 1:
        raise SpratError(
            f"val_fraction is {config.val_fraction}, which holds out none of "
            f"{len(train_set)} training images. Give at least {1 / len(train_set):.2g}."
        )
    kept, val = stratified_split(train_set.targets, held_out, config.split_seed, dataset.groups)
    if dataset.groups is not None:
        _check_groups(train_set, kept, val, config)
    return kept, val


def _check_groups(train_set: ImageSet, kept: Tensor, val: Tensor, config: Config) -> None:
    """Check that both the training images and val got groups.

    Raises:
        SpratError: groups are too large to divide.
    """
    fraction = f"val_fraction is {config.val_fraction}, but groups of images are not split"
    if not len(val):
        raise SpratError(
            f"{fraction}, and every group is too large for val. Give a higher val_fraction, or a "
            "column of smaller groups."
        )
    counts = class_counts(train_set.subset(kept))
    if lost := next((name for name in counts if not counts[name]), None):
        raise SpratError(
            f"{fraction}, and no image of {shown(lost)} is left to train on. Add groups with "
            "images of it, or give another split_seed."
        )


def _fewer(train_set: ImageSet, config: Config) -> ImageSet:
    if config.train_images in (0, len(train_set)):
        return train_set
    if config.train_images > len(train_set):
        raise SpratError(
            f"train_images is {config.train_images:,}, but there are only {len(train_set):,} "
            "training images. Give fewer, or 0 for all."
        )
    _, chosen = stratified_split(train_set.targets, config.train_images, config.split_seed)
    return train_set.subset(chosen)


def _some(train_set: ImageSet, count: int, config: Config) -> ImageSet:
    _, chosen = stratified_split(train_set.targets, min(count, len(train_set)), config.split_seed)
    return train_set.subset(chosen).to(torch.device(config.device))


def make_batches(train_set: ImageSet, config: Config) -> Batches:
    """Return the batches of a run, augmented by worker processes if the config says so."""
    device, augment = torch.device(config.device), config.augment
    if augment.engine == "batched":
        return Batches(
            train_set.to(device),
            config.batch_size,
            config.seed,
            alternating_flip=augment.flip_mode == "alternating",
        )
    return WorkerBatches(
        train_set,
        config.batch_size,
        config.seed,
        augment=AlbumentationsPipeline(augment, train_set.images.shape[1]),
        workers=augment.workers or config.threads,
        device=device,
    )


def balanced_weights(train_set: ImageSet) -> Tensor:
    """Return weights (float32, K) that give all classes the same total weight in the loss; their
    mean over the images is 1."""
    counts = train_set.targets.bincount(minlength=len(train_set.classes))
    return len(train_set) / ((counts > 0).sum() * counts.clamp_min(1)).float()


def preview_augmentation(config: Config, train_set: ImageSet, columns: int) -> list[Row]:
    """Preview augmentation and mixing with `config` on `columns` training images of as many
    classes, row by row (see augment/preview.py)."""
    # one image of each class in turn, and the next ones if there are more columns
    members = [(train_set.targets == label).nonzero() for label in range(len(train_set.classes))]
    chosen = [
        of_class[column % len(of_class)].item()
        for column, of_class in zip(range(columns), itertools.cycle(members), strict=False)
    ]
    shown = train_set.subset(torch.tensor(chosen))
    return preview(
        shown.images[:],
        shown.targets.tolist(),
        train_set.classes,
        augment=config.augment,
        mixers={
            name: config.mixing.strengths[name]
            for name, probability in config.mixing.probabilities.items()
            if probability
        },
        generator=torch.Generator().manual_seed(config.seed),
    )
