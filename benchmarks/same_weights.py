"""Check that this working tree trains to the same weights as another checkout, bit for bit.

    python benchmarks/same_weights.py BEFORE [--data-dir DIR]

Trains three shortened recipes with the code of BEFORE and with this one in turns, each in its own
process, with the compiled kernels and with plain PyTorch. Compares every tensor of the models and
every loss. The exit code is 1 if any of them differs.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from safetensors.torch import load_file

HERE = Path(__file__).parents[1]
SHORT = ("--train-images", "512", "--epochs", "2", "--optim.warmup-epochs", "1", "--tta", "1")
RECIPES = {
    "quick": ("--final",),
    "taught": (
        "--final",
        "--batch-size",
        "64",
        "--distill.teacher",
        "SpratL",
        "--mixing.off-epochs",
        "0.5",
    ),
    "reference": ("--batch-size", "64"),
}


def train(checkout: Path, words: list[str], output: Path) -> None:
    """Train with the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(checkout / "src")}
    command = [sys.executable, "-m", "sprat", "train", *words, "--quiet", "--output", str(output)]
    subprocess.run(command, env=environment, check=True)


def differences(before: Path, now: Path) -> list[str]:
    """Return the names of the tensors and epochs that differ between two runs."""
    tensors = [load_file(run / "model.safetensors") for run in (before, now)]
    if tensors[0].keys() != tensors[1].keys():
        return ["the tensors' names"]
    same = {name: bool((tensors[0][name] == tensors[1][name]).all()) for name in tensors[0]}
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (before, now)]
    losses = [[json.loads(line)["loss"] for line in of_run] for of_run in lines]
    found = [name for name, is_same in same.items() if not is_same]
    return found + (["the losses"] if losses[0] != losses[1] else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("before", type=Path, help="checkout of the commit to compare with")
    parser.add_argument("--data-dir", type=Path, help="folder of CIFAR-10")
    arguments = parser.parse_args()
    data = ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    differing = 0
    for recipe, more in RECIPES.items():
        for kernels in ("compiled", "torch"):
            words = ["--recipe", recipe, "--dataset", "cifar10", "--device", "cpu", *data, *SHORT]
            words += ["--kernels", kernels, *more]
            with tempfile.TemporaryDirectory() as folder:
                runs = Path(folder) / "before", Path(folder) / "now"
                for checkout, run in zip((arguments.before.resolve(), HERE), runs, strict=True):
                    train(checkout, words, run)
                different = differences(*runs)
            differing += bool(different)
            said = f"differ in {', '.join(different[:3])}" if different else "the same, bit for bit"
            print(f"{recipe:10} {kernels:9} {said}", flush=True)
    return min(differing, 1)


if __name__ == "__main__":
    sys.exit(main())
