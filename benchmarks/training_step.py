"""How fast is a training step? Images/s of sprat's beside two conventional ones.

    python benchmarks/training_step.py --json

- sprat: the step of `sprat train` in bf16, flip and crop included.
- eager-bf16: the same network, batch and augmentation in eager PyTorch, bf16 autocast,
  channels-last, with PyTorch's and the allocator's defaults.
- brief: the loop that the project's brief describes: a DataLoader with workers, Albumentations
  image by image, MixUp, CutMix or RICAP by lot, eager fp32. Needs sprat[reference].

Each runs in its own process, in turns; the figure is the median turn. The ceiling is the best
rate of a large bf16 matrix product through torch on the same threads. Figures of pictures do not
enter: the images are noise. Takes about five minutes on two cores.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from side_by_side import Contender, Figures, parser_for, report, take_turns
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sprat.augment.transforms import horizontal_flip, normalize, pad_and_crop
from sprat.config import Config
from sprat.data import Dataset
from sprat.data.imageset import ImageSet, Normalization
from sprat.models import OptimizedCIFAR10Net200K
from sprat.runtime import describe_machine, set_threads, versions
from sprat.train import Training, settle

IMAGES = 10_000
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def noise() -> ImageSet:
    """Images and labels of CIFAR-10's shape."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (IMAGES, 3, 32, 32), generator=generator, dtype=torch.uint8)
    targets = torch.randint(10, (IMAGES,), generator=generator)
    return ImageSet(images, targets, tuple("0123456789"))


def rate(step: Callable[[], Any], arguments: argparse.Namespace) -> Figures:
    """Images/s of `step` once it is warm."""
    for _ in range(arguments.warmup):
        step()
    began = time.perf_counter()
    for _ in range(arguments.steps):
        step()
    seconds = (time.perf_counter() - began) / arguments.steps
    return {"images_per_s": arguments.batch_size / seconds, "ms_per_step": 1e3 * seconds}


def sprat_step(arguments: argparse.Namespace) -> Figures:
    images = noise()
    dataset = Dataset("noise", images, images, Normalization(MEAN, STD), "")
    config = Config(
        batch_size=arguments.batch_size,
        threads=arguments.threads,
        final=True,
        precision="bf16",
        device="cpu",
        dropout=0.2,
    )
    training = Training(settle(config, dataset), dataset, Path())
    training.network.train()
    batches = training.batches.epoch(0)

    def step() -> None:
        nonlocal batches
        batch = next(batches, None)
        if batch is None:
            batches = training.batches.epoch(0)
            batch = next(batches)
        training.training_step(*batch).item()

    return rate(step, arguments)


