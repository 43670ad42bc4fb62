"""Find out which settings help a network this small, each changed alone in a short run.

    python benchmarks/proxy.py --work FOLDER [--group brief …] [--data-dir DIR]
        [--output results/proxy.json] [--json]

A run consists of 6 to 60 passes (depending on the group) over 10,000 of CIFAR-10's training
images at 32 px in batches of 64. It is evaluated after the last step on 25,000 other training
images (val). On two cores of an AMD EPYC (2026), 20 passes of OptimizedCIFAR10Net200K take two
minutes. Finished runs in FOLDER are not trained again. For every trial, the script reports the
accuracy and the difference to its base, paired over seeds and images, with the standard error over
images. The group `brief` switches off the original project's settings one by one.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from side_by_side import report
from torch import Tensor

from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.evaluation.evaluate import predict_probabilities
from sprat.evaluation.records import read_json
from sprat.models import code
from sprat.run_folder import read_config
from sprat.runtime import keep_freed_memory
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe
from sprat.training.images import split_off_val
from sprat.training.seeds import train_seeds

BUDGET = {
    "train_images": 10_000, "val_fraction": 0.5, "batch_size": 64, "evaluate_every": 1000,
    "patience": 0, "tta": 1, "optim.warmup_epochs": 2.0,
}  # fmt: skip


DESIGNS = str(Path(__file__).with_name("designs.py"))


@dataclass(frozen=True)
class Group:
    """Trials compared with one base, and what each of them changes."""

    recipe: str
    base: dict[str, Any]  # changes of the recipe in the base
    epochs: int
    seeds: int
    trials: dict[str, dict[str, Any]]


# accurate as it stood before the first two groups were measured
BEFORE = {
    "optim.muon_lr": 0.04, "mixing.mixup": 0.0, "mixing.mixup_alpha": 1.0,
    "augment.brightness_contrast": 0.0,
}  # fmt: skip
# SpratT as it stood before its group was measured
T = {
    "network.widths": (16, 48, 80), "network.depth": (1, 3, 2), "network.widening": (1, 2, 1.5),
}  # fmt: skip
MIXUP = {"mixing.mixup": 1.0, "mixing.mixup_alpha": 0.2}
GROUPS = {
    "chance": Group("accurate", BEFORE, 8, 5, {}),  # spread over seeds
    "optimisation": Group("accurate", BEFORE, 20, 1, {
        "SGD for all weights": {"optim.name": "sgd"},
        "batches of 128": {"batch_size": 128},
        "smoothing 0": {"label_smoothing": 0.0},
        "smoothing 0.1": {"label_smoothing": 0.1},
        "weight decay 2e-3": {"optim.weight_decay": 2e-3},
        "Muon's rate 0.02": {"optim.muon_lr": 0.02},
        "Muon's rate 0.08": {"optim.muon_lr": 0.08},
        "cosine": {"optim.schedule": "cosine"},
    }),
    "augmentation": Group("accurate", BEFORE, 60, 1, {
        "shift, scale, rotation": {"augment.affine": 0.5},
        "cutout of 8 px": {"augment.cutout": 8},
        "MixUp, alpha 0.2": MIXUP,
        "CutMix in half the batches": {"mixing.cutmix": 0.5},
        "RICAP in half the batches": {"mixing.ricap": 0.5},
        "brightness, contrast": {"augment.brightness_contrast": 0.5},
        "MixUp, Muon's rate 0.08": {**MIXUP, "optim.muon_lr": 0.08},
        "MixUp, brightness, contrast": {**MIXUP, "augment.brightness_contrast": 0.5},
    }),
    "design": Group("accurate", {**BEFORE, "model": "SpratS"}, 8, 1, {
        "3x3 windows only": {"network.kernels": 3},
        "5x5 windows only": {"network.kernels": 5},
        "Two halvings, with narrower stages": {"network.widths": (24, 36, 56), "network.depth": 2},
        "Five blocks per stage, with narrower stages": {
            "network.widths": (24, 40), "network.depth": 5,
        },
        "Blocks 3 times as wide inside, but narrower outside": {
            "network.widths": (20, 36), "network.widening": 3,
        },
        "Blocks no wider inside, but wider outside": {
            "network.widths": (36, 64), "network.widening": 1,
        },
        "A gate instead of ReLU": {"model": f"{DESIGNS}:Gated"},
        "No ReLU after the sums": {"model": f"{DESIGNS}:Unbent"},
        "LayerNorm over channels instead of BatchNorm in the blocks": {
            "model": f"{DESIGNS}:LayerNormed",
        },
    }),
    # each within SpratT's limits, without memory for in-place depthwise convolutions
    "microcontroller": Group("accurate", {"model": "SpratT"} | T, 8, 1, {
        "Two blocks in the first stage, those of the second 1.5 times as wide inside": {
            "network.widths": (16, 52, 80), "network.depth": (2, 3, 2),
            "network.widening": (1, 1.5, 1.5),
        },
        "5x5 windows, with narrower stages": {
            "network.widths": (16, 48, 74), "network.kernels": 5,
        },
        "Four blocks in a narrower last stage": {
            "network.widths": (16, 48, 64), "network.depth": (1, 3, 4),
            "network.widening": (1, 2, 1),
        },
        "No block in the first stage, and a wider last stage": {
            "network.widths": (16, 48, 88), "network.depth": (0, 3, 2),
            "network.widening": (1, 2, 1.25),
        },
        "One halving, with half the parameters": {
            "network.widths": (16, 48), "network.depth": (1, 4), "network.widening": (1, 2),
        },
        "Three halvings, one block in each of the last stages": {
            "network.widths": (16, 48, 64, 96), "network.depth": (1, 3, 1, 1),
            "network.widening": (1, 2, 1, 1),
        },
    }),
    "family": Group("accurate", BEFORE, 6, 1, {
        name: {"model": name} for name in ("ResNet20", "Tiniest", "SpratS", "SpratM", "SpratL")
    }),
    # the teacher is the same network after 60 passes over the same images
    "distillation": Group("accurate", {}, 20, 1, {
        f"a teacher, weight {weight}, temperature {temperature}": {
            "distill.teacher": "augmentation/MixUp, brightness, contrast",
            "distill.weight": weight, "distill.temperature": temperature,
        } for weight, temperature in ((0.5, 1.0), (0.5, 2.0), (0.9, 2.0), (0.5, 4.0))
    }),
    "brief": Group("reference", {}, 15, 1, {
        "no flip": {"augment.flip": 0.0},
        "no shift, scale, rotation": {"augment.affine": 0.0},
        "no brightness, contrast": {"augment.brightness_contrast": 0.0},
        "no hue, saturation, value": {"augment.hue_saturation_value": 0.0},
        "no coarse dropout": {"augment.coarse_dropout": 0.0},
        "no MixUp": {"mixing.mixup": 0.0},
        "no CutMix": {"mixing.cutmix": 0.0},
        "no RICAP": {"mixing.ricap": 0.0},
        "no mixing": {"mixing.mixup": 0.0, "mixing.cutmix": 0.0, "mixing.ricap": 0.0},
        "no label smoothing": {"label_smoothing": 0.0},
        "no dropout": {"dropout": 0.0},
        "no clipping": {"optim.max_norm": 0.0},
        "no average of the weights": {"weights": "last", "ema.decay": 0.0},
        "no decay of norms and biases": {"optim.decay_norm_and_bias": False},
        "no warm-up": {"optim.warmup_epochs": 0.0},
    }),
}  # fmt: skip


def folder_of(work: Path, group: str, trial: str) -> Path:
    """Return the folder in which a trial's seeds are trained."""
    return work / group / re.sub(r"[^\w.-]+", "-", trial)


