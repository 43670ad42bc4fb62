"""Find out which test-time views help: each set of views compared with the single view.

    python benchmarks/tta.py runs/a-run-without-final runs/a-final-run --json

A run without --final is evaluated on its val, where sets of views are chosen. A final run is
evaluated on the test set, where the choice is confirmed. For each set, the script reports the
accuracy, the difference to the single view with its standard error, and McNemar's exact p-value,
all on the same images. This takes a quarter of an hour per model on two cores.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from side_by_side import report

from sprat.augment.views import VIEWS
from sprat.checkpoint import load_model
from sprat.data import load_dataset
from sprat.evaluation.evaluate import mcnemar, predict_probabilities
from sprat.inference import FrozenNetwork
from sprat.run_folder import read_config
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions
from sprat.training.images import split_off_val


def evaluate_run(run: Path, data_dir: Path | None, threads: int) -> dict[str, Any]:
    """Return what every set of views reaches on a run's val, or on test for a final run."""
    config, recipe, _ = read_config(run)
    model, dataset = load_model(run), load_dataset(config.dataset, data_dir)
    evaluated = dataset.test
    if not config.final:
        evaluated = dataset.train.subset(split_off_val(dataset, config)[1])

    frozen = FrozenNetwork(model.network)
    # every distinct view once; a set is a weighted sum of them
    seen: dict[bytes, torch.Tensor] = {}
    single = torch.zeros(len(evaluated), dtype=torch.bool)
    sets = {}
    for number, views in VIEWS.items():
        total = torch.zeros(())
        for view, weight in views:
            key = view(evaluated.images[:8]).contiguous().numpy().tobytes()
            if key not in seen:
                seen[key] = predict_probabilities(
                    frozen, evaluated.images, model.normalization, ((view, 1.0),)
                )
            total = total + weight * seen[key]
        hits = total.argmax(1) == evaluated.targets
        single = hits if number == 1 else single
        difference = hits.double() - single.double()
        error = difference.std().item() / len(evaluated) ** 0.5
        sets[str(number)] = {
            "top1": hits.double().mean().item(),
            "difference": difference.mean().item(),
            "standard_error": error,
            "p": mcnemar(single, hits),
        }
        print(
            f"{run.name:20} {number:3} views  {100 * sets[str(number)]['top1']:.2f} %  "
            f"{100 * difference.mean().item():+.2f} ± {100 * error:.2f}  "
            f"p {sets[str(number)]['p']:.2g}",
            flush=True,
        )
    return {
        "recipe": recipe,
        "seed": config.seed,
        "judged_on": "test" if config.final else "val",
        "n": len(evaluated),
        "sets": sets,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = set_threads(arguments.threads)
    figures = {
        "models": [evaluate_run(run, arguments.data_dir, threads) for run in arguments.runs],
        "machine": describe_machine(torch.device("cpu"), "fp32", threads),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
