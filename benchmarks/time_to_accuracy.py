"""Measure the seconds to 87.42 % on CIFAR-10's test set from scratch: OptimizedCIFAR10Net200K.

    python benchmarks/time_to_accuracy.py --runs runs/sprint --json

Trains the recipe `sprint` to its end for each seed (on all training images; the test set is read
once). In turns with it, measures one epoch of a conventional recipe: eager bf16 PyTorch in batches
of 256, which needs 16 such epochs for 88.06 %. Reports the mean accuracy of `sprint`, its median
seconds, and their ratio to 16 median epochs. Finished runs are read, and an interrupted one is
resumed. This takes about half an hour on two cores.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import conventional
import torch
from side_by_side import Figures, parser_for, report, take_turns

from sprat.data import load_dataset
from sprat.evaluation.records import read_json
from sprat.runtime import describe_machine, set_threads, versions

TARGET = 0.8742
CONVENTIONAL_EPOCHS, CONVENTIONAL_BATCH = 16, 256


def conventional_epoch(arguments: argparse.Namespace) -> Figures:
    set_threads(arguments.threads)
    images = load_dataset("cifar10", arguments.data_dir).train
    steps = conventional.eager(images, arguments.batch_size)
    for _ in range(2):  # warm up
        next(steps)
    began = time.perf_counter()
    for _ in range(arguments.steps):
        next(steps)
    seconds = (time.perf_counter() - began) / arguments.steps
    return {"epoch_seconds": seconds * (len(images) // arguments.batch_size)}


def sprint(seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the results of one run of the recipe, trained now or before."""
    run = arguments.runs / f"seed-{seed}"
    if not (run / "results.json").exists():
        command = [sys.executable, "-m", "sprat", "train"]
        if (run / "config.json").exists():
            command += ["--resume", str(run)]
        else:
            command += ["--recipe", "sprint", "--final", "--dataset", "cifar10"]
            command += ["--seed", str(seed), "--output", str(run)]
            command += ["--threads", str(arguments.threads)]
        if arguments.data_dir:
            command += ["--data-dir", str(arguments.data_dir)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return read_json(run / "results.json")


def main() -> None:
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs of sprint")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument(
        "--batch-size",
        type=int,
        default=CONVENTIONAL_BATCH,
        help="images per batch of a conventional epoch",
    )
    parser.add_argument(
        "--steps", type=int, default=195, help="timed steps of a conventional epoch, which has 195"
    )
    arguments = parser.parse_args()
    seeds, runs, epochs = range(arguments.rounds), [], []
    arguments.rounds = 1
    for seed in seeds:
        turn = take_turns({"conventional": conventional_epoch}, arguments)
        epochs.append(turn["conventional"]["epoch_seconds"])
        runs.append(sprint(seed, arguments))

    top1 = [run["test"]["top1"] for run in runs]
    seconds = statistics.median(run["seconds"] for run in runs)
    conventional_seconds = CONVENTIONAL_EPOCHS * statistics.median(epochs)
    figures = {
        "ratio": seconds / conventional_seconds,
        "top1": statistics.fmean(top1),
        "seconds": seconds,
        "reached": statistics.fmean(top1) >= TARGET,
        "target": TARGET,
        "n": len(runs),
        "top1_std": statistics.stdev(top1) if len(top1) > 1 else None,
        "top1_of_seeds": top1,
        "seconds_of_seeds": [run["seconds"] for run in runs],
        "conventional_seconds": conventional_seconds,
        "conventional_epochs_measured": epochs,
        "machine": describe_machine(
            torch.device("cpu"), "bf16", set_threads(arguments.threads)
        ),
        "versions": versions(),
    }  # fmt: skip
    print(
        f"sprint: {100 * figures['top1']:.2f} % on average of {len(runs)} seeds in "
        f"{seconds:.0f} s, {figures['ratio']:.3f} of the {conventional_seconds:.0f} s that 16 "
        "conventional epochs take"
    )
    report(figures, arguments)


if __name__ == "__main__":
    main()
