"""Measure what the search finds, and what successive halving gains over random search.

    python benchmarks/search.py --work FOLDER [--parts find halving] [--data-dir DIR]
        [--output results/search.json] [--json]

find: a search of 90 minutes with the parameters and MACs of SpratS as limits. Its trials train on
10,000 of CIFAR-10's training images and are compared on val. Then the network that was found and
SpratS are trained by the same recipe (sprat-cpu, with its learning rates) for the same number of
epochs on all training images, and the test set is read once for each. The difference is paired over
the test images.

halving: three seeds of 15 minutes with a smaller budget, by TPE with successive halving and by
random search, in which every trial is trained to the end. Both begin with the four designs of the
family. The winner of each search is trained by the recipe for the same number of epochs and
compared on val; the test set is not used.

What is finished in FOLDER is not repeated, and whatever was interrupted is resumed, even after a
kill; a search continues with the time that it has left. On two cores, `find` takes
about 130 minutes and `halving` about 100. The time of a search is wall-clock time, so nothing else
should be running. For a dry run: --dataset shapes10 --images 200 --minutes 1 --halving-minutes 1
--epochs 1 --seeds 1.
"""

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from side_by_side import report
from torch import Tensor

from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.evaluation.evaluate import predict_probabilities
from sprat.evaluation.records import RunResult, evaluation_of, read_json, write_json
from sprat.models import NetworkConfig
from sprat.pools.local import Processes
from sprat.pools.source import Source
from sprat.run_folder import CONFIG_FILE
from sprat.runtime import describe_machine, keep_freed_memory, versions
from sprat.searching.driver import Driver
from sprat.searching.outcome import outcome_of
from sprat.searching.plan import SETTINGS_FILE, Plan, read_plan, write_plan
from sprat.searching.prepare import prepare
from sprat.searching.trial import train_rung
from sprat.settings.config import BudgetConfig, Config
from sprat.settings.recipes import load_recipe
from sprat.threads import usable_cores
from sprat.training.observer import Observer
from sprat.training.start import resume, train

RECIPE = "sprat-cpu"
SPRATS = BudgetConfig(max_parameters=40_726, max_macs=17_280_776)
SMALLER = BudgetConfig(max_parameters=20_000, max_macs=5_000_000)
COMPARED_EPOCHS = 8  # that the decisions of `halving` are trained for


def decide(
    folder: Path, dataset: Dataset, config: Config, minutes: float, workers: int, random: bool
) -> dict[str, Any]:
    """Search for some minutes and decide on a network; return the outcome."""
    decided = folder / "decided.json"
    if decided.exists():
        return read_json(decided)
    began = time.perf_counter()
    if (folder / SETTINGS_FILE).exists():
        plan = read_plan(folder)
    else:
        plan = make_plan(dataset, config, 60 * minutes, workers, began, random)
        write_plan(folder, plan)
    source = Source(dataset.name, None, config.pictures, plan.data, False, dataset, named=False)
    processes = Processes(workers)
    pool = processes.pool(train_rung, source, lambda: False, threads=plan.trial.threads)
    try:
        driver = Driver(plan, folder, pool, began=began)
        decision = driver.run()
    finally:
        pool.close()
    found = outcome_of(decision, driver) | {
        "network": decision.winner.design.network.to_dict(),
        "trials": [trial.to_record() for trial in decision.trials],
    }
    write_json(decided, found)
    return found


