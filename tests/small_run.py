"""A run in a process of its own, for tests that kill it: python small_run.py RUN.

Starts RUN, or goes on with it where it exists already. Prints a line for every step.
"""

import dataclasses
import sys
from pathlib import Path

from conftest import SMALL

from sprat.data import Dataset, shapes10
from sprat.data.imageset import Normalization
from sprat.train import Observer, Training, resume, train


class Tell(Observer):
    def stepped(self, training: Training) -> None:
        print("step", flush=True)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    images, test = shapes10.load(train_images=400, test_images=100)
    small = Dataset("shapes10", images, test, Normalization.of(images.images), md5="")
    print("ready", flush=True)
    if (run / "config.json").exists():
        resume(run, small, observer=Tell())
    else:
        config = dataclasses.replace(SMALL, final=True)
        train(config, small, run, recipe="small", observer=Tell())
