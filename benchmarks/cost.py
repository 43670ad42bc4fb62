"""Measure how the cost of training grows with batch size, image side, width and number of images.

    python benchmarks/cost.py --output results/cost.json --picture results/cost.png

Times steps of sprat, converts them to seconds per epoch of 50,000 images, and reads the peak memory
of the process, which holds as many images as an epoch has. Each point is the median of its turns,
each in its own process. The width is a factor for the channels of every stage. This takes about ten
minutes on two cores.
"""

import argparse
import time
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from side_by_side import Figures, parser_for, report, take_turns
from steps import NoiseSteps

from sprat.files import replacing
from sprat.models import NetworkConfig
from sprat.runtime import describe_machine, set_threads, versions
from sprat.settings.config import Config

EPOCH = 50_000
WIDTHS = (20, 40, 80, 160)  # of OptimizedCIFAR10Net200K
POINT = {"batch_size": 64, "side": 32, "width": 1.0, "images": EPOCH}
LINES: dict[str, tuple[float, ...]] = {
    "batch_size": (16, 32, 64, 128, 256, 512),
    "side": (16, 24, 32, 48, 64),
    "width": (0.4, 0.8, 1.0, 1.6, 2.0),
    "images": (5_000, 12_500, 25_000, 50_000),
}
LABELS = {
    "batch_size": "images in a batch",
    "side": "image side, px",
    "width": "factor on every width",
    "images": "training images",
}


def measure(line: str, value: float, arguments: argparse.Namespace) -> Figures:
    point = POINT | {line: value}
    widths = tuple(round(point["width"] * width / 2) * 2 for width in WIDTHS)
    count, side = int(point["images"]), int(point["side"])
    config = Config(
        network=NetworkConfig(name="OptimizedCIFAR10Net200K", widths=widths),
        batch_size=int(point["batch_size"]),
        threads=arguments.threads,
        device="cpu",
    )
    step = NoiseSteps(config, count, side)
    for _ in range(3):
        step().item()
    steps = max(5, min(arguments.images // config.batch_size, count // config.batch_size - 3))
    began = time.perf_counter()
    for _ in range(steps):
        step().item()
    per_image = (time.perf_counter() - began) / steps / config.batch_size
    return {"seconds_an_epoch": per_image * count}


def draw(measured: dict[str, dict[str, Figures]], path: Path) -> None:
    figure = Figure(figsize=(10, 8), layout="constrained", dpi=110)
    for axes, (line, by_value) in zip(figure.subplots(2, 2).flat, measured.items(), strict=False):
        values, points = [float(value) for value in by_value], list(by_value.values())
        seconds = [point["seconds_an_epoch"] for point in points]
        memory = [point["peak_rss_bytes"] / 2**30 for point in points]
        axes.plot(values, seconds, "o-", color="#1f77b4")
        axes.set_xlabel(LABELS[line])
        axes.set_ylabel("seconds per epoch", color="#1f77b4")
        axes.set_ylim(bottom=0)
        right = axes.twinx()
        right.plot(values, memory, "s--", color="#d95f02")
        right.set_ylabel("peak memory, GiB", color="#d95f02")
        right.set_ylim(bottom=0)
        axes.spines["top"].set_visible(False)
        right.spines["top"].set_visible(False)
        axes.grid(alpha=0.3)
    figure.suptitle("Cost of training; unless varied: batch 64, 32 px, width 1, 50,000 images")
    with replacing(path) as temporary:
        figure.savefig(temporary)


def main() -> None:
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--picture", type=Path, help="PNG file for the plot")
    parser.add_argument("--images", type=int, default=3_000, help="images timed per turn")
    parser.add_argument(
        "--lines", nargs="+", choices=LINES, default=list(LINES), help="quantities to vary"
    )
    parser.add_argument(
        "--ends", action="store_true", help="only the first and last point of each line"
    )
    arguments = parser.parse_args()
    lines = {line: LINES[line] for line in arguments.lines}
    if arguments.ends:
        lines = {line: (values[0], values[-1]) for line, values in lines.items()}
    contenders = {
        f"{line}={value}": partial(measure, line, value)
        for line, values in lines.items()
        for value in values
    }
    points = take_turns(contenders, arguments)
    measured = {
        line: {str(value): points[f"{line}={value}"] for value in values}
        for line, values in lines.items()
    }
    if arguments.picture:
        draw(measured, arguments.picture)
    threads = set_threads(arguments.threads)
    figures = {
        "measured": measured,
        "elsewhere": POINT,
        "machine": describe_machine(torch.device("cpu"), "auto", threads),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
