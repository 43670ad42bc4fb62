"""How fast does a trained network answer? Latency of one image, throughput of a batch.

    python benchmarks/inference.py --json

Measures the brief's network three ways, on one core and on two: eager fp32, eager bf16
(channels-last autocast), and the program of `torch.export`. Each way is a process of its own, in
turns; a figure is the median turn, a turn's latency the median of its calls. A minute on two
cores.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from side_by_side import Figures, parser_for, report, take_turns
from torch import Tensor

from sprat.models import OptimizedCIFAR10Net200K
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions

WAYS = ("eager", "bf16", "export")


def answerer(way: str, images: Tensor) -> Callable[[Tensor], Tensor]:
    """From images to logits; a pair of images or more for a batch that may differ in size."""
    network = OptimizedCIFAR10Net200K().eval()
    if way == "export":
        # one image is a program of its own: torch.export takes a size of 1 to be fixed
        batch = {0: torch.export.Dim("batch", min=2)} if len(images) > 1 else None
        program = torch.export.export(network, (images,), dynamic_shapes=(batch,))
        return program.module()
    if way == "bf16":
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

        def answer(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return network(images)

        return answer
    return network


def measure(way: str, threads: int, arguments: argparse.Namespace) -> Figures:
    keep_freed_memory()
    set_threads(threads)
    figures = {}
    with torch.inference_mode():
        for name, images, calls in (
            ("ms_for_one_image", torch.randn(1, 3, 32, 32), arguments.calls),
            ("images_per_s", torch.randn(arguments.batch_size, 3, 32, 32), arguments.calls // 10),
        ):
            if way == "bf16":
                images = images.contiguous(memory_format=torch.channels_last)
            answer = answerer(way, images)
            for _ in range(max(3, calls // 10)):
                answer(images)
            seconds = []
            for _ in range(calls):
                began = time.perf_counter()
                answer(images)
                seconds.append(time.perf_counter() - began)
            median = statistics.median(seconds)
            figures[name] = 1e3 * median if len(images) == 1 else len(images) / median
    return figures


def main() -> None:
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--calls", type=int, default=200, help="of one image, a tenth of a batch")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    arguments = parser.parse_args()
    contenders = {
        f"{way}-{threads}": partial(measure, way, threads)
        for threads in (1, 2)
        for way in arguments.ways
    }
    measured = take_turns(contenders, arguments)
    print(f"\n{'':10} {'one image, ms':>28} {f'batch of {arguments.batch_size}, images/s':>30}")
    print(f"{'':10} {'one core':>14} {'two cores':>13} {'one core':>16} {'two cores':>13}")
    for way in arguments.ways:
        one, two = measured[f"{way}-1"], measured[f"{way}-2"]
        print(
            f"{way:10} {one['ms_for_one_image']:14.2f} {two['ms_for_one_image']:13.2f} "
            f"{one['images_per_s']:16,.0f} {two['images_per_s']:13,.0f}"
        )
    figures = {
        "measured": measured,
        "batch_size": arguments.batch_size,
        "machine": describe_machine(torch.device("cpu"), "fp32", 2),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