def make_plan(
    dataset: Dataset, config: Config, seconds: float, workers: int, began: float, random: bool
) -> Plan:
    """Return the plan of a search that ends with its decision."""
    plan = prepare(
        config, dataset, {dataset.train.images.shape[-1]: dataset.md5}, recipe=RECIPE, trials=0,
        seconds=seconds, began=began, trial_images=0, trial_epochs=0, generation=9,
        threads=max(1, usable_cores() // workers), observer=Observer(), train=False,
    )  # fmt: skip
    if random:
        plan = dataclasses.replace(plan, rungs=plan.rungs[-1:], sampler="random")
    return plan


def trained(folder: Path, dataset: Dataset, config: Config) -> RunResult:
    """Train into a folder, or resume there; return the results."""
    if (folder / CONFIG_FILE).exists():
        return resume(folder, dataset)
    return train(config, dataset, folder, recipe=RECIPE)


def hits(run: Path, dataset: Dataset) -> Tensor:
    """Return for each test image whether a run's model is right; double, N."""
    model = load_model(run)
    probabilities = predict_probabilities(model.network, dataset.test.images, model.normalization)
    return (probabilities.argmax(1) == dataset.test.targets).double()


def find(arguments: argparse.Namespace, dataset: Dataset, recipe: Config) -> dict[str, Any]:
    """Search within SpratS's limits; return the paired difference on the test set."""
    work = arguments.work / "find"
    limited = dataclasses.replace(recipe, budget=SPRATS)
    found = decide(work, dataset, limited, arguments.minutes, arguments.workers, random=False)
    epochs = arguments.epochs or recipe.epochs
    networks = {
        "found": NetworkConfig.from_dict(found["network"]),
        "SpratS": NetworkConfig(name="SpratS"),
    }
    results, right = {}, {}
    for name, network in networks.items():
        config = dataclasses.replace(recipe.in_proportion(epochs), network=network, final=True)
        run = arguments.work / f"trained-{name}"
        result = trained(run, dataset, config)
        right[name] = hits(run, dataset)
        results[name] = {
            key: result[key] for key in ("network", "parameters", "macs", "epochs", "seconds")
        } | {"test_top1": evaluation_of(result)[1]["top1"]}
    difference = right["found"] - right["SpratS"]
    error = (difference.std() / len(difference) ** 0.5).item()
    mean = difference.mean().item()
    found |= {
        "minutes": arguments.minutes,
        "trained_networks": results,
        "right_alone": {
            "found": int((difference > 0).sum()),
            "SpratS": int((difference < 0).sum()),
        },
        "difference": mean,
        "standard_error": error,
        "standard_errors": mean / error if error else 0.0,
    }
    print(
        f"found {100 * results['found']['test_top1']:.2f} %, SpratS "
        f"{100 * results['SpratS']['test_top1']:.2f} %: {100 * mean:+.2f} ± {100 * error:.2f} "
        f"({found['standard_errors']:+.1f} standard errors); {found['trained']} trials",
        flush=True,
    )
    return found


def halving(arguments: argparse.Namespace, dataset: Dataset, recipe: Config) -> dict[str, Any]:
    """Search in both ways with several seeds; return what the winners reach on val."""
    ways: dict[str, list[dict[str, Any]]] = {"halving": [], "random": []}
    for seed in range(arguments.seeds):
        for way, rows in ways.items():
            work = arguments.work / f"{way}-{seed}"
            limited = dataclasses.replace(recipe, budget=SMALLER, seed=seed)
            found = decide(
                work, dataset, limited, arguments.halving_minutes, arguments.workers,
                random=way == "random",
            )  # fmt: skip
            epochs = arguments.epochs or COMPARED_EPOCHS
            network = NetworkConfig.from_dict(found["network"])
            config = dataclasses.replace(recipe.in_proportion(epochs), network=network)
            result = trained(arguments.work / f"trained-{way}-{seed}", dataset, config)
            rows.append(found | {"seed": seed, "val_top1": evaluation_of(result)[1]["top1"]})
            print(
                f"{way:8} seed {seed}: {100 * rows[-1]['val_top1']:.2f} % on val, "
                f"{found['trained']} trials",
                flush=True,
            )
    return {
        "limits": ways["halving"][0]["limits"],
        "minutes": arguments.halving_minutes,
        "epochs": arguments.epochs or COMPARED_EPOCHS,
        "ways": ways,
    }


PARTS = {"find": find, "halving": halving}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for searches and runs")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run"
    )
    parser.add_argument("--minutes", type=float, default=90, help="time of the search in find")
    parser.add_argument(
        "--halving-minutes", type=float, default=15, help="time of each search in halving"
    )
    parser.add_argument(
        "--epochs", type=int, default=0, help="epochs of the winners; 0: the recipe's"
    )
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each way in halving")
    parser.add_argument("--workers", type=int, default=1, help="trials trained at once")
    parser.add_argument("--dataset", default="cifar10", help="name of a dataset")
    parser.add_argument("--images", type=int, default=0, help="number of training images; 0: all")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    recipe = load_recipe(RECIPE).changed({"train_images": arguments.images})
    torch.manual_seed(0)
    figures: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():  # the other part may be there
        figures = read_json(arguments.output)
    for part in arguments.parts:
        machine = describe_machine(torch.device("cpu"), "auto", usable_cores())
        about = {"recipe": RECIPE, "machine": machine, "versions": versions()}
        figures[part] = about | PARTS[part](arguments, dataset, recipe)
        report(figures, argparse.Namespace(output=arguments.output, json=False))
    report(figures, arguments)


if __name__ == "__main__":
    main()
