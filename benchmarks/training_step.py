"""Measure images/s of sprat's training step, compared with two conventional ones.

    python benchmarks/training_step.py --json

- sprat: the step of `sprat train` in bf16, including flip and crop.
- eager-bf16: the same network, batch and augmentation in eager PyTorch, bf16 autocast,
  channels-last, with the defaults of PyTorch and of the allocator.
- brief: the loop that the original project describes: a DataLoader with workers, Albumentations
  image by image, one of MixUp, CutMix and RICAP drawn at random, eager fp32. Needs
  sprat[albumentations].

Contenders take turns, each in its own process; each figure is the median of the turns. The ceiling
is the best rate of a large matrix product in torch on the same threads. The images are noise,
because their content makes no difference here. This takes about five minutes on two cores.
"""

import argparse
import time
from collections.abc import Iterator

import conventional
import torch
from side_by_side import AS_SPRAT, Contender, Figures, noise, parser_for, report, take_turns
from steps import NoiseSteps
from torch.utils.flop_counter import FlopCounterMode

from sprat.models.optimized200k import OptimizedCIFAR10Net200K
from sprat.runtime import describe_machine, set_threads, versions
from sprat.settings.config import Config

IMAGES = 10_000


def rate(steps: Iterator[float], arguments: argparse.Namespace) -> Figures:
    """Return images/s of warm steps."""
    for _ in range(arguments.warmup):
        next(steps)
    began = time.perf_counter()
    for _ in range(arguments.steps):
        next(steps)
    seconds = (time.perf_counter() - began) / arguments.steps
    return {"images_per_s": arguments.batch_size / seconds, "ms_per_step": 1e3 * seconds}


def sprat_step(arguments: argparse.Namespace) -> Figures:
    return rate(sprat_steps(arguments), arguments)


def sprat_steps(arguments: argparse.Namespace) -> Iterator[float]:
    """Yield the losses of sprat's steps, each taken when it is asked for."""
    steps = NoiseSteps(
        Config(
            batch_size=arguments.batch_size,
            threads=arguments.threads,
            precision=arguments.precision,
            kernels=arguments.kernels,
            device="cpu",
        ),
        IMAGES,
    )
    while True:
        yield steps().item()


def eager_bf16_step(arguments: argparse.Namespace) -> Figures:
    set_threads(arguments.threads)
    return rate(conventional.eager(noise(IMAGES).train, arguments.batch_size), arguments)


def brief_step(arguments: argparse.Namespace) -> Figures:
    set_threads(arguments.threads)
    return rate(conventional.brief(noise(IMAGES).train, arguments.batch_size), arguments)


def ceiling(arguments: argparse.Namespace) -> Figures:
    """Return the GFLOP/s of a large product, the best of many."""
    set_threads(arguments.threads)
    n, figures = arguments.ceiling_side, {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        best = float("inf")
        for _ in range(20):
            began = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - began)
        figures[f"{name}_gflops"] = 2 * n**3 / best / 1e9
    return figures


def flops_per_image() -> int:
    """Return the floating-point operations of convolutions and products, forward and backward."""
    network, images = OptimizedCIFAR10Net200K(), torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() // 2


def main() -> None:
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch")
    parser.add_argument("--precision", default="bf16", help="precision of sprat's step")
    parser.add_argument("--kernels", default="auto", help="kernels of sprat's step")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=20, help="timed steps per turn")
    parser.add_argument(
        "--ceiling-side", type=int, default=2048, help="side of the matrices of the ceiling"
    )
    parser.add_argument(
        "--without-brief", action="store_true", help="leave out the original project's loop"
    )
    arguments = parser.parse_args()
    contenders: dict[str, Contender] = {"sprat": sprat_step, "eager-bf16": eager_bf16_step}
    if not arguments.without_brief:
        contenders["brief"] = brief_step
    measured = take_turns(contenders | {"ceiling": ceiling}, arguments, {"sprat": AS_SPRAT})

    rates = {name: measured[name]["images_per_s"] for name in contenders}
    gflops = flops_per_image() * rates["sprat"] / 1e9
    threads = set_threads(arguments.threads)
    figures = {
        "images_per_s": rates["sprat"],
        "ratio_to_eager_bf16": rates["sprat"] / rates["eager-bf16"],
        "ratio_to_brief": rates["sprat"] / rates["brief"] if "brief" in rates else None,
        "gflops": gflops,
        "share_of_bf16_ceiling": gflops / measured["ceiling"]["bf16_gflops"],
        "share_of_fp32_ceiling": gflops / measured["ceiling"]["fp32_gflops"],
        "batch_size": arguments.batch_size,
        "kernels": arguments.kernels,
        "measured": measured,
        "machine": describe_machine(torch.device("cpu"), arguments.precision, threads),
        "versions": versions(),
    }
    for name, images_per_s in rates.items():
        ratio = rates["sprat"] / images_per_s
        peak = measured[name]["peak_rss_bytes"] / 1e9
        print(f"{name:12} {images_per_s:8,.0f} images/s   sprat is {ratio:.2f} x   {peak:.2f} GB")
    print(
        f"sprat's step does {gflops:,.0f} GFLOP/s: {figures['share_of_bf16_ceiling']:.0%} of the "
        f"bf16 ceiling here, {figures['share_of_fp32_ceiling']:.0%} of the fp32 one"
    )
    report(figures, arguments)


if __name__ == "__main__":
    main()
