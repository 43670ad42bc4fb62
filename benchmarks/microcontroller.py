"""Does a model in C answer as the integer reference does, and what does int8 cost?

    python benchmarks/microcontroller.py --json --output results/microcontroller.json

Writes each pretrained model as `sprat export --format c` does, compiles it with gcc -O2, and gives
it the test set: how many images get other scores than from the reference in numpy (expected: none),
the accuracy of both int8 and fp32, the most that any class loses, the bytes of arena and weights,
and the processor time of an image in C on one core. An hour on two cores, most of it the
reference's.
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import report

from sprat import zoo
from sprat.budget import memory_plan
from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.data.imageset import Images
from sprat.deploy import Options
from sprat.deploy.c import C, reading, reference
from sprat.deploy.graph import Source
from sprat.evaluation.evaluate import predict_probabilities
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions

FLAGS = ("-std=c11", "-O2")
BATCH = 500  # images


def classifier(files: dict[str, bytes], folder: Path) -> Any:
    """The compiled function of a model's C files."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    command = ["gcc", *FLAGS, "-shared", "-fPIC", "-o", "model.so", "model.c", "model_data.c"]
    subprocess.run(command, cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "model.so")).model_classify


def scores_in_c(classify: Any, images: NDArray[np.uint8], classes: int) -> NDArray[np.int8]:
    scores = np.empty((len(images), classes), np.int8)
    for image, row in zip(np.ascontiguousarray(images), scores, strict=True):
        classify(image.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
    return scores


def judge(name: str, dataset: Dataset, count: int) -> dict[str, Any]:
    """What one pretrained model does on the first `count` test images."""
    model = load_model(zoo.ZOO / name)
    files = C.write(Source.of(model, Options(), dataset.train), b"")
    assert isinstance(files, dict)
    network = reading.read_source(files, model.network)
    images: Images = dataset.test.subset(torch.arange(count)).images
    targets = dataset.test.targets[:count].numpy()
    expected, given, seconds = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder:
        classify = classifier(files, Path(folder))
        for batch in images.split(BATCH):
            expected.append(reference.scores(network, batch.numpy()))
            began = time.process_time()
            given.append(scores_in_c(classify, batch.numpy(), len(model.classes)))
            seconds += time.process_time() - began
    scores = np.concatenate(given)
    fp32 = predict_probabilities(model.network, images, model.normalization).numpy()
    right = {"int8": scores.argmax(1) == targets, "fp32": fp32.argmax(1) == targets}
    drops = [
        float(right["fp32"][targets == k].mean() - right["int8"][targets == k].mean())
        for k in np.unique(targets)
    ]
    plan = memory_plan(model.network, model.side)
    return {
        "images": count,
        "other_scores": int((scores != np.concatenate(expected)).any(1).sum()),
        "top1_int8": float(right["int8"].mean()),
        "top1_fp32": float(right["fp32"].mean()),
        "largest_class_drop": max(drops),
        "same_top1": float((scores.argmax(1) == fp32.argmax(1)).mean()),
        "arena_bytes": plan.arena,
        "weight_bytes": plan.weights,
        "cpu_ms_an_image": 1e3 * seconds / count,
    }


def main() -> None:
    names = [card["name"] for card in zoo.cards()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=names, default=names)
    parser.add_argument("--images", type=int, default=10_000, help="of the test set")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file for the figures")
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = set_threads(0)
    dataset = load_dataset("cifar10", arguments.data_dir)
    models = {}
    for name in arguments.models:
        found = models[name] = judge(name, dataset, arguments.images)
        print(
            f"{name:24} {found['other_scores']} of {found['images']:,} other scores  int8 "
            f"{100 * found['top1_int8']:.2f} %  fp32 {100 * found['top1_fp32']:.2f} %  "
            f"{found['cpu_ms_an_image']:.1f} ms",
            flush=True,
        )
    figures = {
        "models": models,
        "compiler": subprocess.check_output(["gcc", "--version"], text=True).splitlines()[0],
        "flags": " ".join(FLAGS),
        "machine": describe_machine(torch.device("cpu"), "fp32", threads),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
