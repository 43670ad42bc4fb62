"""Measure how long whole commands take, from start to end, compared with `import torch` alone.

    python benchmarks/commands.py --json

The commands, and a Python process that only imports torch, are started in turns; each figure is the
median of the turns. Nothing is kept from one turn to the next. This takes about two minutes on two
cores.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from side_by_side import ALLOCATOR, parser_for, report

from sprat.runtime import describe_machine, set_threads, versions

TORCH = "import torch"


def commands(picture: Path) -> dict[str, list[str]]:
    """Return the words after `python`, by the name of the command."""
    sprat = {
        "--help": ["--help"],
        "models": ["models"],
        "summary SpratM": ["summary", "SpratM"],
        "check SpratM": ["check", "SpratM", "--max-parameters", "1000000"],
        "predict one picture": ["predict", str(picture)],
    }
    return {TORCH: ["-c", TORCH]} | {name: ["-m", "sprat", *words] for name, words in sprat.items()}


def take_turns(arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each turn of each command, from start to end."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(ALLOCATOR)}
    turns: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "picture.jpg"
        Image.effect_noise((640, 480), 60).convert("RGB").save(picture)
        for turn in range(-arguments.warmup, arguments.rounds):
            for name, words in commands(picture).items():
                command = [sys.executable, *words]
                began = time.perf_counter()
                done = subprocess.run(
                    command, env=environment, stdout=subprocess.DEVNULL, check=False
                )
                seconds = time.perf_counter() - began
                if done.returncode:
                    sys.exit(f"{name} failed; see its message above")
                if turn >= 0:  # in earlier turns, files come from disk
                    turns.setdefault(name, []).append(seconds)
    return turns


def main() -> None:
    parser = parser_for(__doc__, rounds=9)
    parser.add_argument("--warmup", type=int, default=1, help="turns before those that count")
    arguments = parser.parse_args()
    turns = take_turns(arguments)
    seconds = {name: statistics.median(of) for name, of in turns.items()}
    figures = {
        "seconds": seconds,
        "ratios_to_torch": {name: of / seconds[TORCH] for name, of in seconds.items()},
        "turns": turns,
        "machine": describe_machine(torch.device("cpu"), "auto", set_threads(arguments.threads)),
        "versions": versions(),
    }
    for name, of in seconds.items():
        print(f"{name:20} {of:6.2f} s   {of / seconds[TORCH]:.2f} x {TORCH}")
    report(figures, arguments)


if __name__ == "__main__":
    main()
