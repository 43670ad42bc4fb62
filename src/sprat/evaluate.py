"""Judges a network: accuracy with its interval, per class, confusion, calibration."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sprat.augment.transforms import normalize
from sprat.augment.views import SINGLE, WITH_FLIP, View
from sprat.data.imageset import ImageSet, Normalization

Progress = Callable[[int], None]

BATCH = 250  # images; activations of the brief's network then take about 20 MB a layer


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module,
    images: Tensor,
    normalization: Normalization,
    views: Sequence[View] = SINGLE,
    progress: Progress = lambda done: None,
) -> Tensor:
    """Class probabilities N x K, float32, on the CPU: the mean over `views`.

    Args:
        network: put into eval mode for the time it takes, its mode then restored.
        images: uint8, N x 3 x H x W, on any device.
        progress: is told the number of images done, batch by batch.

    Computed in float32 whatever the training was done in, so that a figure does not depend on
    the hardware's short formats.
    """
    device = next(network.parameters()).device
    mean, std = (torch.tensor(v, device=device) for v in (normalization.mean, normalization.std))
    was_training = network.training
    network.eval()
    parts = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        for batch in images.split(BATCH):
            batch = batch.to(device, non_blocking=True)
            logits = [network(normalize(view(batch), mean, std)) for view in views]
            parts.append(torch.stack([x.float().softmax(1) for x in logits]).mean(0))
            progress(len(batch))
    network.train(was_training)
    return torch.cat(parts).cpu()


def top1(probabilities: Tensor, targets: Tensor) -> float:
    """Share of images whose most probable class is the target."""
    hits = probabilities.argmax(1) == targets.to(probabilities.device)
    return hits.sum().item() / len(hits)


def judge(
    network: nn.Module,
    dataset: ImageSet,
    normalization: Normalization,
    progress: Progress = lambda done: None,
) -> dict[str, Any]:
    """Everything a result says of one set of images; plain values for JSON, fractions.

    `top1` is the single view; `tta_top1` the mean of it and its mirror image. `progress` is
    told the number of images done; each counts twice, once for either view.
    """
    single, mirrored = (
        predict_probabilities(network, dataset.images, normalization, (view,), progress)
        for view in WITH_FLIP
    )
    with_flip = (single + mirrored) / 2
    targets, classes = dataset.targets.cpu(), len(dataset.classes)
    predictions = single.argmax(1)
    confusion = torch.bincount(targets * classes + predictions, minlength=classes**2)
    confusion = confusion.view(classes, classes)  # row: the truth, column: the prediction
    per_class = confusion.diag().double() / confusion.sum(1).clamp_min(1)
    hits = int(confusion.diag().sum())
    return {
        "top1": hits / len(dataset),
        "top1_ci95": list(wilson_interval(hits, len(dataset))),
        "tta_top1": top1(with_flip, targets),
        "n": len(dataset),
        "per_class": dict(zip(dataset.classes, per_class.tolist(), strict=True)),
        "confusion": confusion.tolist(),
        "ece": expected_calibration_error(single, targets),
    }


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927): sampling of the test images alone, not
    the spread over seeds."""
    z = 1.959964  # 97.5 % quantile of the normal distribution
    share, denominator = hits / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence (Guo et al. 2017,
    arXiv 1706.04599). 0 is perfect.

    Args:
        probabilities: N x K. targets: int64, N.
    """
    confidence, predictions = probabilities.double().max(1)
    hits = (predictions == targets).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.double, device=index.device)
    gaps.index_add_(0, index, confidence - hits)
    return (gaps.abs().sum() / len(targets)).item()
