"""The images that a trained model is evaluated on."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from sprat.data import Dataset
from sprat.data import check_dataset as check_name
from sprat.deferred import deferred
from sprat.errors import SpratError, did_you_mean, shown
from sprat.evaluation import records
from sprat.settings.config import Config
from sprat.text import visible, warn

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.checkpoint import Model
    from sprat.data import imageset
    from sprat.data.found import Summary
    from sprat.data.imageset import ImageSet
else:
    imageset = deferred("sprat.data.imageset")


def check_dataset(dataset: Dataset | str | Path | None) -> None:
    """Check that a dataset given by name exists, before torch is loaded.

    Raises:
        SpratError: there is no such dataset.
    """
    if isinstance(dataset, str | Path):
        check_name(str(dataset))


def find_config(place: Path) -> Config | None:
    """Return the settings that the run in `place` began with; None for a model's file."""
    from sprat.run_folder import read_config

    return read_config(place)[0] if place.is_dir() else None


def default_split(config: Config | None) -> records.Split:
    """Return val for a run that held one out, else test."""
    return "val" if config is not None and not config.final else "test"


@dataclass(frozen=True)
class Evaluated:
    """Images that a model is evaluated on, with the name of their dataset and their split."""

    dataset: str
    split: records.Evaluated
    images: "ImageSet"
    found: "Summary | None"


def load_evaluated(
    console: "Console",
    model: str,
    loaded: "Model",
    config: Config | None,
    split: str,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    pictures: Mapping[str, Any] | None = None,
) -> Evaluated:
    """Return the images that a model is evaluated on, with its classes and channels.

    Own pictures that the model was not trained on are evaluated as a whole, unless a split is
    named.

    Args:
        split: auto, val, test or all.
        pictures: settings for reading own pictures, if they are not those it was trained on.
        The others are as for `load_images`.

    Raises:
        SpratError: the dataset cannot be had, has classes that the model lacks, or has no such
            split.
    """
    from sprat.display import print_found

    best_guess = default_split(config)
    source, config = _load(console, model, loaded, config, dataset, data_dir, pictures, whole=True)
    at_home = source.name == loaded.about.get("dataset")
    at_home |= source.md5 == loaded.about.get("dataset_md5")
    if split == "auto":
        split = "all" if source.own and not at_home else best_guess
    found = source.found
    if split == "all":
        if at_home:
            warn(
                f"All images of {visible(source.name)} include those that {visible(model)} was "
                "trained on, so this accuracy does not measure how well the model generalises."
            )
        images = imageset.joined(source.train, source.test)
        found = found and found.whole(images)
    else:
        _check_unchanged(model, loaded, source, split)
        images = _part(source, config, split)[1]
    if found is not None and not at_home:
        print_found(console, source.name, found)
    if not len(images):
        raise SpratError(
            f"{source.name} has no images in the split {split}. Use --split all, or another "
            "--dataset."
        )
    if lacking := [name for name in images.classes if name not in loaded.classes]:
        meant = did_you_mean(lacking[0], loaded.classes)
        raise SpratError(
            f"{source.name} has the class {shown(lacking[0])}, but {model} classifies "
            f"{', '.join(loaded.classes[:10])}{meant or '.'} Rename the class, or choose another "
            "--dataset."
        )
    which = cast(records.Evaluated, split)
    seen = imageset.with_channels(images, loaded.channels)
    aligned = imageset.with_classes(seen, loaded.classes)
    return Evaluated(source.name, which, aligned, found)


def load_images(
    console: "Console",
    model: str,
    loaded: "Model",
    config: Config | None,
    split: str,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    *,
    exactly: bool = False,
) -> "tuple[str, ImageSet, ImageSet]":
    """Return a dataset's name, its training images, and the images of its test or val, with the
    model's number of channels.

    Args:
        model: name or path that the user gave, for messages.
        config: settings of its run, which determine val; None if there is no run.
        dataset: by default the one that the model was trained on.
        exactly: whether test, like val, must come from exactly the data it was trained on.

    Raises:
        SpratError: the dataset is not available, has other classes, or is not the required one.
    """
    source, config = _load(console, model, loaded, config, dataset, data_dir)
    if loaded.classes != source.train.classes:
        raise SpratError(
            f"{model} classifies {', '.join(loaded.classes)}, but {source.name} has "
            f"{', '.join(source.train.classes)}. Choose another --dataset."
        )
    _check_unchanged(model, loaded, source, split, exactly)
    training, images = (
        imageset.with_channels(part, loaded.channels) for part in _part(source, config, split)
    )
    return source.name, training, images


def _load(
    console: "Console",
    model: str,
    loaded: "Model",
    config: Config | None,
    dataset: Dataset | str | Path | None,
    data_dir: str | Path | None,
    pictures: Mapping[str, Any] | None = None,
    *,
    whole: bool = False,
) -> tuple[Dataset, Config]:
    """Return the dataset, by default the one that the model was trained on, and the settings that
    determine its val.

    Args:
        pictures: settings for reading pictures from another location.
    """
    from sprat.display import load_shown

    if config is None:  # the model also records how own pictures were split
        config = Config.from_dict({"pictures": loaded.about.get("pictures", {})}, model)
    if isinstance(dataset, Dataset):
        return dataset, config
    trained_on = str(loaded.about.get("dataset", "auto"))
    name = str(dataset or trained_on)
    # for a model of one channel, colour is converted to grey
    own = dataclasses.replace(
        config.pictures, side=loaded.side, channels=3 if loaded.channels == 3 else "auto"
    )
    if str(Path(name).resolve()) != trained_on:  # another table has its own columns
        own = dataclasses.replace(own, path_column="", label_column="", group_column="")
    changes = {f"pictures.{key}": value for key, value in (pictures or {}).items()}
    own = dataclasses.replace(config, pictures=own).changed(changes).pictures
    place = None if data_dir is None else Path(data_dir)
    return load_shown(console, name, place, own, whole=whole, table=False), config


def _check_unchanged(
    model: str, loaded: "Model", source: Dataset, split: str, exactly: bool = False
) -> None:
    """Check that val comes from exactly the images that a model was trained on; warn if test may
    not.

    Args:
        exactly: whether test must, too.
    """
    changed = loaded.about.get("dataset_md5") != source.md5
    if changed and (exactly or split == "val"):
        remedy = "" if exactly else ", or use --split test"
        raise SpratError(
            f"{model} was trained on other images than this {source.name}, which does not contain "
            f"its {split}. Give the data that it was trained on{remedy}."
        )
    if source.own and changed and loaded.about.get("dataset") == source.name:
        warn(
            f"The pictures in {visible(source.name)} have changed since {visible(model)} was "
            "trained. If its test part was split off by a seed, the test part may now contain "
            "pictures that the model was trained on."
        )


def _part(source: Dataset, config: Config, split: str) -> "tuple[ImageSet, ImageSet]":
    """Return a dataset's training images, and the images of its test or val."""
    from sprat.training.images import split_off_val

    if split == "test":
        return source.train, source.test
    kept, held_out = split_off_val(source, config)
    return source.train.subset(kept), source.train.subset(held_out)
