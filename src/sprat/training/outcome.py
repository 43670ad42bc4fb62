"""End of a run: its weights are chosen and evaluated, its model and results written."""

import contextlib
import dataclasses
import math
from typing import Any

import torch
from torch import nn

from sprat import distributed
from sprat.budget import costs
from sprat.checkpoint import Model, save_model
from sprat.data.imageset import class_counts
from sprat.errors import SpratError
from sprat.evaluation.evaluate import evaluate
from sprat.evaluation.ranges import measure_record
from sprat.evaluation.records import RESULTS_FILE, RunResult, original_claims, write_json
from sprat.names import MODEL_FILE
from sprat.runtime import Machine, describe_machine, peak_memory, versions
from sprat.training.observer import Observer
from sprat.training.prepare import why_torch
from sprat.training.run import Run
from sprat.training.saving import check_folder


def finish(run: Run, observer: Observer) -> RunResult:
    """Evaluate the weights that a finished run keeps; write model.safetensors and results.json.

    Returns:
        The content of results.json.
    """
    config, dataset, progress = run.config, run.dataset, run.progress
    network = run.kept_network()
    if progress.best is not None:
        network.load_state_dict(progress.best["weights"])
    evaluation = evaluate(
        network, run.final_images, dataset.normalization, config.tta, observer.evaluating
    )
    test, val = (evaluation, None) if config.final else (None, evaluation)
    side = dataset.train.images.shape[-1]
    counted = costs(network, side)
    batches = run.images.batches
    images = progress.epoch * len(batches) * config.batch_size
    training_seconds = math.fsum(row["seconds"] for row in progress.history)
    results: RunResult = {
        "recipe": run.origin.recipe,
        "overrides": run.origin.overrides,
        "dataset": dataset.name,
        "dataset_md5": dataset.md5,
        "train_per_class": class_counts(batches.dataset),
        "model": config.network.title,
        "network": config.network.to_dict(),
        "side": side,
        "channels": dataset.channels,
        "parameters": counted["parameters"],
        "macs": counted["macs"],
        "receptive_field": counted["receptive_field"],
        "seed": config.seed,
        "final": config.final,
        "epochs": progress.epoch,
        "stopped_early": run.stopped_early,
        "weights": config.weights,
        "best_epoch": progress.best["epoch"] if progress.best else None,
        "seconds": progress.seconds,
        "images_per_s": images / training_seconds,
        "peak_memory_bytes": peak_memory(),
        "test": test,
        "val": val,
        "machine": _machine(run),
        "versions": versions(),
        "git": run.origin.git,
        "teachers": [teacher.about for teacher in run.teachers],
        "start": run.origin.start,
        "original_claims": original_claims(
            counted["parameters"],
            counted["receptive_field"],
            run.top1(network, run.images.probe),
            test,
            progress.seconds,
        ),
    }
    if config.fold:
        results["folds"], results["fold"] = config.folds, config.fold
    about: dict[str, Any] = {
        "recipe": results["recipe"],
        "overrides": results["overrides"],
        "dataset": results["dataset"],
        "dataset_md5": results["dataset_md5"],
        "seed": results["seed"],
        "epochs": results["epochs"],
        "weights": results["weights"],
        "test_top1": test["top1"] if test else None,
        "val_top1": val["top1"] if val else None,
    }
    if config.fold:
        about["fold"] = config.fold
    if dataset.own:  # so that evaluating the model again splits off the same test part
        about["pictures"] = dataclasses.asdict(dataset.own)
    model = Model(
        network=network,
        name=config.network.title,
        classes=dataset.train.classes,
        normalization=dataset.normalization,
        side=side,
        about=about,
        spec=config.network,
        ranges=_ranges(run, network),
    )
    check_folder(run)
    save_model(run.folder / MODEL_FILE, model)
    write_json(run.folder / RESULTS_FILE, results)
    return results


def _ranges(run: Run, network: nn.Module) -> dict[str, Any] | None:
    """Return the ranges of activations on training images; None if the network has no integer form
    or a value is not finite."""
    with contextlib.suppress(SpratError):
        return measure_record(network, run.images.batches.dataset, run.dataset.normalization)
    return None


def _machine(run: Run) -> Machine:
    config = run.config
    machine = describe_machine(torch.device(config.device), config.precision, config.threads)
    machine["kernels"] = config.kernels
    if reason := why_torch(config):
        machine["kernels_because"] = reason
    if distributed.count() > 1:
        machine["processes"] = distributed.count()
    return machine
