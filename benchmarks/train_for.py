"""Train recipes for a given number of seconds, on a machine with PyTorch and little else.

    PYTHONPATH=src python benchmarks/train_for.py teacher=75 taught-l=330 \\
        --recipes my-recipes --data-dir data --output out --limit 570
    PYTHONPATH=src python benchmarks/train_for.py taught-s taught-s@1 taught-s@2 --at-once 3 \\
        --data-dir data --output out

This is for a GPU that is rented by the minute. A shallow clone is enough: nothing is installed or
downloaded, and only torch, numpy, safetensors and matplotlib are imported.

Each job NAME=SECONDS trains the recipe NAME (my-recipes/NAME.toml, or one that comes with sprat) on
all training images into runs/NAME, for as many of its epochs as fit into about SECONDS, which is
measured first. Settings that count epochs change in proportion. The recipe as it was run is kept
with the run, so the run departs from no setting of it. Without =SECONDS, the recipe's own number of
epochs is trained. NAME@SEED trains with another seed, into runs/NAME-SEED. Jobs start in the order
given. A recipe whose teacher is an earlier job names it as runs/NAME, and must not be trained at
the same time as that job. When --limit is reached, running jobs are saved and the script ends with
exit code 1; the same command resumes them.

A small network leaves part of a GPU idle. --at-once N trains N jobs in turns, step by step, each on
its own CUDA stream, so that the GPU computes them at the same time.

The output folder receives everything that is kept of the finished runs (all files except last.pt)
as one tar archive, cut into parts that are small enough to transfer. To unpack them:

    cat out/runs.tar.* | tar x

A dry run on a CPU: --device cpu --dataset shapes10, with a recipe of few train_images and epochs.
"""

import argparse
import collections
import contextlib
import io
import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch

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


class Job(NamedTuple):
    """A recipe to train, its seed, and the seconds to train for; None: the recipe's own epochs."""

    recipe: str
    seed: int
    seconds: float | None

    @property
    def run(self) -> Path:
        return Path("runs") / (f"{self.recipe}-{self.seed}" if self.seed else self.recipe)


