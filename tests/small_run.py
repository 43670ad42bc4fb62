"""A run in a process of its own, for tests that kill it: python small_run.py RUN.

Starts RUN, or goes on with it where it exists already. Prints a line for every step.
"""

import dataclasses
import sys
from pathlib import Path

from conftest import SMALL, shrink

from sprat.data import load_dataset
from sprat.train import Observer, Training, resume, train


class Tell(Observer):
    def stepped(self, training: Training) -> None:
        print("step", flush=True)


if __name__ == "__main__":
    run = Path(sys.argv[1])
    small = shrink(load_dataset("shapes10"), 400, 100)
    print("ready", flush=True)
    if (run / "config.json").exists():
        resume(run, small, observer=Tell())
    else:
        config = dataclasses.replace(SMALL, final=True)
        train(config, small, run, recipe="small", observer=Tell())
