"""Find out where starting from a trained model's weights helps, and where it does not.

    python benchmarks/head_start.py --work FOLDER [--output results/head_start.json] [--json]

SpratT is trained on the images of five of CIFAR-10's classes. Then a few images per class of the
other five are learnt twice: by the recipe `fine-tune`, starting from those weights, and from
scratch. Both see the same images in the same order, in as many steps of the same batch and network,
so they take the same time. A third run, from scratch, takes twice as long.

From scratch, another recipe may be better than one made for a head start. Several are therefore
tried first (`SCRATCH`), and for each size the best on val is used, where val consists of images of
the five classes that nothing is trained on. The head start has no such choice. The test images of
the five classes are read once per run, after its last step. Differences are paired by seed, which
also draws the images.

With `--only-val`, those test images are not read. For each size, the script then measures on val
what several learning rates with the head start (`FACTORS`) and the trials from scratch reach; the
settings of the recipe were chosen in this way.

All runs together train on 1.7 million images. Finished runs in FOLDER are not trained again, and
an interrupted one is resumed.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from side_by_side import report

from sprat.data import Dataset, assemble, load_dataset
from sprat.data.imageset import ImageSet, stratified_split
from sprat.evaluation.records import RunResult, read_finished
from sprat.runtime import git_state, keep_freed_memory, set_threads, versions
from sprat.settings.recipes import load_recipe
from sprat.training.seeds import train_seeds

MODEL = "SpratT"
GIVEN, HELD_OUT = (0, 2, 4, 6, 8), (1, 3, 5, 7, 9)  # labels; animals and vehicles in both
PRETRAINING = "sprat-cpu"
RECIPE = "fine-tune"
LONGER = 2  # the third run has so many times the epochs
RATES = {"optim.lr": 0.125, "optim.muon_lr": 0.08}  # of sprat-cpu and accurate
LIGHT = {"augment.affine": 0.0, "augment.brightness_contrast": 0.0, "dropout": 0.0}
MIXUP = {"mixing.mixup": 1.0, "mixing.mixup_alpha": 0.2}  # as accurate has it
FACTORS = (1 / 3, 1, 3)  # on the recipe's rates, tried with the head start
SCRATCH: dict[str, dict[str, Any]] = {  # changes of the recipe, from scratch
    "rates for training from scratch": RATES,
    "the same, flip and crop alone": RATES | LIGHT,
    "the same, with MixUp": RATES | MIXUP,
}


@dataclass(frozen=True)
class Size:
    """A number of images per class, and the epochs to train on them."""

    images: int
    epochs: int

    @classmethod
    def of(cls, text: str) -> "Size":
        """Parse 20=120."""
        images, epochs = map(int, text.split("="))
        return cls(images, epochs)


SIZES = (Size(20, 120), Size(100, 50), Size(500, 24))


def of_classes(images: ImageSet, labels: tuple[int, ...]) -> ImageSet:
    """Return the images of some classes alone."""
    rows = torch.isin(images.targets, torch.tensor(labels)).nonzero().flatten()
    place = torch.full((len(images.classes),), -1)
    place[list(labels)] = torch.arange(len(labels))
    names = tuple(images.classes[label] for label in labels)
    return ImageSet(images.images[rows], place[images.targets[rows]], names)


def spread(values: list[float]) -> dict[str, Any]:
    """Return the values, seed by seed, their mean and their standard deviation."""
    return {
        "of_seeds": values,
        "mean": fmean(values),
        "std": stdev(values) if len(values) > 1 else None,
    }


class Measuring:
    """Sets of images and the runs on them, each in its own folder."""

    def __init__(self, whole: Dataset, arguments: argparse.Namespace) -> None:
        self.whole, self.work = whole, arguments.work
        self.settings = {"device": "cpu", "threads": arguments.threads, "final": True, "tta": 1}
        outside = of_classes(whole.train, HELD_OUT)
        count = len(HELD_OUT) * arguments.val
        rest, val = stratified_split(outside.targets, count, seed=0)
        self.pool, self.val = outside.subset(rest), outside.subset(val)
        self.test = of_classes(whole.test, HELD_OUT)
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:6.0f} s  {text}", flush=True)

    def pretrained(self, epochs: int) -> tuple[Path, RunResult]:
        """Return the run on the given classes alone, and its results."""
        train, test = (of_classes(part, GIVEN) for part in (self.whole.train, self.whole.test))
        changes = {"model": MODEL, "epochs": epochs, "evaluate_every": epochs}
        dataset = assemble(f"{self.whole.name}, given classes", train, test)
        return self._run("pretrained", PRETRAINING, changes, dataset, 0)

    def learnt(
        self, name: str, size: Size, changes: dict[str, Any], evaluated: ImageSet, seed: int
    ) -> RunResult:
        """Return the results of a run on few images of the held-out classes.

        Args:
            name: part of the name of the run's folder.
            changes: changes of the recipe, including the number of epochs.
            evaluated: images to evaluate once, after the last step.
            seed: seed of the run and of the choice of images.
        """
        count = len(HELD_OUT) * size.images
        _, chosen = stratified_split(self.pool.targets, count, seed)
        dataset = assemble(f"{self.whole.name}, held-out", self.pool.subset(chosen), evaluated)
        changes = {"model": MODEL, "evaluate_every": 10_000} | changes
        return self._run(f"{size.images}-{name}-{seed}", RECIPE, changes, dataset, seed)[1]

    def _run(
        self, name: str, recipe: str, changes: dict[str, Any], dataset: Dataset, seed: int
    ) -> tuple[Path, RunResult]:
        config = load_recipe(recipe).changed(changes | self.settings | {"seed": seed})
        folder = self.work / name
        train_seeds(config, dataset, folder, 1, recipe=recipe, overrides=changes)
        run = folder / f"seed-{seed}"
        results = read_finished(run)
        assert results is not None
        return run, results


def top1(results: RunResult) -> float:
    assert results["test"] is not None  # every run is final
    return results["test"]["top1"]


def tried(
    size: Size,
    arm: str,
    base: dict[str, Any],
    trials: dict[str, dict[str, Any]],
    measuring: Measuring,
) -> dict[str, float]:
    """Return the accuracy on val of each trial of an arm, whose changes are added to `base`."""
    found = {}
    for number, (name, changes) in enumerate(trials.items()):
        settings = {"epochs": size.epochs} | base | changes
        results = measuring.learnt(f"{arm}-trial-{number}", size, settings, measuring.val, 0)
        found[name] = top1(results)
        measuring.say(f"{size.images:4} a class  {arm}, {name}: {found[name]:.2%} on val")
    return found


def measure(size: Size, start: Path, seeds: int, measuring: Measuring) -> dict[str, Any]:
    """Return what runs on so many images per class reach, with the head start and from scratch."""
    trials = tried(size, "scratch", {}, SCRATCH, measuring)
    best = max(trials, key=trials.__getitem__)
    arms = {
        "head start": {"epochs": size.epochs, "start_from": str(start)},
        "from scratch": {"epochs": size.epochs} | SCRATCH[best],
        "from scratch, longer": {"epochs": LONGER * size.epochs} | SCRATCH[best],
    }
    runs = {
        name: [
            measuring.learnt(
                name.replace(", ", "-").replace(" ", "-"), size, changes, measuring.test, seed
            )
            for seed in range(seeds)
        ]
        for name, changes in arms.items()
    }
    measured: dict[str, Any] = {}
    for name, results in runs.items():
        measured[name] = spread([top1(each) for each in results])
        measured[name]["seconds"] = fmean(each["seconds"] for each in results)
        measuring.say(
            f"{size.images:4} a class  {name}: {measured[name]['mean']:.2%}, "
            f"{measured[name]['seconds']:.0f} s a run"
        )
    ahead = {}
    for name in ("from scratch", "from scratch, longer"):
        pairs = zip(measured["head start"]["of_seeds"], measured[name]["of_seeds"], strict=True)
        ahead[name] = spread([one - other for one, other in pairs])
        std = ahead[name]["std"]
        ahead[name]["standard_error"] = None if std is None else std / seeds**0.5
    return {
        "images_a_class": size.images,
        "epochs": size.epochs,
        "steps": size.epochs * (len(HELD_OUT) * size.images // load_recipe(RECIPE).batch_size),
        "scratch_on_val": trials,
        "chosen": best,
        "measured": measured,
        "head_start_ahead_of": ahead,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument(
        "--sizes",
        type=Size.of,
        nargs="+",
        default=list(SIZES),
        metavar="IMAGES=EPOCHS",
        help="images a class, and for how many epochs they are trained on",
    )
    parser.add_argument("--epochs", type=int, default=10, help="epochs of the first training")
    parser.add_argument("--val", type=int, default=400, help="val images per class")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument(
        "--only-val", action="store_true", help="measure on val; read no test image"
    )
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    arguments.threads = set_threads(arguments.threads)
    whole = load_dataset("cifar10", arguments.data_dir)
    measuring = Measuring(whole, arguments)
    start, pretrained = measuring.pretrained(arguments.epochs)
    measuring.say(f"{MODEL} on the given classes: {top1(pretrained):.2%} on their test images")
    if arguments.only_val:
        base, rates = {"start_from": str(start)}, load_recipe(RECIPE).optim
        trials = {
            f"rates times {factor:.2g}": {
                "optim.lr": factor * rates.lr,
                "optim.muon_lr": factor * rates.muon_lr,
            }
            for factor in FACTORS
        }
        for size in arguments.sizes:
            tried(size, "head-start", base, trials, measuring)
            tried(size, "scratch", {}, SCRATCH, measuring)
        return
    figures = {
        "model": MODEL,
        "recipe": RECIPE,
        "batch_size": load_recipe(RECIPE).batch_size,
        "longer": LONGER,
        "seeds": arguments.seeds,
        "given_classes": [whole.train.classes[label] for label in GIVEN],
        "held_out_classes": [whole.train.classes[label] for label in HELD_OUT],
        "val_images": len(measuring.val),
        "test_images": len(measuring.test),
        "pretraining": {
            "recipe": PRETRAINING,
            "images": sum(pretrained["train_per_class"].values()),
            "epochs": pretrained["epochs"],
            "seconds": pretrained["seconds"],
            "top1": top1(pretrained),
        },
        "scratch": SCRATCH,
        "sizes": [measure(size, start, arguments.seeds, measuring) for size in arguments.sizes],
        "machine": pretrained["machine"],
        "versions": versions(),
        "git": git_state(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
