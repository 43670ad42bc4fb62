"""Measure how many deliberately changed labels `sprat data check --labels` ranks first.

    python benchmarks/suspect_labels.py --dataset shapes10 --json
    python benchmarks/suspect_labels.py --dataset cifar10 --json

Changes 5 % of the labels to another class, drawn by a seed, checks the labels as the command does,
and reports the recall: how many of the changed labels are among the first 5 % of the ranking. The
ranking that cleanlab makes of the same probabilities is reported for comparison. Labels that were
wrong before count as errors of the ranking. An interrupted check is resumed from `--runs`.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from cleanlab.rank import get_label_quality_scores
from safetensors.torch import load_file
from side_by_side import report

import sprat
from sprat.data import assemble, load_dataset
from sprat.names import CHECK_FOLDS
from sprat.runtime import describe_machine, set_threads, versions
from sprat.training.folds import PROBABILITIES_FILE


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", default="shapes10", help="name of a dataset")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset")
    parser.add_argument("--share", type=float, default=0.05, help="share of the labels to change")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed that draws the labels and their new classes"
    )
    parser.add_argument("--folds", type=int, default=CHECK_FOLDS, help="number of folds")
    parser.add_argument(
        "--recipe", default="", help="recipe of the folds; by default the command's"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="folder for the runs of the folds"
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()

    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    rng = np.random.default_rng(arguments.seed)
    targets = torch.cat([dataset.train.targets, dataset.test.targets])
    classes, size = len(dataset.train.classes), len(targets)
    changed = rng.choice(size, round(arguments.share * size), replace=False)
    targets[changed] += torch.from_numpy(rng.integers(1, classes, len(changed)))
    targets %= classes
    train, test = targets.split([len(dataset.train), len(dataset.test)])
    dataset = assemble(
        dataset.name,
        dataclasses.replace(dataset.train, targets=train),
        dataclasses.replace(dataset.test, targets=test),
    )

    place = f"suspects-{arguments.dataset}-{arguments.share}-{arguments.seed}-{arguments.folds}"
    runs = arguments.runs / f"{place}-{Path(arguments.recipe).stem}"
    began = time.perf_counter()
    found = sprat.check_data(
        dataset, labels=True, folds=arguments.folds, recipe=arguments.recipe, runs=runs
    )
    seconds = time.perf_counter() - began
    labels, (folder,) = found.labels, runs.iterdir()
    assert labels is not None
    answers = load_file(folder / PROBABILITIES_FILE)["probabilities"].double().numpy()
    scores = get_label_quality_scores(targets.numpy(), answers, method="normalized_margin")

    def recall(ranked: list[int]) -> float:
        return len(set(ranked[: len(changed)]) & set(changed.tolist())) / len(changed)

    ours = recall([each.place for each in labels.suspects])
    theirs = recall(scores.argsort(kind="stable").tolist())
    print(f"{len(changed):,} labels changed; among as many ranked first are {ours:.2%} of them")
    figures = {
        "dataset": dataset.name,
        "images": size,
        "changed": len(changed),
        "seed": arguments.seed,
        "recipe": labels.recipe,
        "epochs": labels.epochs,
        "folds": labels.folds,
        "top1_out_of_fold": labels.top1,
        "recall": ours,
        "recall_cleanlab": theirs,
        "confident": labels.confident,
        "seconds": seconds,
        "machine": describe_machine(torch.device("cpu"), "auto", set_threads(0)),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
