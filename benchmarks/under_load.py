"""Measure the speed of a training step next to other work: none, one or two busy processes.

    python benchmarks/under_load.py --json

- sprat: the step of `sprat train`, in a process that imported sprat first, as the command does.
- sprat-default: the same, but its threads wait for each other as libgomp's do by default.
- eager: the same network, batch and augmentation in eager PyTorch, in bf16 if the processor has it,
  with libgomp's defaults.
- sprat-N: the same as sprat with GOMP_SPINCOUNT=N, for each N of --spin-counts.

Each contender has a new process in each round, because libgomp reads its settings when it is
loaded. In this process, the step is timed alone, next to one busy process and next to two, so that
a ratio compares what was measured within seconds. Each figure is the median of the rounds. This
takes about six minutes on two cores.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import conventional
import torch
from side_by_side import AS_SPRAT, Contender, Figures, noise, parser_for, report, take_turns
from training_step import IMAGES, sprat_steps

from sprat.runtime import choose_precision, describe_machine, set_threads, versions
from sprat.threads import SPIN_COUNT

LOADS = {"alone": 0, "beside_one": 1, "beside_two": 2}  # busy processes
BURN = """
import os
parent = os.getppid()
while os.getppid() == parent:  # none is left behind by a benchmark that is killed
    for _ in range(1_000_000):
        pass
"""


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Run so many processes, each of which keeps a core busy."""
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range(processes)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def under_each_load(steps: Iterator[float], arguments: argparse.Namespace) -> Figures:
    """Return images/s of warm steps."""
    figures = {}
    for load, processes in LOADS.items():
        with busy(processes):
            for _ in range(arguments.warmup):
                next(steps)
            began, done, seconds = time.perf_counter(), 0, 0.0
            while not done or seconds < arguments.seconds:
                next(steps)
                done, seconds = done + 1, time.perf_counter() - began
        figures[load] = done * arguments.batch_size / seconds
    return figures


def sprat(arguments: argparse.Namespace) -> Figures:
    return under_each_load(sprat_steps(arguments), arguments)


def eager(arguments: argparse.Namespace) -> Figures:
    set_threads(arguments.threads)
    bf16 = choose_precision("auto", torch.device("cpu")) == "bf16"
    steps = conventional.eager(noise(IMAGES).train, arguments.batch_size, bf16)
    return under_each_load(steps, arguments)


def main() -> None:
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch")
    parser.add_argument("--precision", default="auto", help="precision of sprat's step")
    parser.add_argument("--kernels", default="auto", help="kernels of sprat's step")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the timed ones")
    parser.add_argument(
        "--seconds", type=float, default=4.0, help="seconds of steps under each load"
    )
    parser.add_argument(
        "--spin-counts",
        type=int,
        nargs="*",
        default=[],
        help="values of GOMP_SPINCOUNT to try as well",
    )
    arguments = parser.parse_args()
    contenders: dict[str, Contender] = {"sprat": sprat, "sprat-default": sprat, "eager": eager}
    environments = {"sprat": AS_SPRAT}
    for count in arguments.spin_counts:
        contenders[f"sprat-{count}"] = sprat
        environments[f"sprat-{count}"] = {"GOMP_SPINCOUNT": str(count)}
    measured = take_turns(contenders, arguments, environments)

    default = measured["sprat-default"]["alone"]
    figures = {
        "spin_count": SPIN_COUNT,
        "alone_to_default": measured["sprat"]["alone"] / default,
        "ratios_to_alone": {
            name: {load: of[load] / of["alone"] for load in LOADS} for name, of in measured.items()
        },
        "batch_size": arguments.batch_size,
        "seconds": arguments.seconds,
        "measured": measured,
        "machine": describe_machine(
            torch.device("cpu"), arguments.precision, set_threads(arguments.threads)
        ),
        "versions": versions(),
    }
    print("images/s (ratio to alone)" + "".join(f"{load:>20}" for load in LOADS))
    for name, of in measured.items():
        cells = (f"{of[load]:,.0f} ({of[load] / of['alone']:.2f})" for load in LOADS)
        print(f"{name:25}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"alone, sprat makes {figures['alone_to_default']:.2f} of libgomp's default")
    report(figures, arguments)


if __name__ == "__main__":
    main()
