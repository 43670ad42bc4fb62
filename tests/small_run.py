"""Small run in its own process, for tests that kill it."""

import dataclasses
from multiprocessing.connection import Connection
from pathlib import Path

from conftest import SMALL

from sprat.data import Dataset, shapes10
from sprat.data.imageset import Normalization
from sprat.training.observer import Observer
from sprat.training.run import Run
from sprat.training.start import resume, train


class StepReporter(Observer):
    def __init__(self, to: Connection) -> None:
        self.to = to

    def stepped(self, training: Run) -> None:
        self.to.send("step")


def small_run(run: Path, to: Connection) -> None:
    """Start `run`, or resume it if it exists, and report every step."""
    images, test = shapes10.load(train_images=200, test_images=100)
    small = Dataset("shapes10", images, test, Normalization.of(images.images), md5="")
    if (run / "config.json").exists():
        resume(run, small, observer=StepReporter(to))
    else:
        config = dataclasses.replace(SMALL, final=True)
        train(config, small, run, recipe="small", observer=StepReporter(to))