def hits(run: Path, dataset: Dataset) -> Tensor:
    """Return for each image of the run's val whether the model is right; bool, N."""
    config, _, _ = read_config(run)
    _, held_out = split_off_val(dataset, config)
    val, model = dataset.train.subset(held_out), load_model(run)
    probabilities = predict_probabilities(model.network, val.images, model.normalization)
    return probabilities.argmax(1) == val.targets


def measure(folder: Path, config: Config, seeds: int, dataset: Dataset) -> dict[str, Any]:
    """Train what is not trained yet; return parameters, seconds and hits, seed by seed."""
    saved = folder / "hits.pt"
    train_seeds(config, dataset, folder, seeds, recipe="proxy")
    runs = [folder / f"seed-{seed}" for seed in range(seeds)]
    if not saved.exists():
        torch.save(torch.stack([hits(run, dataset) for run in runs]), saved)
    results = [read_json(run / "results.json") for run in runs]
    return {
        "parameters": results[0]["parameters"],
        "seconds": sum(result["seconds"] for result in results) / seeds,
        "hits": torch.load(saved, weights_only=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--group", nargs="*", choices=GROUPS, default=list(GROUPS), help="trials to run"
    )
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    code.use(DESIGNS)
    dataset = load_dataset("cifar10", arguments.data_dir)
    groups = {}
    for group in arguments.group:
        settings = GROUPS[group]
        base, rows = None, {}
        for name, changes in {"base": {}, **settings.trials}.items():
            folder = folder_of(arguments.work, group, name)
            changed = {"epochs": settings.epochs} | settings.base | changes
            if teacher := changed.get("distill.teacher"):
                trained = folder_of(arguments.work, *teacher.split("/"))
                changed["distill.teacher"] = str(trained / "seed-0")
            config = load_recipe(settings.recipe).changed(BUDGET | changed)
            measured = measure(folder, config, settings.seeds, dataset)
            right = measured.pop("hits").double()
            base = right if base is None else base
            difference = (right - base).mean(0)  # over seeds
            rows[name] = measured | {
                "changes": changes,
                "top1": right.mean().item(),
                "top1_of_seeds": right.mean(1).tolist(),
                "difference": difference.mean().item(),
                "standard_error": (difference.std() / len(difference) ** 0.5).item(),
            }
            row = rows[name]
            print(
                f"{group:10} {name:32} {100 * row['top1']:6.2f} %  {100 * row['difference']:+6.2f} "
                f"± {100 * row['standard_error']:.2f}  {row['seconds']:5.0f} s",
                flush=True,
            )
        groups[group] = {
            "recipe": settings.recipe,
            "base": settings.base,
            "epochs": settings.epochs,
            "seeds": settings.seeds,
            "trials": rows,
        }
    report({"budget": BUDGET, "groups": groups}, arguments)


if __name__ == "__main__":
    main()
