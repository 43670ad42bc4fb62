"""Add a finished run's model to the package, with a card measured on the shipped file.

    python -m sprat.ship RUN [--dataset NAME] [--data-dir DIR]
    python -m sprat.ship --refresh [MODEL ...] [--dataset NAME] [--data-dir DIR]

RUN is a run's folder. If it is next to other seeds with a summary.json, the card contains their
spread. Seed 0 is shipped, not the best seed.

With --refresh, the ranges of activations are measured and stored in the models' files (by default
those of all shipped models); the weights are not changed. A card next to a file is updated with its
sha256, memory, and sizes of the model compiled from C, by gcc for a Cortex-M4
(arm-none-eabi-gcc), or by cc if that is missing.
"""

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import cast

import torch

from sprat.augment.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from sprat.budget import summarize
from sprat.checkpoint import Model, load_model, save_model, with_ranges
from sprat.data import Dataset, load_dataset
from sprat.data.imageset import ImageSet
from sprat.deploy import Options
from sprat.deploy.c import C
from sprat.deploy.c.compiler import Compiler, measure
from sprat.deploy.graph import Source
from sprat.deploy.int8 import ONNX_INT8
from sprat.deploy.writing import probabilities_by
from sprat.errors import SpratError
from sprat.evaluation.evaluate import evaluate, predict_probabilities, top1
from sprat.evaluation.ranges import CALIBRATION, measure_record
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
from sprat.model_file import file_of, read_model, write_model
from sprat.names import CARD_FILE, PACKED_FILE
from sprat.run_folder import CURVES_FILE, read_config
from sprat.runtime import keep_freed_memory
from sprat.training.images import split_off_val
from sprat.zoo import (
    CARD_TEXT_FILE,
    ZOO,
    Card,
    Compiled,
    Memory,
    Robustness,
    Training,
    card_text,
    cards,
    locate,
)

CORRUPTED_IMAGES = 2_000
CORTEX_M4 = Compiler(("arm-none-eabi-gcc",), ("-std=c11", "-O2", "-mcpu=cortex-m4", "-mthumb"))


def ship(run: Path, dataset: Dataset, zoo: Path = ZOO) -> Card:
    """Write zoo/NAME/{model.safetensors.xz, card.json, CARD.md, curves.png}; return the card.

    The weights are rounded to fp16; all figures are measured on the resulting file.
    """
    trained = load_model(run)
    folder = zoo / trained.name
    (folder / CARD_FILE).unlink(missing_ok=True)  # the previous file's
    save_model(folder / PACKED_FILE, trained, torch.float16)
    model = store_ranges(folder / PACKED_FILE, dataset.train)
    write_whole(folder / CURVES_FILE, (run / CURVES_FILE).read_bytes())
    summary = summarize(model.network, model.side)
    in_int8 = probabilities_by(ONNX_INT8.name, model, dataset.test.images, dataset.train)
    card: Card = {
        "name": model.name,
        "sha256": _sha256(folder / PACKED_FILE),
        "dataset": dataset.name,
        "side": model.side,
        "parameters": summary.parameters,
        "macs": summary.macs,
        "receptive_field": summary.receptive_field,
        "memory": _memory(model),
        "compiled": _compiled(model),
        "test": evaluate(model.network, dataset.test, model.normalization, tta=2),
        "int8": {"top1": top1(in_int8, dataset.test.targets), "calibrated_on": CALIBRATION},
        "robustness": robustness(model, dataset.test),
        "training": _training(run, dataset),
    }
    _write_card(folder, card)
    return card


def store_ranges(file: Path, training: ImageSet) -> Model:
    """Measure the ranges of a model's activations, store them in its file without changing its
    weights, and return the model."""
    model = load_model(file)
    try:
        ranges = measure_record(model.network, training, model.normalization)
    except SpratError:  # no integer form
        ranges = None
    write_model(file, with_ranges(file, read_model(file), ranges))
    return dataclasses.replace(model, ranges=ranges)


def refresh(file: Path, dataset: Dataset) -> Card | None:
    """Store the ranges of a model's activations in its file; update a card next to it (sha256,
    memory and sizes in C), and return the card."""
    model = store_ranges(file, dataset.train)
    if not file.with_name(CARD_FILE).exists():
        return None
    card: Card = read_json(file.with_name(CARD_FILE))
    renewed = {"sha256": _sha256(file), "memory": _memory(model), "compiled": _compiled(model)}
    fields = dict(card) | renewed
    card = cast(Card, {key: fields[key] for key in Card.__annotations__ if key in fields})
    _write_card(file.parent, card)
    return card


def _write_card(folder: Path, card: Card) -> None:
    write_json(folder / CARD_FILE, card)
    write_whole(folder / CARD_TEXT_FILE, card_text(card))


def _sha256(file: Path) -> str:
    return hashlib.sha256(read_model(file)).hexdigest()


def _memory(model: Model) -> Memory | None:
    plan = summarize(model.network, model.side).plan
    if plan is None:
        return None
    return Memory(arena=plan.arena, image=plan.image, weights=plan.weights)


def _compiled(model: Model) -> Compiled | None:
    """Return the sizes of a model compiled from C; None without a compiler or an integer form."""
    compiler = CORTEX_M4 if CORTEX_M4.is_there else Compiler.of_environment()
    if model.ranges is None or not compiler.is_there:
        return None
    files = C.write(Source.of(model, Options()), b"")
    assert isinstance(files, dict)
    found = measure(files, compiler)
    lists = {"chain": list(found.chain), "library": list(found.library)}
    return cast(Compiled, dataclasses.asdict(found) | lists)


def robustness(model: Model, test: ImageSet, count: int = CORRUPTED_IMAGES) -> Robustness:
    """Return accuracy on the first `count` test images: clean, and by corruption and severity."""
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
    parser.add_argument("models", nargs="*", metavar="RUN or MODEL")
    parser.add_argument("--refresh", action="store_true", help="renew what is stored with models")
    parser.add_argument("--dataset", help="by default the one that it was trained on")
    parser.add_argument("--data-dir", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()

    def dataset(name: str) -> Dataset:
        return load_dataset(arguments.dataset or name, arguments.data_dir)

    if not arguments.refresh:
        for run in map(Path, arguments.models):
            card = ship(run, dataset(read_config(run)[0].dataset))
            print(f"{card['name']}: {100 * card['test']['top1']:.2f} % as shipped")
        return
    for place in map(locate, arguments.models or [card["name"] for card in cards()]):
        file = file_of(place)
        refresh(file, dataset(load_model(file).about["dataset"]))
        print(f"{file}: {len(read_model(file)):,} bytes with ranges of activations")


if __name__ == "__main__":
    main()
