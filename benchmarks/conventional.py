"""Run conventional training steps to compare with, as their authors would write them.

`eager` is what a careful user of PyTorch writes today. `brief` is the loop that the original
project describes. Both yield after every step, and leave the allocator and everything else at its
defaults.
"""

import os
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.augment.pipeline import horizontal_flip, pad_and_crop
from sprat.augment.transforms import normalize
from sprat.data.imageset import ImageSet
from sprat.models.optimized200k import OptimizedCIFAR10Net200K

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def eager(images: ImageSet, batch_size: int, bf16: bool = True) -> Iterator[float]:
    """Run today's usual loop: bf16 autocast or fp32, channels-last, whole batches, flip, crop."""
    generator = torch.Generator().manual_seed(0)
    mean, std = torch.tensor(MEAN), torch.tensor(STD)
    network = OptimizedCIFAR10Net200K().to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    while True:
        for chosen in torch.randperm(len(images)).split(batch_size):
            if len(chosen) < batch_size:
                continue
            batch = horizontal_flip(images.images[chosen], generator)
            inputs = normalize(pad_and_crop(batch, generator), mean, std)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = F.cross_entropy(network(inputs), images.targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            yield loss.item()


def brief(images: ImageSet, batch_size: int) -> Iterator[float]:
    """Run the original project's loop: Albumentations in workers, random mixing, eager fp32."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    try:
        import albumentations as A
        from albumentations.pytorch import ToTensorV2
    except ImportError as error:
        raise SystemExit(
            "The original project's loop needs Albumentations. Install it with pip install "
            "'sprat[albumentations]', or leave the loop out with --without-brief."
        ) from error
    from torch.utils.data import DataLoader, Dataset

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

    class Augmented(Dataset[tuple[Tensor, int]]):
        def __init__(self) -> None:
            self.images = np.ascontiguousarray(images.images.permute(0, 2, 3, 1).numpy())
            self.labels = images.targets.tolist()

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> tuple[Tensor, int]:
            return pipeline(image=self.images[index])["image"], self.labels[index]

    network = OptimizedCIFAR10Net200K().train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    loader: Any = DataLoader(Augmented(), batch_size, shuffle=True, num_workers=2, drop_last=True)
    while True:
        for batch, labels in loader:
            draw = random.random()
            if draw < 0.3:
                loss = _mixup(network, criterion, batch, labels)
            elif draw < 0.6:
                loss = _cutmix(network, criterion, batch, labels)
            elif draw < 0.8:
                loss = _ricap(network, criterion, batch, labels)
            else:
                loss = criterion(network(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            yield loss.item()


def _mixup(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    lam, other = np.random.beta(1.0, 1.0), torch.randperm(len(images))
    logits = network(lam * images + (1 - lam) * images[other])
    return lam * criterion(logits, labels) + (1 - lam) * criterion(logits, labels[other])


def _cutmix(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    lam, other = np.random.beta(1.0, 1.0), torch.randperm(len(images))
    side, cut = images.shape[2], int(images.shape[2] * (1 - lam) ** 0.5)
    y, x = np.random.randint(side), np.random.randint(side)
    top, bottom = max(y - cut // 2, 0), min(y + cut // 2, side)
    left, right = max(x - cut // 2, 0), min(x + cut // 2, side)
    images[:, :, top:bottom, left:right] = images[other, :, top:bottom, left:right]
    lam = 1 - (bottom - top) * (right - left) / side**2
    logits = network(images)
    return lam * criterion(logits, labels) + (1 - lam) * criterion(logits, labels[other])


def _ricap(network: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
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
