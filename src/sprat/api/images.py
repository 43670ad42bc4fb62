"""The images that a trained model is evaluated on."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.data import Dataset
from sprat.data import check_dataset as check_name
from sprat.errors import SpratError
from sprat.evaluation.records import Split
from sprat.settings.config import Config
from sprat.text import visible, warn

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.checkpoint import Model
    from sprat.data.imageset import ImageSet


def check_dataset(dataset: Dataset | str | Path | None) -> None:
    """Check that a dataset given by its name is one, before torch is loaded.

    Raises:
        SpratError: it is not.
    """
    if isinstance(dataset, str | Path):
        check_name(str(dataset))


def find_config(place: Path) -> Config | None:
    """Return the settings that the run in `place` began with; None for a model's file."""
    from sprat.run_folder import read_config

    return read_config(place)[0] if place.is_dir() else None


def default_split(config: Config | None) -> Split:
    """Return val for a run that held one out, else test."""
    return "val" if config is not None and not config.final else "test"


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
    """Return a dataset's name, its training images, and the images of its test or val.

    Args:
        model: what the user called it.
        config: of its run, which decides val; None where there is no run.
        dataset: by default the one that the model was trained on.
        exactly: whether test too must be of the very data it was trained on, as val must.

    Raises:
        SpratError: the dataset cannot be had, has other classes, or is not the one it must be.
    """
    from sprat.display import load_shown
    from sprat.training.images import split_off_val

    if config is None:  # how own pictures were split is in the model too
        config = Config.from_dict({"pictures": loaded.about.get("pictures", {})}, model)
    if isinstance(dataset, Dataset):
        source = dataset
    else:
        pictures = dataclasses.replace(config.pictures, side=loaded.side)
        place = None if data_dir is None else Path(data_dir)
        name = str(dataset or loaded.about.get("dataset", "auto"))
        source = load_shown(console, name, place, pictures)
    if loaded.classes != source.train.classes:
        raise SpratError(
            f"{model} classifies {', '.join(loaded.classes)}, but {source.name} holds "
            f"{', '.join(source.train.classes)}. Choose another --dataset."
        )
    changed = loaded.about.get("dataset_md5") != source.md5
    if changed and (exactly or split == "val"):
        remedy = "" if exactly else ", or use --split test"
        raise SpratError(
            f"{model} was trained on other images than this {source.name}, so its {split} is not "
            f"in there. Give the data it was trained on{remedy}."
        )
    if source.own and changed and loaded.about.get("dataset") == source.name:
        warn(
            f"the pictures in {visible(source.name)} have changed since {visible(model)} was "
            "trained; a test part that was split off by a seed may now hold some that it was "
            "trained on"
        )
    if split == "test":
        return source.name, source.train, source.test
    kept, held_out = split_off_val(source, config)
    return source.name, source.train.subset(kept), source.train.subset(held_out)
