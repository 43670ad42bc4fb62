"""Cross-validation: one run per fold of the training images, and their joint results.

Each run trains like a final run, for the full length of its recipe and without choosing weights, so
its accuracy on its fold measures what the recipe achieves on unseen images.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Unpack

import torch
from safetensors.torch import save
from torch import Tensor

from sprat.checkpoint import load_model
from sprat.data import Dataset
from sprat.data.folds import folds
from sprat.data.imageset import Rows
from sprat.data.pictures import names_of
from sprat.errors import SpratError
from sprat.evaluation.evaluate import predict_views, score
from sprat.evaluation.records import (
    RESULTS_FILE,
    FoldPredictions,
    FoldsResult,
    read_results,
    write_json,
)
from sprat.evaluation.summary import summarize_folds
from sprat.files import write_whole
from sprat.run_folder import CONFIG_FILE, read_config
from sprat.runtime import choose_device, set_threads
from sprat.settings.config import Config
from sprat.training.observer import Observer
from sprat.training.several import Apart, Ended, How, check_same, train_each
from sprat.training.start import settle_for

TABLE_FILE, PROBABILITIES_FILE = "out-of-fold.csv", "out-of-fold.safetensors"
MOST_LISTED = 100_000  # predictions listed in results.json, which is read at once


def train_folds(
    config: Config,
    dataset: Dataset,
    folder: Path,
    ended: Ended | None = None,
    apart: Apart | None = None,
    **how: Unpack[How],
) -> FoldsResult:
    """Train one run per fold, each into folder/fold-N; return the content of folder/results.json.

    Finished folds are kept and an interrupted one is resumed. Each training image, including those
    of the dataset's own val, is held out by one run, whose model then predicts it. No run reads the
    test set.

    Raises:
        SpratError: as `train_each`, or the images cannot be divided into the folds, or `folder`
            contains other results.
        Interrupted: `should_stop` returned true; the same call resumes.
    """
    observer = how.get("observer") or Observer()
    members = {
        folder / f"fold-{fold}": dataclasses.replace(config, fold=fold)
        for fold in range(1, config.folds + 1)
    }
    fold = folds(dataset.train, config.folds, config.split_seed, dataset.groups) + 1
    begun = any(run.exists() for run in members)
    if (folder / CONFIG_FILE).exists() or ((folder / RESULTS_FILE).exists() and not begun):
        raise SpratError(f"{folder} contains another run, or other results. Give another --output.")
    for run, of_fold in members.items():
        if (run / CONFIG_FILE).exists():
            check_same(run, settle_for(of_fold, dataset, observer), dataset)
    names = _names_of_training_images(dataset)
    train_each(members, dataset, ended, apart, **how)
    observer.preparing(f"predicting {len(names):,} images, each by the run that held it out")
    return _write_results(folder, members, dataset, names, fold)


def _write_results(
    folder: Path,
    members: Mapping[Path, Config],
    dataset: Dataset,
    names: Sequence[str],
    fold: Tensor,
) -> FoldsResult:
    single, averaged = _predict(members, dataset, fold)
    targets, classes = dataset.train.targets.cpu(), dataset.train.classes
    confidence, predicted = single.max(1)
    predictions: FoldPredictions = {
        "image": list(names),
        "fold": fold.tolist(),
        "label": [classes[label] for label in targets.tolist()],
        "predicted": [classes[label] for label in predicted.tolist()],
        "label_probability": single.gather(1, targets[:, None]).flatten().tolist(),
        "predicted_probability": confidence.tolist(),
    }
    config = next(iter(members.values()))
    results = summarize_folds(
        [read_results(run / RESULTS_FILE) for run in members],
        score(single, averaged, targets, classes, config.tta),
        predictions if len(names) <= MOST_LISTED else None,
        config,
    )
    tensors = {"probabilities": single, "labels": targets, "fold": fold}
    write_whole(folder / PROBABILITIES_FILE, save(tensors))
    write_whole(folder / TABLE_FILE, _table(predictions))
    write_json(folder / RESULTS_FILE, results)
    return results


def _predict(
    members: Mapping[Path, Config], dataset: Dataset, fold: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict each training image with the model of its fold, which was not trained on it; return
    the class probabilities of a single view, and the mean over views: float32, N x K.

    Args:
        fold: int64, N: the fold of each image, from 1.
    """
    size = len(dataset.train), len(dataset.train.classes)
    single, averaged = torch.empty(size), torch.empty(size)
    for run, config in members.items():
        set_threads(read_config(run)[0].threads)
        network = load_model(run).network.to(choose_device(config.device))
        held_out = (fold == config.fold).nonzero().flatten()
        images = dataset.train.subset(held_out).images
        answers = predict_views(network, images, dataset.normalization, config.tta)
        single[held_out], averaged[held_out] = answers
    return single, averaged


def _names_of_training_images(dataset: Dataset) -> list[str]:
    """Return the path of each of your own pictures; for other datasets, train/ and its number."""
    images = dataset.train.images
    if dataset.own is None or not isinstance(images, Rows):
        return [f"train/{number}" for number in range(len(images))]
    names = names_of(Path(dataset.name), dataset.own)
    return [names[row] for row in images.rows.tolist()]


def _table(predictions: FoldPredictions) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(predictions)
    writer.writerows(zip(*predictions.values(), strict=True))
    return text.getvalue().encode(errors="backslashreplace")  # names may not be valid Unicode
