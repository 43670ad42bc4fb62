"""Check that models in C give the same scores as the integer reference, and measure their accuracy.

    python benchmarks/microcontroller.py --output results/microcontroller.json

Writes each pretrained model as `sprat export --format c` does, compiles it with gcc -O2, and
classifies the test set with it. Reports the number of images whose scores differ from those of the
reference in numpy (none is expected), the accuracy in int8 and in fp32, the class that loses most,
and the bytes of arena and weights. The file is written after each model. A model whose C files have
not changed since they were measured is not measured again, so the same command resumes an
interrupted one. `python docs/generate.py` then writes docs/reference/microcontroller.md. It takes
minutes per model on two cores.
"""

import argparse
import ctypes
import hashlib
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from side_by_side import report

from sprat import zoo
from sprat.budget import memory_plan
from sprat.checkpoint import Model, load_model
from sprat.data import Dataset, load_dataset
from sprat.data.imageset import ImageSet
from sprat.deploy import Options
from sprat.deploy.c import C, reading, reference
from sprat.deploy.graph import Source
from sprat.evaluation.evaluate import predict_probabilities
from sprat.evaluation.records import read_json
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions

FLAGS = ("-std=c11", "-O2")
BATCH = 100  # images
COMPILER = subprocess.check_output(["gcc", "--version"], text=True).splitlines()[0]

Scores = NDArray[np.int8]
Images = NDArray[np.uint8]


def compiled(files: dict[str, bytes], classes: int) -> Callable[[Images], Scores]:
    """Return a model's C files as a function: images N x 3 x side x side to scores N x classes."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        command = ["gcc", *FLAGS, "-shared", "-fPIC", "-o", "model.so", "model.c", "model_data.c"]
        subprocess.run(command, cwd=folder, check=True)
        classify = ctypes.CDLL(str(Path(folder) / "model.so")).model_classify

    def scores(images: Images) -> Scores:
        made = np.empty((len(images), classes), np.int8)
        for image, row in zip(np.ascontiguousarray(images), made, strict=True):
            classify(image.ctypes.data_as(ctypes.c_void_p), row.ctypes.data_as(ctypes.c_void_p))
        return made

    return scores


def measure_files(
    model: Model, files: dict[str, bytes], shown: ImageSet, workers: int
) -> dict[str, Any]:
    """Measure the C files of a model on labelled images."""
    network = reading.read_source(files, model.network)
    idle: SimpleQueue[Callable[[Images], Scores]] = SimpleQueue()  # their memory is static
    for _ in range(workers):
        idle.put(compiled(files, len(model.classes)))

    def compare(batch: torch.Tensor) -> tuple[Scores, int]:
        images, in_c = batch.numpy(), idle.get()
        given = in_c(images)
        idle.put(in_c)
        return given, int((given != reference.scores(network, images)).any(1).sum())

    with ThreadPoolExecutor(workers) as pool:  # C and large arrays release the GIL
        compared = list(pool.map(compare, shown.images.split(BATCH)))
    scores = np.concatenate([given for given, _ in compared])
    fp32 = predict_probabilities(model.network, shown.images, model.normalization).numpy()
    targets = shown.targets.numpy()
    right = {"int8": scores.argmax(1) == targets, "fp32": fp32.argmax(1) == targets}
    drops = {
        shown.classes[k]: float(
            right["fp32"][targets == k].mean() - right["int8"][targets == k].mean()
        )
        for k in np.unique(targets)
    }
    worst = max(drops, key=lambda name: drops[name])
    plan = memory_plan(model.network, model.side)
    return {
        "images": len(shown),
        "other_scores": sum(others for _, others in compared),
        "top1_int8": float(right["int8"].mean()),
        "top1_fp32": float(right["fp32"].mean()),
        "worst_class": worst,
        "worst_class_drop": drops[worst],
        "same_top1": float((scores.argmax(1) == fp32.argmax(1)).mean()),
        "arena_bytes": plan.arena,
        "weight_bytes": plan.weights,
    }


def measure(name: str, dataset: Dataset, count: int, before: dict[str, Any]) -> dict[str, Any]:
    """Measure a pretrained model on the first `count` test images, or return the earlier figures
    if the files have not changed."""
    model = load_model(zoo.ZOO / name)
    files = C.write(Source.of(model, Options()), b"")
    assert isinstance(files, dict)
    digest = hashlib.sha256(b"".join(files[name] for name in sorted(files))).hexdigest()
    if (before.get("files_sha256"), before.get("images")) == (digest, count):
        return before
    shown = dataset.test.subset(torch.arange(count))
    found = measure_files(model, files, shown, torch.get_num_threads())
    return {"sha256": zoo.find_card(name)["sha256"], "files_sha256": digest} | found


def main() -> None:
    names = [card["name"] for card in zoo.cards()]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--models", nargs="+", choices=names, default=names, help="models to measure"
    )
    parser.add_argument("--images", type=int, default=10_000, help="number of test images")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    parser.add_argument(
        "--output", type=Path, help="JSON file for the figures, also read to resume"
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object as the last line"
    )
    arguments = parser.parse_args()
    keep_freed_memory()
    threads = set_threads(0)
    figures = {
        "compiler": COMPILER,
        "flags": " ".join(FLAGS),
        "machine": describe_machine(torch.device("cpu"), "fp32", threads),
        "versions": versions(),
    }
    before: dict[str, Any] = {}
    if arguments.output and arguments.output.exists():
        read = read_json(arguments.output)
        if read["compiler"] == COMPILER:
            before = {name: read["models"][name] for name in names if name in read["models"]}
    dataset = load_dataset("cifar10", arguments.data_dir)
    models = dict(before)
    for name in arguments.models:
        found = models[name] = measure(name, dataset, arguments.images, before.get(name, {}))
        print(
            f"{name:24} {found['other_scores']} of {found['images']:,} other scores  int8 "
            f"{100 * found['top1_int8']:.2f} %  fp32 {100 * found['top1_fp32']:.2f} %"
            f"{'  (measured before)' if found is before.get(name) else ''}",
            flush=True,
        )
        figures["models"] = {name: models[name] for name in names if name in models}
        report(figures, argparse.Namespace(output=arguments.output, json=False))
    report(figures, arguments)


if __name__ == "__main__":
    main()
