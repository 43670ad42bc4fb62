"""Find out which BatchNorm statistics fit averaged weights, along one training run.

    python benchmarks/ema_batchnorm.py --run runs/ema --output ema_batchnorm.json

Trains OptimizedCIFAR10Net200K for 16 epochs in batches of 128 on 45,000 images of CIFAR-10 (val is
held out; the test set is not read) and averages the weights with each decay, with and without a
warm-up of the decay. After several epochs, each average is evaluated on val three times: with
buffers averaged like the weights, with statistics estimated again from 5,000 unchanged training
images, and from as many augmented ones. The paired standard error is that of the difference to the
raw weights on the same images. This takes a tenth longer than the training run alone.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sprat.augment.pipeline import horizontal_flip, pad_and_crop
from sprat.augment.transforms import normalize
from sprat.data import load_dataset
from sprat.evaluation.evaluate import predict_probabilities
from sprat.evaluation.records import write_json
from sprat.runtime import describe_machine, versions
from sprat.settings.config import Config, EMAConfig, OptimConfig
from sprat.training.ema import EMA, reestimate_batchnorm
from sprat.training.images import BATCHNORM_BATCH
from sprat.training.observer import Observer
from sprat.training.run import Run
from sprat.training.start import train

CONFIG = Config(
    dataset="cifar10",
    dropout=0.0,
    epochs=16,
    batch_size=128,
    label_smoothing=0.05,
    optim=OptimConfig(lr=0.25, weight_decay=5e-4, warmup_epochs=3, schedule="linear"),
    ema=EMAConfig(decay=0.995),
)
POINTS = (1, 2, 4, 8, 12, 14)  # epochs that are evaluated, besides the last


class Averages(Observer):
    """Several averages that follow a run, each evaluated in three ways."""

    def __init__(self, decays: list[float], output: Path) -> None:
        self.decays, self.output = decays, output
        self.rows: list[dict[str, Any]] = []

    def started(self, training: Run) -> None:
        self.averages = {
            (decay, warm): EMA(training.step.network, decay)
            for decay in self.decays
            for warm in (True, False)
        }
        buffers = dict(training.step.network.named_buffers())
        self.buffers = {
            key: {name: b.clone().float() for name, b in buffers.items()} for key in self.averages
        }

    @torch.no_grad()
    def stepped(self, training: Run) -> None:
        step = training.steps_taken - 1
        for (decay, warm), average in self.averages.items():
            average.update(step if warm else 10**9)
            share = min(decay, (1 + step) / (10 + step)) if warm else decay
            for name, buffer in training.step.network.named_buffers():
                self.buffers[decay, warm][name].lerp_(buffer.float(), 1 - share)

    def epoch_ended(self, training: Run, row: dict[str, Any]) -> None:
        if row["epoch"] not in POINTS and not training.finished:
            return
        raw = self._hits(training, training.step.network)
        print(f"epoch {row['epoch']}  loss {row['loss']:.4f}  raw {raw.mean():.4f}", flush=True)
        for (decay, warm), average in self.averages.items():
            scores = {}
            average.network.load_state_dict(
                {
                    k: v.to(training.step.network.state_dict()[k].dtype)
                    for k, v in self.buffers[decay, warm].items()
                },
                strict=False,
            )
            scores["averaged"] = self._hits(training, average.network)
            for way in ("plain", "augmented"):
                reestimate_batchnorm(average.network, self._batches(training, way))
                scores[way] = self._hits(training, average.network)
            for way, hits in scores.items():
                difference = hits - raw
                error = difference.std().item() / math.sqrt(len(hits))
                self.rows.append({
                    "epoch": row["epoch"], "decay": decay, "warmup": warm, "statistics": way,
                    "raw_top1": raw.mean().item(), "top1": hits.mean().item(),
                    "difference": difference.mean().item(), "paired_standard_error": error,
                })  # fmt: skip
                print(
                    f"   {decay} warm={warm!s:5} {way:9} {hits.mean():.4f}  "
                    f"{difference.mean():+.4f} ± {error:.4f}",
                    flush=True,
                )
        machine = describe_machine(
            torch.device(training.config.device),
            training.config.precision,
            training.config.threads,
        )
        write_json(
            self.output,
            {
                "config": training.config.to_dict(),
                "dataset_md5": training.dataset.md5,
                "val_images": len(training.images.val),
                "machine": machine,
                "versions": versions(),
                "rows": self.rows,
            },
        )

    def _hits(self, training: Run, network: nn.Module) -> Tensor:
        val, normalization = training.images.val, training.dataset.normalization
        assert val is not None
        predictions = predict_probabilities(network, val.images, normalization).argmax(1)
        return (predictions == val.targets.cpu()).double()

    def _batches(self, training: Run, way: str) -> list[Tensor]:
        images = training.images.batchnorm
        if way == "augmented":
            generator = torch.Generator(training.config.device).manual_seed(0)
            images = horizontal_flip(images, generator)
            images = pad_and_crop(images, generator, training.config.augment.crop)
        mean, std = training.step.mean, training.step.std
        return [normalize(b, mean, std) for b in images.split(BATCHNORM_BATCH)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, help="new folder for the run")
    parser.add_argument("--output", type=Path, required=True, help="JSON file for the figures")
    parser.add_argument("--dataset", default="cifar10", help="name of a dataset")
    parser.add_argument(
        "--decays", type=float, nargs="+", default=[0.99, 0.999], help="decays of the averages"
    )
    arguments = parser.parse_args()
    observer = Averages(arguments.decays, arguments.output)
    dataset = load_dataset(arguments.dataset)
    results = train(CONFIG, dataset, arguments.run, recipe="ema_batchnorm", observer=observer)
    print(json.dumps({"val_top1": results["val"]["top1"], "seconds": results["seconds"]}))


if __name__ == "__main__":
    main()