class Turns:
    """Threads that run one at a time: after each step, a thread gives way to the one that has
    waited longest. Meanwhile a GPU continues with the work that the others gave it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.line: collections.deque[object] = collections.deque()  # its head runs

    @contextlib.contextmanager
    def taking_part(self) -> Iterator[None]:
        """While this is open, the calling thread runs only in its turns."""
        self._queue()
        try:
            yield
        finally:
            self._leave()

    def give_way(self) -> None:
        self._queue(leaving=True)

    def _queue(self, leaving: bool = False) -> None:
        place = object()
        with self.changed:
            self.line.append(place)
            if leaving:
                self._leave()
            self.changed.wait_for(lambda: self.line[0] is place)

    def _leave(self) -> None:
        with self.changed:  # a Condition's lock is reentrant
            self.line.popleft()
            self.changed.notify_all()


class Lines(Observer):
    """Observer that prints a line for each evaluated epoch, with the seconds since the start."""

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


class Trainer:
    """Trainer of jobs, several at once on request, which also packs the finished runs."""

    def __init__(self, dataset: Dataset, arguments: argparse.Namespace) -> None:
        self.dataset, self.arguments = dataset, arguments
        self.lines, self.turns = Lines(), Turns()
        self.figures: dict[str, Any] = {}
        self.stopped: list[str] = []
        self.parts: list[str] = []

    def train_all(self, jobs: list[Job]) -> None:
        """Train all jobs, or as many as the limit allows.

        Raises:
            SpratError: a job cannot be trained; the others are trained first.
        """
        with ThreadPoolExecutor(self.arguments.at_once) as threads:
            running = [threads.submit(self._in_turns, job) for job in jobs]
        for job in running:
            job.result()

    def _in_turns(self, job: Job) -> None:
        on_gpu = self.arguments.device == "cuda"
        stream = torch.cuda.stream(torch.cuda.Stream()) if on_gpu else contextlib.nullcontext()
        with self.turns.taking_part(), stream:
            if self._late():
                self.stopped.append(job.run.name)
                return
            try:
                results = self._train(job)
            except Interrupted:
                self.stopped.append(job.run.name)
                self.lines.say(f"{job.run.name}: saved at the limit; the same command resumes it")
                return
            self._keep(job, results)

    def _late(self) -> bool:
        return time.perf_counter() - self.lines.began > self.arguments.limit

    def _should_stop(self) -> bool:
        self.turns.give_way()
        return self._late()

    def _train(self, job: Job) -> RunResult:
        """Train a job, or resume it.

        Raises:
            SpratError: there is no such recipe, or not even one epoch fits.
            Interrupted: the limit was reached, and the run saved.
        """
        began, run, lines = time.perf_counter(), job.run, self.lines
        if (run / CONFIG_FILE).exists():
            return resume(run, self.dataset, observer=lines, should_stop=self._should_stop)
        recipe, recipes = job.recipe, self.arguments.recipes
        if recipes and (recipes / f"{recipe}.toml").exists():
            recipe = str(recipes / f"{recipe}.toml")
        config = load_recipe(recipe).changed(
            {"final": True, "device": self.arguments.device, "seed": job.seed}
        )
        kept = recipe
        if job.seconds is not None:
            fitted = _fitted(config, self.dataset, job.seconds, began)
            lines.say(f"{run.name}: {fitted.epochs} of {config.epochs} epochs fit")
            kept = keep_recipe(fitted, fitted_recipe(run, recipe, f"{job.seconds:g}s"))
            config = fitted
        return train(
            config, self.dataset, run, recipe=kept, observer=lines, should_stop=self._should_stop
        )

    def _keep(self, job: Job, results: RunResult) -> None:
        name, run = job.run.name, job.run
        if not (run / CURVES_FILE).exists():
            draw_curves(run)
        test = results["test"]
        assert test is not None  # every run is final
        self.figures[name] = {
            "parameters": results["parameters"],
            "epochs": results["epochs"],
            "seconds": results["seconds"],
            "top1": test["top1"],
            "tta_top1": test["tta_top1"],
        }
        done = [Path("runs") / name for name in self.figures]
        part_bytes = max(1, int(self.arguments.part_size * MIB))
        self.parts = pack(done, self.arguments.output, part_bytes)
        self.lines.say(
            f"{name}: {100 * test['top1']:.2f} % on test ({100 * test['tta_top1']:.2f} % with "
            f"views) after {results['epochs']} epochs in {results['seconds']:.0f} s"
        )


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


def parse_job(text: str) -> Job:
    """Return a job, "quick=60", "quick@1" or "quick@1=60" (seed 1, 60 seconds)."""
    name, _, seconds = text.partition("=")
    name, _, seed = name.partition("@")
    job = Job(name, int(seed or 0), float(seconds) if seconds else None)
    if not name or "/" in name or not 0 < (job.seconds or 1) < float("inf"):
        raise ValueError(text)
    return job


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "jobs", nargs="+", type=parse_job, metavar="NAME[@SEED][=SECONDS]", help="recipes"
    )
    parser.add_argument(
        "--recipes", type=Path, help="folder of recipes, searched before sprat's own"
    )
    parser.add_argument("--dataset", default="cifar10", help="name of a dataset")
    parser.add_argument("--data-dir", type=Path, help="folder of the dataset")
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--at-once", type=int, default=1, help="jobs that are trained in turns")
    parser.add_argument("--limit", type=float, default=570, help="seconds for the whole script")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for the parts of the archive"
    )
    parser.add_argument(
        "--work",
        type=Path,
        default=Path(),
        help="folder for runs/; in memory (/dev/shm), saving checkpoints takes least time",
    )
    parser.add_argument(
        "--part-size", type=float, default=16, help="largest size of a part, in MiB"
    )
    parser.add_argument("--parts", type=int, default=8, help="largest number of parts")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    for name in ("recipes", "data_dir", "output"):  # before the working directory changes
        if given := getattr(arguments, name):
            setattr(arguments, name, given.resolve())
    if arguments.at_once > 1 and any(job.seconds for job in arguments.jobs):
        parser.error("with --at-once jobs train the recipes' own epochs: leave =SECONDS out")
    dataset = load_dataset(arguments.dataset, arguments.data_dir)
    arguments.work.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.work)
    trainer = Trainer(dataset, arguments)
    trainer.train_all(arguments.jobs)
    figures, parts, stopped = trainer.figures, trainer.parts, trainer.stopped
    if arguments.json:
        print(json.dumps({"runs": figures, "parts": parts, "stopped": stopped}))
    if len(parts) > arguments.parts:
        sys.exit(f"{len(parts)} parts are more than {arguments.parts}: train fewer runs at once.")
    sys.exit(bool(stopped))


if __name__ == "__main__":
    try:
        main()
    except SpratError as error:
        sys.exit(str(error))