def eager_bf16_step(arguments: argparse.Namespace) -> Figures:
    set_threads(arguments.threads)
    dataset, generator = noise(), torch.Generator()
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    network = OptimizedCIFAR10Net200K().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )

    def step() -> None:
        chosen = torch.randint(IMAGES, (arguments.batch_size,))
        images = horizontal_flip(dataset.images[chosen], generator)
        inputs = normalize(pad_and_crop(images, generator), mean, std)
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(network(inputs), dataset.targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    return rate(step, arguments)


def brief_step(arguments: argparse.Namespace) -> Figures:
    import os

    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2
    except ImportError as error:
        raise SystemExit(
            "the brief's loop needs Albumentations: pip install 'sprat[reference]', or leave it "
            "out with --without-brief"
        ) from error

    from torch.utils.data import DataLoader
    from torch.utils.data import Dataset as TorchDataset

    set_threads(arguments.threads)
    pipeline = A.Compose([
        A.HorizontalFlip(p=0.5),
        A.ShiftScaleRotate(shift_limit=0.1, scale_limit=0.1, rotate_limit=15, p=0.5),
        A.RandomBrightnessContrast(brightness_limit=0.2, contrast_limit=0.2, p=0.5),
        A.HueSaturationValue(
            hue_shift_limit=20, sat_shift_limit=30, val_shift_limit=20, p=0.5
        ),
        A.CoarseDropout(
            num_holes_range=(1, 1), hole_height_range=(4, 8), hole_width_range=(4, 8), p=0.3
        ),
        A.Normalize(mean=MEAN, std=(0.2023, 0.1994, 0.2010)),
        ToTensorV2(),
    ])  # fmt: skip

    class Augmented(TorchDataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            images = noise()
            self.images = np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy())
            self.labels = images.targets.tolist()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return pipeline(image=self.images[index])["image"], self.labels[index]

    network = OptimizedCIFAR10Net200K().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    loader = DataLoader(
        Augmented(), arguments.batch_size, shuffle=True, num_workers=2, drop_last=True
    )

    def forever() -> Any:
        while True:
            yield from loader

    batches = forever()

    def step() -> None:
        images, labels = next(batches)
        draw = random.random()
        if draw < 0.3:
            loss = mixup(network, criterion, images, labels)
        elif draw < 0.6:
            loss = cutmix(network, criterion, images, labels)
        elif draw < 0.8:
            loss = ricap(network, criterion, images, labels)
        else:
            loss = criterion(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        loss.item()

    return rate(step, arguments)


def mixup(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    lam, other = np.random.beta(1.0, 1.0), torch.randperm(len(images))
    logits = network(lam * images + (1 - lam) * images[other])
    return lam * criterion(logits, labels) + (1 - lam) * criterion(logits, labels[other])


def cutmix(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    lam, other = np.random.beta(1.0, 1.0), torch.randperm(len(images))
    side, cut = images.shape[2], int(images.shape[2] * (1 - lam) ** 0.5)
    y, x = np.random.randint(side), np.random.randint(side)
    top, bottom = max(y - cut // 2, 0), min(y + cut // 2, side)
    left, right = max(x - cut // 2, 0), min(x + cut // 2, side)
    images[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / side**2
    logits = network(images)
    return lam * criterion(logits, labels) + (1 - lam) * criterion(logits, labels[other])


def ricap(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    side = images.shape[2]
    w, h = (round(side * np.random.beta(0.3, 0.3)) for _ in range(2))
    widths, heights = (w, side - w, w, side - w), (h, h, side - h, side - h)
    parts, targets, shares = [], [], []
    for width, height in zip(widths, heights, strict=True):
        other = torch.randperm(len(images))
        x, y = np.random.randint(side - width + 1), np.random.randint(side - height + 1)
        parts.append(images[other][:, :, y : y + height, x : x + width])
        targets.append(labels[other])
        shares.append(width * height / side**2)
    top, bottom = torch.cat(parts[:2], 3), torch.cat(parts[2:], 3)
    logits = network(torch.cat((top, bottom), 2))
    losses = (share * criterion(logits, t) for share, t in zip(shares, targets, strict=True))
    return sum(losses, torch.zeros(()))


def ceiling(arguments: argparse.Namespace) -> Figures:
    """GFLOP/s of a large product, the best of many."""
    set_threads(arguments.threads)
    n, figures = 2048, {}
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
    """Floating-point operations of convolutions and products, forward and backward."""
    network, images = OptimizedCIFAR10Net200K(), torch.randn(2, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images).sum().backward()
    return counter.get_total_flops() // 2


def main() -> None:
    parser = parser_for(__doc__, rounds=5)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of a turn")
    parser.add_argument("--without-brief", action="store_true")
    arguments = parser.parse_args()
    contenders: dict[str, Contender] = {"sprat": sprat_step, "eager-bf16": eager_bf16_step}
    if not arguments.without_brief:
        contenders["brief"] = brief_step
    measured = take_turns(contenders | {"ceiling": ceiling}, arguments)

    rates = {name: measured[name]["images_per_s"] for name in contenders}
    gflops = flops_per_image() * rates["sprat"] / 1e9
    figures = {
        "images_per_s": rates["sprat"],
        "ratio_to_eager_bf16": rates["sprat"] / rates["eager-bf16"],
        "ratio_to_brief": rates["sprat"] / rates["brief"] if "brief" in rates else None,
        "gflops": gflops,
        "share_of_bf16_ceiling": gflops / measured["ceiling"]["bf16_gflops"],
        "share_of_fp32_ceiling": gflops / measured["ceiling"]["fp32_gflops"],
        "batch_size": arguments.batch_size,
        "measured": measured,
        "machine": describe_machine(torch.device("cpu"), "bf16", set_threads(arguments.threads)),
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
