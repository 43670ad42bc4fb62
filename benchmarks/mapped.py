"""Measure how much memory training takes on a set that is larger than that memory.

    python benchmarks/mapped.py --json --output results/mapped.json

Writes a set of noise in sprat's cache format to a temporary folder (4 GB by default), then does
what a run does: the checksum of every byte, normalisation, the md5, the split, some training steps
and one evaluation of the first images of val. Prints the largest resident size of the process, as
the system reports it, next to the size of the set. The same is done with a set of a hundredth of
the size, to show what torch, the network and a batch need by themselves. It runs on the CPU and
takes a few minutes on two cores.
"""

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from side_by_side import Figures, parser_for, report, take_turns

from sprat.data import assemble, cache, pictures
from sprat.evaluation.evaluate import evaluate
from sprat.runtime import describe_machine, set_threads, versions
from sprat.settings.config import Config, PicturesConfig
from sprat.training.run import Run
from sprat.training.start import settle_for

CLASSES = tuple("0123456789")
PIECE = 1_000  # images written at once


def make(path: Path, images: int, side: int) -> None:
    """Write a cache file of noise that repeats the same images."""
    noise = torch.empty(min(PIECE, images), 3, side, side, dtype=torch.uint8)
    noise.random_(256, generator=torch.Generator().manual_seed(0))
    with path.open("wb") as file:
        writer = cache.Writer(file, side)
        for begin in range(0, images, PIECE):
            writer.add(noise[: images - begin])
        counts = [("", label, len(range(label, images, 10))) for label in range(10)]
        writer.finish({"digest": "", "counts": counts, "unreadable": []})


def measure(share: float, arguments: argparse.Namespace) -> Figures:
    images = max(1_000, round(share * arguments.gigabytes * 1e9 / (3 * arguments.side**2)))
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "noise.pixels"
        make(path, images, arguments.side)
        began = time.perf_counter()
        found = cache.read(path, lambda about: True)
        assert found is not None
        own = PicturesConfig(side=arguments.side)
        dataset = assemble("noise", *pictures.split(CLASSES, *found, own))
        loaded = time.perf_counter()
        config = Config(
            batch_size=64,
            threads=arguments.threads,
            device="cpu",
            kernels=arguments.kernels,
        )
        training = Run(settle_for(config, dataset), dataset, Path(folder))
        training.step.network.train()
        batches = training.images.batches.epoch(0)
        for number in range(min(arguments.steps, len(training.images.batches))):
            training.step(*next(batches), number).item()
        assert training.images.val is not None
        some = training.images.val.subset(torch.arange(min(2_000, len(training.images.val))))
        evaluate(training.step.network, some, dataset.normalization)
    return {
        "set_bytes": images * 3 * arguments.side**2,
        "seconds_to_load": loaded - began,
        "seconds_to_train": time.perf_counter() - loaded,
    }


def main() -> None:
    parser = parser_for(__doc__, rounds=1)
    parser.add_argument(
        "--gigabytes", type=float, default=4.0, help="size of the large set, in 10^9 bytes"
    )
    parser.add_argument("--side", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--steps", type=int, default=500, help="training steps of 64 images")
    parser.add_argument("--kernels", default="auto", help="auto, compiled or torch")
    parser.add_argument("--folder", type=Path, help="folder for the sets; by default in /tmp")
    arguments = parser.parse_args()
    sizes = {"small": 0.01, "large": 1.0}
    measured = take_turns({name: partial(measure, s) for name, s in sizes.items()}, arguments)
    threads = set_threads(arguments.threads)
    figures = {
        "measured": measured,
        "machine": describe_machine(torch.device("cpu"), "auto", threads),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
