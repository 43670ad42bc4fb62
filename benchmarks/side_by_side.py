"""Compare contenders fairly on a noisy machine: they take turns, each in its own process.

A script passes its contenders: functions that measure once and return plain figures. The script
then calls itself for each turn, in an environment without allocator settings, so that no contender
inherits settings from another. The figure of each contender is the median of its turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sprat.data import Dataset
from sprat.data.imageset import ImageSet, Normalization
from sprat.evaluation.records import write_json
from sprat.runtime import peak_memory
from sprat.threads import SPIN_COUNT

Figures = dict[str, float]
Contender = Callable[[argparse.Namespace], Figures]
ALLOCATOR = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD", "OMP_", "KMP_", "GOMP_")
# set in a process that imports sprat before torch, as the command does but these scripts do not
AS_SPRAT = {"GOMP_SPINCOUNT": str(SPIN_COUNT)}


def parser_for(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Return a parser with the options that these benchmarks share."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=0, help="0: one per core")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    return parser


def noise(count: int, side: int = 32) -> Dataset:
    """Return a dataset of random pixels and labels, for timing."""
    generator = torch.Generator().manual_seed(0)
    images = torch.empty(count, 3, side, side, dtype=torch.uint8)
    images.random_(256, generator=generator)
    dataset = ImageSet(images, torch.arange(count) % 10, tuple("0123456789"))
    return Dataset("noise", dataset, dataset, Normalization((0.5,) * 3, (0.25,) * 3), "")


def take_turns(
    contenders: dict[str, Contender],
    arguments: argparse.Namespace,
    environments: Mapping[str, Mapping[str, str]] = {},
) -> dict[str, dict[str, Any]]:
    """Return the medians of every contender's figures, and all turns; in a child, take one turn.

    environments: additional environment variables for a contender's processes.
    """
    if arguments.contender:
        figures = contenders[arguments.contender](arguments)
        print(json.dumps(figures | {"peak_rss_bytes": peak_memory()}))
        sys.exit(0)
    turns: dict[str, list[Figures]] = {name: [] for name in contenders}
    for turn in range(arguments.rounds):
        for name in contenders:
            began = time.perf_counter()
            figures = _one_turn(name, environments.get(name, {}))
            turns[name].append(figures)
            shown = "  ".join(f"{key} {value:,.4g}" for key, value in figures.items())
            seconds = time.perf_counter() - began
            print(f"{turn + 1}/{arguments.rounds} {name:16} {shown}  ({seconds:.0f} s)", flush=True)
    return {
        name: {key: statistics.median(t[key] for t in done) for key in done[0]} | {"turns": done}
        for name, done in turns.items()
    }


def _one_turn(name: str, variables: Mapping[str, str]) -> Figures:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ALLOCATOR)}
    environment.update(variables)
    command = [sys.executable, *sys.argv, "--contender", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed; see its message above")
    return json.loads(done.stdout.splitlines()[-1])


def report(figures: dict[str, Any], arguments: argparse.Namespace) -> None:
    """Write the figures to the file and the output that were asked for."""
    if arguments.output:
        write_json(arguments.output, figures)
    if arguments.json:
        print(json.dumps(figures))
