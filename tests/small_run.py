"""A run in a process of its own, for tests that kill it: python small_run.py RUN.

Starts RUN, or goes on with it where it exists already.
"""

import dataclasses
import sys
from pathlib import Path

from conftest import SMALL, shrink

from sprat.data import load_dataset
from sprat.train import resume, train

if __name__ == "__main__":
    run = Path(sys.argv[1])
    small = shrink(load_dataset("shapes10"), 400, 100)
    print("ready", flush=True)
    if (run / "config.json").exists():
        resume(run, small)
    else:
        train(dataclasses.replace(SMALL, final=True), small, run, recipe="small")
