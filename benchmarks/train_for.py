"""How far do recipes get in given seconds, on a machine with PyTorch and little else?

    PYTHONPATH=src python benchmarks/train_for.py teacher=75 taught-l=330 \\
        --recipes my-recipes --data-dir data --output out --limit 570

For a GPU that is lent by the minute. A shallow clone is enough: nothing is installed or downloaded,
and only torch, numpy, safetensors and matplotlib are imported.

Each job NAME=SECONDS trains the recipe NAME (my-recipes/NAME.toml, or one that ships) on all
training images into runs/NAME, for as many of its epochs as fit into about SECONDS, which is
measured first. What it counts in epochs changes in proportion, and the recipe as it is run is kept
with the run, so no setting departs from it. Jobs run in the order given; a recipe whose teacher is
an earlier job names it as runs/NAME. When --limit is reached, the run under way is saved and the
script ends with 1; the same command resumes it.

The output folder gets what is kept of every finished run (all files but last.pt) as one tar
archive, cut into parts that a small channel can carry. To unpack: cat out/runs.tar.* | tar x

A dry run on a CPU: --device cpu --dataset shapes10, with a recipe of few train_images and epochs.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from sprat.data import Dataset, load_dataset
from sprat.errors import Interrupted, SpratError
from sprat.evaluation.records import EpochRow, RunResult
from sprat.figures.png import draw_curves
from sprat.files import write_whole
from sprat.run_folder import CONFIG_FILE, CURVES_FILE
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe
from sprat.training.observer import Observer
from sprat.training.pace import fit, fitted_recipe, keep_recipe
from sprat.training.run import Run
from sprat.training.start import resume, train

MIB = 2**20
NOT_KEPT = "last.pt"  # the state needed to resume: several times the size of all else
PART = "runs.tar.{:02}"


class Lines(Observer):
    """Prints a line for each epoch that was evaluated, with the seconds since the script began."""

    def __init__(self) -> None:
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:7.1f} s  {text}", flush=True)

    def epoch_ended(self, run: Run, row: EpochRow) -> None:
        found = {"top1": row["top1"], "with averaged weights": row["ema_top1"]}
        scores = [f"{key} {top1:.4f}" for key, top1 in found.items() if top1 is not None]
        if scores:
            self.say(
                f"{run.folder.name}: epoch {row['epoch']} of {run.config.epochs}, "
                f"loss {row['loss']:.3f}, {', '.join(scores)}, {row['images_per_s']:,.0f} images/s"
            )


def train_for(
    name: str, seconds: float, dataset: Dataset, arguments: argparse.Namespace, lines: Lines
) -> RunResult:
    """Train a recipe into runs/NAME, or resume it there; return what its results.json holds.

    Raises:
        SpratError: there is no such recipe, or not even one epoch fits.
        Interrupted: the limit was reached, and the run saved.
    """
    began, run = time.perf_counter(), Path("runs") / name

    def should_stop() -> bool:
        return time.perf_counter() - lines.began > arguments.limit

    if (run / CONFIG_FILE).exists():
        return resume(run, dataset, observer=lines, should_stop=should_stop)
    recipe = name
    if arguments.recipes and (arguments.recipes / f"{name}.toml").exists():
        recipe = str(arguments.recipes / f"{name}.toml")
    config = load_recipe(recipe).changed({"final": True, "device": arguments.device})
    fitted = _fitted(config, dataset, seconds, began)
    lines.say(f"{name}: {fitted.epochs} of {config.epochs} epochs fit into {seconds:g} s")
    kept = keep_recipe(fitted, fitted_recipe(run, recipe, f"{seconds:g}s"))
    return train(fitted, dataset, run, recipe=kept, observer=lines, should_stop=should_stop)


def _fitted(config: Config, dataset: Dataset, seconds: float, began: float) -> Config:
    """Return the config with the epochs that fit, at most its own."""
    fitted = fit(config, dataset, seconds, began)
    return config if fitted.epochs > config.epochs else fitted


def pack(runs: list[Path], output: Path, part_bytes: int) -> list[str]:
    """Write one tar archive of what is kept of runs, in parts; return the parts' names."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for run in runs:
            for file in sorted(run.iterdir()):
                if file.is_file() and file.name != NOT_KEPT and not file.name.startswith("."):
                    tar.add(file, f"{run.name}/{file.name}")
    for old in output.glob(PART.format(0)[:-2] + "*"):
        old.unlink()
    content, names = whole.getbuffer(), []
    for number, start in enumerate(range(0, len(content), part_bytes)):
        names.append(PART.format(number))
        write_whole(output / names[-1], bytes(content[start : start + part_bytes]))
    return names


def parse_job(text: str) -> tuple[str, float]:
    """Return the recipe's name and the seconds of a job, "quick=60"."""
    name, _, seconds = text.rpartition("=")
    if not name or "/" in name or not 0 < float(seconds) < float("inf"):
        raise ValueError(text)
    return name, float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="+", type=parse_job, metavar="NAME=SECONDS")
    parser.add_argument("--recipes", type=Path, help="folder of recipes, before those that ship")
    parser.add_argument("--dataset", default="cifar10")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--limit", type=float, default=570, help="seconds of the whole script")
    parser.add_argument("--output", type=Path, required=True, help="folder for the parts")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(),
        help="folder for runs/; in memory, /dev/shm, the checkpoint of every epoch costs least",
    )
    parser.add_argument("--part-size", type=float, default=16, help="MiB of a part at most")
    parser.add_argument("--parts", type=int, default=8, help="parts that can be carried")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    for name in ("recipes", "data_dir", "output"):  # the folder is left below
        if given := getattr(arguments, name):
            setattr(arguments, name, given.resolve())
    lines = Lines()
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)

    figures: dict[str, Any] = {}
    parts: list[str] = []
    stopped = None
    for name, seconds in arguments.jobs:
        try:
            results = train_for(name, seconds, dataset, arguments, lines)
        except Interrupted:
            stopped = name
            lines.say(f"{name}: saved at the limit; the same command resumes it")
            break
        run = Path("runs") / name
        if not (run / CURVES_FILE).exists():
            draw_curves(run)
        test = results["test"]
        assert test is not None  # every run is final
        figures[name] = {
            "parameters": results["parameters"],
            "epochs": results["epochs"],
            "seconds": results["seconds"],
            "top1": test["top1"],
            "tta_top1": test["tta_top1"],
        }
        parts = pack([Path("runs") / done for done in figures], arguments.output, _bytes(arguments))
        lines.say(
            f"{name}: {100 * test['top1']:.2f} % on test ({100 * test['tta_top1']:.2f} % with "
            f"views) after {results['epochs']} epochs in {results['seconds']:.0f} s"
        )
    if arguments.json:
        print(json.dumps({"runs": figures, "parts": parts, "stopped": stopped}))
    if len(parts) > arguments.parts:
        sys.exit(f"{len(parts)} parts are more than {arguments.parts}: train fewer runs at once.")
    sys.exit(stopped is not None)


def _bytes(arguments: argparse.Namespace) -> int:
    return max(1, int(arguments.part_size * MIB))


if __name__ == "__main__":
    try:
        main()
    except SpratError as error:
        sys.exit(str(error))
