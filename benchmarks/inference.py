"""Measure how fast a trained network is: latency of one image, throughput of a batch.

    python benchmarks/inference.py --json

Measures each network in eight ways, on one core and on two:

- sprat: as sprat's commands run it, in compiled kernels if they support it, else in eager PyTorch;
- eager: eager PyTorch in fp32;
- channels-last: the same in the memory format channels-last;
- bf16: eager PyTorch with bf16 autocast, channels-last;
- export: the program of `torch.export`;
- onnx, onnx-int8: onnxruntime with the files that `sprat export` writes;
- c: the C code that `sprat export` writes, compiled by gcc -O2, on one thread. It classifies one
  image after another, so its batch is only eight images.

Times are from normalised images to logits; in C, from pixels to scores. The weights are
untrained and int8 is calibrated on noise, which does not change the time. Ways take turns, each in
its own process. Each figure is the median of the turns, and the latency of a turn is the median of
its calls. Processor time per image is included, because other processes disturb it less. This takes
half an hour on two cores.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import torch
from microcontroller import compiled
from side_by_side import Figures, noise, parser_for, report, take_turns
from torch import Tensor

from sprat.checkpoint import Model
from sprat.deploy import Options
from sprat.deploy.c import C
from sprat.deploy.graph import Source
from sprat.deploy.writing import export
from sprat.inference import WORTH_COMPILING, FrozenNetwork
from sprat.models import NETWORKS, build_network
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions

WAYS = ("sprat", "eager", "channels-last", "bf16", "export", "onnx", "onnx-int8", "c")
CHANNELS_LAST = ("channels-last", "bf16")
COMPARED = ("OptimizedCIFAR10Net200K", "SpratM", "ResNet8", "ResNet20")


def answerer(way: str, name: str, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Return a function from images to logits; for a batch of any size, pass two images or more."""
    if way in ("onnx", "onnx-int8"):
        return through_onnxruntime(way, name)
    if way == "c":
        return through_c(name)
    network = build_network(name).eval()
    if way == "sprat":
        frozen = FrozenNetwork(network)
        frozen.expect(WORTH_COMPILING)
        return frozen
    if way == "export":
        # one image needs a program of its own, since torch.export treats a size of 1 as fixed
        batch = {0: torch.export.Dim("batch", min=2)} if len(images) > 1 else None
        program = torch.export.export(network, (images,), dynamic_shapes=(batch,))
        return program.module()
    if way in CHANNELS_LAST:
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if way == "bf16":

        def answer(images: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return network(images)

        return answer
    return network


def untrained(name: str) -> Model:
    torch.manual_seed(0)
    shown = noise(1)
    return Model(build_network(name), name, shown.train.classes, shown.normalization, 32, {})


@cache
def through_c(name: str) -> Callable[[Tensor], Tensor]:
    """Run what `sprat export --format c` writes, one image after another."""
    model = untrained(name)
    files = C.write(Source.of(model, Options(), noise(64).train), b"")
    assert isinstance(files, dict)
    scores = compiled(files, len(model.classes))
    return lambda images: torch.from_numpy(scores(images.numpy()))


@cache
def through_onnxruntime(way: str, name: str) -> Callable[[Tensor], Tensor]:
    """Run what `sprat export` writes, on as many threads as torch has."""
    import onnxruntime

    model, shown = untrained(name), noise(64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        seen, training = shown.test, shown.train
        options = Options(raw=True, max_drop=100, max_class_drop=100)
        export(model, path, way, options, compared=seen, training=training)
        content = path.read_bytes()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def measure(way: str, name: str, threads: int, arguments: argparse.Namespace) -> Figures:
    keep_freed_memory()
    set_threads(threads)
    figures = {}
    with torch.inference_mode():
        for figure, images, calls in (
            ("ms_for_one_image", torch.randn(1, 3, 32, 32), arguments.calls),
            ("images_per_s", torch.randn(arguments.batch_size, 3, 32, 32), arguments.calls // 10),
        ):
            if way in CHANNELS_LAST:
                images = images.contiguous(memory_format=torch.channels_last)
            if way == "c":
                images = (64 * images[:8] + 128).clamp(0, 255).byte()
            answer = answerer(way, name, images)
            for _ in range(max(3, calls // 10)):
                answer(images)
            seconds, began_cpu = [], time.process_time()
            for _ in range(calls):
                began = time.perf_counter()
                answer(images)
                seconds.append(time.perf_counter() - began)
            median = statistics.median(seconds)
            figures[figure] = 1e3 * median if len(images) == 1 else len(images) / median
            cpu = (time.process_time() - began_cpu) / calls / len(images)
            figures["cpu_ms_an_image_alone" if len(images) == 1 else "cpu_ms_an_image"] = 1e3 * cpu
    return figures


def main() -> None:
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--batch-size", type=int, default=250, help="images per batch")
    parser.add_argument(
        "--calls", type=int, default=200, help="calls with one image; a tenth as many with a batch"
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="ways to measure")
    parser.add_argument(
        "--models", nargs="+", choices=list(NETWORKS), default=COMPARED, help="networks to measure"
    )
    arguments = parser.parse_args()
    contenders = {
        f"{name}-{way}-{threads}": partial(measure, way, name, threads)
        for name in arguments.models
        for threads in (1, 2)
        for way in arguments.ways
        if (way, threads) != ("c", 2)
    }
    turns = take_turns(contenders, arguments)
    measured = {
        name: {
            f"{way}-{threads}": turns[f"{name}-{way}-{threads}"]
            for threads in (1, 2)
            for way in arguments.ways
            if (way, threads) != ("c", 2)
        }
        for name in arguments.models
    }
    print(f"\n{'':13} {'one image, ms':>28} {f'batch of {arguments.batch_size}, images/s':>30}")
    print(f"{'':13} {'one core':>14} {'two cores':>13} {'one core':>16} {'two cores':>13}")
    for name, of_network in measured.items():
        print(name)
        for way in arguments.ways:
            one = of_network[f"{way}-1"]
            two = of_network.get(f"{way}-2", one)
            print(
                f"{way:13} {one['ms_for_one_image']:14.2f} {two['ms_for_one_image']:13.2f} "
                f"{one['images_per_s']:16,.0f} {two['images_per_s']:13,.0f}"
            )
    first, *others = measured
    figures = {
        "model": first,
        "measured": measured[first],
        "others": {name: measured[name] for name in others},
        "batch_size": arguments.batch_size,
        "machine": describe_machine(torch.device("cpu"), "fp32", 2),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
