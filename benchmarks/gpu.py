"""Measure training on a GPU: agreement with the CPU, and speed. It needs only a machine with torch.

    python benchmarks/gpu.py --output gpu.json                       # a minute, without data
    python benchmarks/gpu.py --data-dir /tmp/cifar --runs /tmp/runs --output gpu.json

Needs torch, numpy and safetensors; sprat is imported from this checkout.

1. Agreement: six steps in fp32 on the GPU (plain torch, torch recorded as a CUDA graph, and sprat's
   kernels) are compared with the same steps on the CPU: losses and weights.
2. Speed: images/s of the whole training step (flip, crop, forward, backward, SGD) in these ways and
   with `torch.compile`, over several batch sizes. Each figure is the median of rounds in which the
   ways take turns; the first call, which records and compiles, is timed separately. For comparison,
   the script computes the limit set by the memory's bandwidth: the input and output of every
   convolution once forward and twice backward, in bf16, at the speed of a large copy.
3. With CIFAR-10: a run of --epochs epochs with flip and crop, and the run to 87.42 % on the test
   set. An interrupted command can be repeated and resumes where it stopped.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

import torch
from side_by_side import report
from steps import NoiseSteps
from torch import Tensor, nn

from sprat.data import Dataset, load_dataset
from sprat.evaluation.records import read_json
from sprat.models.optimized200k import OptimizedCIFAR10Net200K
from sprat.runtime import describe_machine, versions
from sprat.settings.config import Config, EMAConfig, OptimConfig
from sprat.training.start import resume, train

BASE = Config(
    dropout=0.0,
    batch_size=512,
    epochs=200,
    label_smoothing=0.05,
    evaluate_every=1000,
    ema=EMAConfig(decay=0),
    optim=OptimConfig(lr=0.5, warmup_epochs=5),
)
# somewhat more epochs than the target needs, in batches that use part of the GPU
SHORT = dataclasses.replace(
    BASE,
    epochs=18,
    batch_size=256,
    optim=OptimConfig(name="muon", lr=0.3, muon_lr=0.04, warmup_epochs=2, schedule="linear"),
)


# way -> the setting `kernels`; torch.compile needs none of its own
WAYS = {"torch": "torch", "torch.compile": "torch", "graph": "graph", "kernels": "compiled"}


def ways_on(device: str) -> dict[str, str]:
    """Return the ways that a device supports, with the setting `kernels` of each."""
    return WAYS if device == "cuda" else {"torch": "torch", "kernels": "auto"}


def agreement(device: str, batch_size: int) -> dict[str, Any]:
    """Return the distances of losses and weights from the CPU's, in fp32 without augmentation."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    augment = dataclasses.replace(BASE.augment, flip=0.0, crop=0)
    config = dataclasses.replace(
        BASE, augment=augment, batch_size=batch_size, precision="fp32", final=True
    )
    outcomes = {}
    for name, kernels in {"cpu": "torch", **ways_on(device)}.items():
        place = "cpu" if name == "cpu" else device
        chosen = dataclasses.replace(config, device=place, kernels=kernels)  # type: ignore[arg-type]
        step = NoiseSteps(chosen, 2_000)
        losses = [step().item() for _ in range(6)]  # from the fourth on, the graph is replayed
        parameters = step.step.network.parameters()
        weights = torch.cat([p.detach().cpu().flatten() for p in parameters])
        outcomes[name] = (losses, weights)
    cpu_losses, cpu_weights = outcomes["cpu"]
    return {
        name: {
            "loss": max(abs(a - b) for a, b in zip(losses, cpu_losses, strict=True)),
            "weights": ((weights - cpu_weights).norm() / cpu_weights.norm()).item(),
        }
        for name, (losses, weights) in outcomes.items()
        if name != "cpu"
    }


def wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def speeds(
    device: str, ways: list[str], batch_size: int, steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Return for each way the seconds of the first steps and the median images/s."""
    taken: dict[str, Callable[[], Tensor]] = {}
    found: dict[str, dict[str, float]] = {}
    for way in ways:
        kernels = ways_on(device)[way]
        chosen = {"batch_size": batch_size, "device": device, "kernels": kernels}
        step = NoiseSteps(dataclasses.replace(BASE, **chosen), 20_000)  # type: ignore[arg-type]
        if way == "torch.compile":
            step.step.network.compile()
        taken[way] = step
        found[way] = {"first_five_steps_s": seconds_of(taken[way], 5, device)}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(rounds):  # in turns
        for way, step in taken.items():
            rates[way].append(steps * batch_size / seconds_of(step, steps, device))
    return {way: found[way] | {"images_per_s": median(rates[way])} for way in ways}


def seconds_of(step: Callable[[], Tensor], times: int, device: str) -> float:
    wait(device)
    began = time.perf_counter()
    for _ in range(times):
        step()
    wait(device)
    return time.perf_counter() - began


def bandwidth_floor(device: str) -> dict[str, float]:
    """Return images/s if only the convolutions' maps were moved, as rarely as possible."""
    values = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal values
        values += inputs[0].numel() + output.numel()

    network = OptimizedCIFAR10Net200K()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(count)
    network(torch.zeros(2, 3, 32, 32))
    source = torch.empty(2**28 if device == "cuda" else 2**25, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = float("inf")
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        best = min(best, time.perf_counter() - began)
    bandwidth = 2 * source.numel() / best  # read and written
    bytes_per_image = 3 * 2 * values / 2
    return {
        "gb_per_s": bandwidth / 1e9,
        "bytes_per_image": bytes_per_image,
        "images_per_s": bandwidth / bytes_per_image,
    }


def whole_run(config: Config, dataset: Dataset, run: Path) -> dict[str, Any]:
    """Train a run to its end, or resume it."""
    if not (run / "results.json").exists():
        if (run / "config.json").exists():
            resume(run, dataset)
        else:
            train(config, dataset, run, recipe=run.name)
    results = read_json(run / "results.json")
    return {
        "seconds": results["seconds"],
        "top1": results["test"]["top1"],
        "epochs": results["epochs"],
        "images_per_s": results["images_per_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", default="cuda", choices=("cuda", "cpu"), help="cpu is a dry run"
    )
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[128, 512, 2048], help="images per batch"
    )
    parser.add_argument("--steps", type=int, default=100, help="timed steps per round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each way")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, help="default: all that the device supports"
    )
    parser.add_argument(
        "--data-dir", type=Path, help="folder of CIFAR-10; without it, nothing is trained"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/gpu"), help="folder for the runs")
    parser.add_argument("--epochs", type=int, default=BASE.epochs, help="epochs of the first run")
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit(
            f"gpu.py: torch {torch.__version__} finds no CUDA device. For a dry run: --device cpu"
        )

    figures: dict[str, Any] = {
        "machine": describe_machine(torch.device(device), "bf16", torch.get_num_threads()),
        "versions": versions(),
        "agreement_with_cpu": agreement(device, min(arguments.batch_sizes)),
        "floor": bandwidth_floor(device),
        "speed": {},
    }
    print(json.dumps(figures["agreement_with_cpu"]), json.dumps(figures["floor"]), flush=True)
    for batch_size in arguments.batch_sizes:
        ways = arguments.ways or list(ways_on(device))
        timing = device, ways, batch_size, arguments.steps, arguments.rounds
        for way, measured in speeds(*timing).items():
            figures["speed"][f"{way}-{batch_size}"] = measured
            print(
                f"batch {batch_size:5} {way:13} {measured['images_per_s']:12,.0f} images/s, first "
                f"five steps {measured['first_five_steps_s']:.1f} s",
                flush=True,
            )
    if arguments.data_dir:
        dataset = load_dataset("cifar10", arguments.data_dir)
        # what a process does only once, mainly recording, must not count as the run's time
        NoiseSteps(dataclasses.replace(SHORT, device=device), 2_000)
        for name, config in (("short", SHORT), ("long", BASE)):
            epochs = arguments.epochs if name == "long" else config.epochs
            config = dataclasses.replace(config, device=device, final=True, epochs=epochs)
            figures[name] = whole_run(config, dataset, arguments.runs / name)
            print(name, json.dumps(figures[name]), flush=True)
    report(figures, arguments)


if __name__ == "__main__":
    main()
