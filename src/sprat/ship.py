"""Put a finished run's model into the package, with a card measured on what is shipped.

    python -m sprat.ship RUN [--dataset NAME] [--data-dir DIR]

RUN is a run's folder; if it is next to other seeds with a summary.json, the card gives their
spread. Seed 0 is shipped, not the best of them.
"""

import argparse
import dataclasses
import hashlib
from pathlib import Path

import torch

from sprat.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sprat.budget import summarize
from sprat.checkpoint import Model, load_model, save_model
from sprat.data import Dataset, load_dataset
from sprat.data.imageset import ImageSet
from sprat.deploy.int8 import CALIBRATION, ONNX_INT8
from sprat.deploy.writing import probabilities_by
from sprat.evaluation.evaluate import evaluate, predict_probabilities, top1
from sprat.evaluation.records import (
    RESULTS_FILE,
    SUMMARY_FILE,
    Spread,
    read_json,
    read_results,
    teachers_of,
    write_json,
)
from sprat.files import write_whole
from sprat.names import CARD_FILE, MODEL_FILE
from sprat.run_folder import CURVES_FILE, read_config
from sprat.runtime import keep_freed_memory
from sprat.training.images import split_off_val
from sprat.zoo import CARD_TEXT_FILE, ZOO, Card, Memory, Robustness, Training, card_text

CORRUPTED_IMAGES = 2_000


def ship(run: Path, dataset: Dataset, zoo: Path = ZOO) -> Card:
    """Write zoo/NAME/{model.safetensors, card.json, CARD.md, curves.png}; return the card.

    The weights are rounded to fp16; every figure is of the file as it then is.
    """
    trained = load_model(run)
    folder = zoo / trained.name
    (folder / CARD_FILE).unlink(missing_ok=True)  # of the file before
    save_model(folder / MODEL_FILE, trained, torch.float16)
    model = load_model(folder / MODEL_FILE)
    write_whole(folder / CURVES_FILE, (run / CURVES_FILE).read_bytes())
    summary = summarize(model.network, model.side)
    plan, memory = summary.plan, None
    if plan is not None:
        memory = Memory(arena=plan.arena, image=plan.image, weights=plan.weights)
    in_int8 = probabilities_by(ONNX_INT8.name, model, dataset.test.images, dataset.train)
    card: Card = {
        "name": model.name,
        "sha256": hashlib.sha256((folder / MODEL_FILE).read_bytes()).hexdigest(),
        "dataset": dataset.name,
        "side": model.side,
        "parameters": summary.parameters,
        "macs": summary.macs,
        "receptive_field": summary.receptive_field,
        "memory": memory,
        "test": evaluate(model.network, dataset.test, model.normalization, tta=2),
        "int8": {"top1": top1(in_int8, dataset.test.targets), "calibrated_on": CALIBRATION},
        "robustness": robustness(model, dataset.test),
        "training": _training(run, dataset),
    }
    write_json(folder / CARD_FILE, card)
    write_whole(folder / CARD_TEXT_FILE, card_text(card))
    return card


def robustness(model: Model, test: ImageSet, count: int = CORRUPTED_IMAGES) -> Robustness:
    """Return accuracy on the first `count` test images: untouched, by corruption and severity."""
    chosen = test.subset(torch.arange(min(count, len(test))))
    images = chosen.images[:]

    def accuracy(changed: ImageSet) -> float:
        probabilities = predict_probabilities(model.network, changed.images, model.normalization)
        return top1(probabilities, changed.targets)

    by_name = {
        name: [
            accuracy(dataclasses.replace(chosen, images=corrupt(images, name, severity)))
            for severity in SEVERITIES
        ]
        for name in CORRUPTIONS
    }
    shares = [share for row in by_name.values() for share in row]
    return {
        "images": len(chosen),
        "clean": accuracy(chosen),
        "mean": sum(shares) / len(shares),
        "top1": by_name,
    }


def _training(run: Path, dataset: Dataset) -> Training:
    results, (config, _, _) = read_results(run / RESULTS_FILE), read_config(run)
    images, chosen = len(dataset.train), "These are the weights after the last step."
    if not config.final:
        kept, held_out = split_off_val(dataset, config)
        images = len(kept)
        chosen = (
            f"These are the weights that were best on val, {len(held_out):,} training images that "
            "were held out."
        )
    seeds = None
    if (run.parent / SUMMARY_FILE).exists():
        found: Spread = read_json(run.parent / SUMMARY_FILE)["top1"]
        seeds = found if found["n"] > 1 else None
    return {
        "recipe": results["recipe"],
        "overrides": results["overrides"],
        "seed": results["seed"],
        "epochs": results["epochs"],
        "seconds": results["seconds"],
        "machine": results["machine"],
        "versions": results["versions"],
        "git": results["git"],
        "teachers": teachers_of(results),
        "images": images,
        "chosen": chosen,
        "seeds": seeds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--dataset", help="by default the one that the run was trained on")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()
    name = arguments.dataset or read_config(arguments.run)[0].dataset
    card = ship(arguments.run, load_dataset(name, arguments.data_dir))
    print(f"{card['name']}: {100 * card['test']['top1']:.2f} % as shipped")


if __name__ == "__main__":
    main()
