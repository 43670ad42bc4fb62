"""Count CIFAR-10 test images with a near copy in train, and evaluate models without them.

    python benchmarks/near_duplicates.py --json

Counts what `sprat data check` finds between train and test, for comparison with what people found
by looking (Barz and Denzler 2020, arXiv 1902.00423: 3.3 % of the test images). Evaluates every
pretrained model of ten classes with a single view on all test images, without those found, and on
those found alone. `--sheet` draws some of the pairs found, chosen at random, so that you can see
how many are right. `--no-models` only counts.
"""

import argparse
import random
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from side_by_side import report

from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.data.check import DataCheck, check
from sprat.data.duplicates import NEAR_BITS, NEAR_CORRELATION
from sprat.evaluation.evaluate import predict_probabilities, wilson_interval
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions
from sprat.zoo import cards, locate

SHEET = 60  # pairs


def evaluate_model(name: str, dataset: Dataset, leaked: torch.Tensor) -> dict[str, Any]:
    """Return a model's accuracy on all test images, without the leaked ones, and on those alone."""
    model = load_model(locate(name))
    if model.classes != dataset.test.classes:
        raise SystemExit(f"{name} has other classes than {dataset.name}")
    answers = predict_probabilities(model.network, dataset.test.images, model.normalization)
    hits = answers.argmax(1) == dataset.test.targets
    found = {}
    for which, of in (("all", hits), ("without", hits[~leaked]), ("leaked", hits[leaked])):
        right, n = int(of.sum()), len(of)
        found[which] = {"top1": right / n, "ci95": wilson_interval(right, n), "n": n}
    return found


def draw_sheet(found: DataCheck, path: Path) -> None:
    """Draw some leaks, chosen at random, as a PNG with ten pairs in a row."""
    pairs = random.Random(0).sample(found.leaks, min(SHEET, len(found.leaks)))
    places = torch.tensor([place for pair in pairs for place in (pair.first, pair.second)])
    sheet = torch.nn.functional.pad(found.images.images[places], (1, 1, 1, 1), value=255)
    rows = [torch.cat(list(row), dim=2) for row in sheet.split(20)]
    width = max(row.shape[2] for row in rows)
    whole = [torch.nn.functional.pad(row, (0, width - row.shape[2]), value=255) for row in rows]
    image = Image.fromarray(torch.cat(whole, dim=1).permute(1, 2, 0).numpy())
    image.resize((2 * image.width, 2 * image.height), Image.Resampling.NEAREST).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--threads", type=int, default=0, help="0: one per usable core")
    parser.add_argument("--sheet", type=Path, help="PNG file for some of the pairs")
    parser.add_argument("--no-models", action="store_true", help="only count")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = set_threads(arguments.threads)
    dataset = load_dataset("cifar10", arguments.data_dir)
    began = time.process_time()
    found = check(dataset)
    seconds = time.process_time() - began
    leaked = torch.zeros(len(dataset.test), dtype=torch.bool)
    leaked[[pair.second - len(dataset.train) for pair in found.leaks]] = True
    count, n = int(leaked.sum()), len(leaked)
    print(f"{count:,} of {n:,} test images are in train, exactly or nearly ({count / n:.2%})")
    if arguments.sheet:
        draw_sheet(found, arguments.sheet)
    models: dict[str, Any] = {}
    if not arguments.no_models:
        for card in cards():
            models[card["name"]] = found = evaluate_model(card["name"], dataset, leaked)
            print(
                f"{card['name']:24} {found['all']['top1']:.2%}, without them "
                f"{found['without']['top1']:.2%}, on them {found['leaked']['top1']:.2%}"
            )
    figures = {
        "near_bits": NEAR_BITS,
        "near_correlation": NEAR_CORRELATION,
        "leaked_test_images": count,
        "share_of_test": count / n,
        "exact_leaks": sum(pair.exact for pair in found.leaks),
        "duplicates_in_train": sum(pair.second < len(dataset.train) for pair in found.duplicates),
        "duplicates_in_test": sum(pair.second >= len(dataset.train) for pair in found.duplicates),
        "conflicts": len(found.conflicts),
        "literature": {"share_of_test": 0.033, "source": "Barz and Denzler 2020, arXiv 1902.00423"},
        "cpu_seconds_of_the_check": seconds,
        "models": models,
        "machine": describe_machine(torch.device("cpu"), "auto", threads),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
