"""Measure how fast augmentation is: images/s of the batched pipeline and of Albumentations.

    python benchmarks/augmentation.py --json

- batched: sprat's pipeline on whole batches, in torch.
- albumentations: the same pipeline through Albumentations, image by image, as
  `--augment.engine albumentations` runs it in each worker. Needs sprat[albumentations].
- step: a training step of the recipe `reference` on all threads, and how much of it is
  augmentation and mixing.

The first two run on one thread, from uint8 to normalised floats: first the whole pipeline with the
probabilities of the recipe `reference`, then each transform alone on every image, from uint8 to
uint8. Contenders take turns, each in its own process; each figure is the median of the turns. The
images are noise. This takes about three minutes.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable

import torch
from side_by_side import Contender, Figures, noise, parser_for, report, take_turns
from steps import NoiseSteps
from torch import Tensor

from sprat.augment.mixing import MIXERS
from sprat.augment.pipeline import AugmentConfig
from sprat.augment.reference import AlbumentationsPipeline
from sprat.augment.transforms import normalize
from sprat.runtime import describe_machine, keep_freed_memory, set_threads, versions
from sprat.settings.recipes import load_recipe

NOTHING = AugmentConfig(crop=0, flip=0)
TRANSFORMS = ("flip", "affine", "brightness_contrast", "hue_saturation_value", "coarse_dropout")
MEAN, STD = torch.tensor((0.4914, 0.4822, 0.4465)), torch.tensor((0.2470, 0.2435, 0.2616))


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median time of so many calls, after a few to warm up."""
    for _ in range(3):
        call()
    took = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1e3 * statistics.median(took)


def engine(
    augment: Callable[[AugmentConfig], Callable[[Tensor], Tensor]], arguments: argparse.Namespace
) -> Figures:
    """Return images/s of the whole pipeline and of each transform, on one thread."""
    set_threads(1)
    keep_freed_memory()
    images = noise(arguments.batch_size).train.images
    whole = augment(load_recipe("reference").augment)
    calls = {"whole": lambda: normalize(whole(images), MEAN, STD)}
    for name in TRANSFORMS:
        alone = augment(dataclasses.replace(NOTHING, **{name: 1.0}))
        calls[name] = lambda alone=alone: alone(images)  # type: ignore[misc]
    return {
        name: 1e3 * arguments.batch_size / milliseconds(call, arguments.repeats)
        for name, call in calls.items()
    }


def batched(arguments: argparse.Namespace) -> Figures:
    generator = torch.Generator().manual_seed(0)
    return engine(lambda pipeline: lambda images: pipeline(images, generator), arguments)


def albumentations(arguments: argparse.Namespace) -> Figures:
    def augment(pipeline: AugmentConfig) -> Callable[[Tensor], Tensor]:
        through = AlbumentationsPipeline(pipeline)
        return lambda images: through(images, 0)

    return engine(augment, arguments)


def step(arguments: argparse.Namespace) -> Figures:
    """Return milliseconds of a step, of its augmentation and of each mixer."""
    config = dataclasses.replace(
        load_recipe("reference"), batch_size=arguments.batch_size, threads=arguments.threads,
        device="cpu",
    )  # fmt: skip
    steps = NoiseSteps(config, 10 * arguments.batch_size)
    step, (images, labels) = steps.step, steps.batch()
    augmented = step.pipeline(images, step.generator)
    targets = torch.nn.functional.one_hot(labels, 10).float()
    figures = {
        "step": milliseconds(steps, arguments.repeats),
        "augmentation": milliseconds(
            lambda: step.pipeline(images, step.generator), arguments.repeats
        ),
    }
    for name, mixer in MIXERS.items():
        figures[name] = milliseconds(
            lambda mixer=mixer: mixer(augmented, targets, generator=step.generator),  # type: ignore[misc]
            arguments.repeats,
        )
    return figures


def main() -> None:
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--batch-size", type=int, default=128, help="images per batch")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per turn")
    arguments = parser.parse_args()
    contenders: dict[str, Contender] = {
        "batched": batched,
        "albumentations": albumentations,
        "step": step,
    }
    measured = take_turns(contenders, arguments)
    threads = set_threads(arguments.threads)
    ours, theirs, parts = (measured[name] for name in contenders)
    probabilities = load_recipe("reference").mixing.probabilities
    mixing = sum(p * parts[name] for name, p in probabilities.items())
    figures = {
        "images_per_s": ours["whole"],
        "ratio_to_albumentations": ours["whole"] / theirs["whole"],
        "ratio_by_transform": {name: ours[name] / theirs[name] for name in TRANSFORMS},
        "augmentation_share_of_step": parts["augmentation"] / parts["step"],
        "mixing_share_of_step": mixing / parts["step"],
        "batch_size": arguments.batch_size,
        "measured": measured,
        "machine": describe_machine(torch.device("cpu"), "auto", threads),
        "versions": versions(),
    }
    for name in ("whole", *TRANSFORMS):
        ratio = ours[name] / theirs[name]
        print(f"{name:20} {ours[name]:9,.0f} images/s   {ratio:5.1f} x Albumentations")
    print(
        f"of a step of {parts['step']:.1f} ms on {threads} threads, augmentation is "
        f"{figures['augmentation_share_of_step']:.1%} and mixing "
        f"{figures['mixing_share_of_step']:.1%}"
    )
    report(figures, arguments)


if __name__ == "__main__":
    main()
