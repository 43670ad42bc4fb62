"""Number of epochs that fit into a given time: steps, evaluation and checkpoint are timed first."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.evaluate import evaluate
from sprat.files import temporary_folder, write_whole
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides, to_toml
from sprat.training.run import Run
from sprat.training.saving import save
from sprat.training.start import settle_for

WARM_STEPS = 3  # not timed: memory is allocated, a GPU compiles
STEPS = (5, 200)  # fewest and most to time, for each image side
SHARE = 0.04  # fraction of the time that timing may take
FINAL_IMAGES = 500  # images on which the final evaluation is timed
OTHER_SECONDS = 1.0  # curves, results, a slow first step


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take on this machine."""

    epoch: float  # the steps of an epoch
    checkpoint: float  # after each epoch
    evaluation: float  # after each epoch that is evaluated
    final: float  # the evaluation at the end, with its views
    start: float = 0.0  # checks, the network and the batches, before the first step

    def seconds(self, config: Config, epochs: int) -> float:
        """Return the seconds that a run of `epochs` epochs takes."""
        evaluated = math.ceil(epochs / config.evaluate_every)
        return (
            epochs * (self.epoch + self.checkpoint)
            + evaluated * self.evaluation
            + self.final
            + OTHER_SECONDS
        )


def measure(config: Config, dataset: Dataset, seconds: float) -> Pace:
    """Time the parts of a run in a temporary folder.

    Args:
        seconds: time of the whole run, of which timing takes a small fraction.

    Raises:
        SpratError: as `train`.
    """
    with temporary_folder() as folder:
        began = time.perf_counter()
        run = Run(settle_for(config, dataset), dataset, folder)
        start = time.perf_counter() - began
        batches, progress = run.images.batches, run.progress
        run.step.network.train()
        sides = [config.augment.side_of(epoch) for epoch in range(config.epochs)]
        of_side = {
            side: _step(run, sides.index(side), SHARE * seconds / len(set(sides)))
            for side in dict.fromkeys(sides)
        }
        step = sum(of_side[side] for side in sides) / len(sides)
        progress.epoch, progress.epoch_seconds = config.evaluate_every, 1.0  # an evaluated epoch
        began = time.perf_counter()
        run.end_epoch()
        ended = time.perf_counter()
        save(run)
        checkpoint = time.perf_counter() - ended
        images = run.final_images
        few = images.subset(torch.arange(min(FINAL_IMAGES, len(images))))
        final = time.perf_counter()
        evaluate(run.kept_network(), few, dataset.normalization, config.tta)
        final = (time.perf_counter() - final) * len(images) / len(few)
        batches.close()
        return Pace(len(batches) * step, checkpoint, ended - began, final, start)


def fit(
    config: Config, dataset: Dataset, seconds: float, since: float, *, strict: bool = True
) -> Config:
    """Return the config with as many epochs as fit, and everything counted in epochs in proportion.

    Args:
        seconds: time from `since` (a value of `time.perf_counter`) to the end of the run.
        strict: whether to raise an error if not even one epoch fits, instead of taking one.

    Raises:
        SpratError: not even one epoch fits, or as `train`.
    """
    pace = measure(config, dataset, seconds)
    left = seconds - (time.perf_counter() - since)
    one = pace.seconds(config, 1)
    if strict and one > left:
        needed = math.ceil((seconds - left + one) * 1.1)
        raise SpratError(
            f"--time is too short: one epoch takes {pace.epoch:.0f} seconds here, and the work "
            f"before and after it takes {needed - pace.epoch:.0f}. Give at least --time {needed}s."
        )
    epochs = 1
    while pace.seconds(config, 2 * epochs) <= left:
        epochs *= 2
    step = epochs
    while step := step // 2:
        if pace.seconds(config, epochs + step) <= left:
            epochs += step
    return config.in_proportion(epochs)


def fitted_recipe(folder: Path, recipe: str, limit: str) -> Path:
    """Return the file in a run's folder for the recipe as it was run.

    Args:
        recipe: the recipe it was made from.
        limit: the time as the user gave it.
    """
    return folder / f"{Path(recipe).stem}-{limit}.toml"


def keep_recipe(config: Config, path: Path) -> str:
    """Write the recipe as it is run; return the path."""
    write_whole(path, to_toml(config))
    return str(path)


def fit_again(config: Config, path: Path) -> Config:
    """Return the config with the epochs of an earlier `fit`, whose recipe was written to `path`.

    Raises:
        SpratError: that recipe has other settings.
    """
    written = load_recipe(str(path))
    fitted = config.in_proportion(written.epochs)
    # written perhaps by a version that did not scale patience
    for same in (fitted, dataclasses.replace(fitted, patience=config.patience)):
        if not overrides(same, written):
            return same
    raise SpratError(
        f"{path} is the recipe of an earlier run here, with other settings. Use the same settings "
        "to resume, or give another --output."
    )


def _step(run: Run, epoch: int, most_seconds: float) -> float:
    """Return the mean seconds per step of an epoch, including fetching its images."""
    fewest, most = STEPS
    batches, number = run.images.batches, epoch * len(run.images.batches)
    done, began = -WARM_STEPS, 0.0
    while True:
        for images, labels in batches.epoch(epoch):
            if done == 0:
                _wait(run)
                began = time.perf_counter()
            run.step(images, labels, number + max(0, done) % len(batches))
            done += 1
            if done >= fewest:
                _wait(run)
                taken = time.perf_counter() - began
                if done >= most or taken > most_seconds:
                    return taken / done


def _wait(run: Run) -> None:
    """Wait until a GPU has finished its work."""
    if run.config.device == "cuda":
        torch.cuda.synchronize()
