"""Evaluation of a network: accuracy with its interval, by class, confusion, calibration."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sprat.augment.transforms import normalize
from sprat.augment.views import SINGLE, Views, find_views
from sprat.data.imageset import Images, ImageSet, Normalization
from sprat.errors import Diverged
from sprat.evaluation.records import Evaluation
from sprat.inference import FrozenNetwork, frozen

Progress = Callable[[int], None]

BATCH = 250  # images; activations of OptimizedCIFAR10Net200K then take about 20 MB per layer


@torch.inference_mode()
def predict_probabilities(
    network: nn.Module | FrozenNetwork,
    images: Images,
    normalization: Normalization,
    views: Views = SINGLE,
    progress: Progress = lambda done: None,
) -> Tensor:
    """Return class probabilities, N x K, float32, on the CPU: the weighted mean over `views`.

    Always computed in float32, so that results do not depend on the precision of the hardware.

    Args:
        network: put into eval mode meanwhile; or frozen by the caller, for several calls.
        images: uint8, N x C x H x W, on any device.
        progress: called with the number of images just done, for each batch and view.

    Raises:
        SpratError: an output is infinite or not a number.
    """
    parts = []
    with frozen(network) as forward, torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        forward.expect(len(images) * len(views))
        device, values = forward.device, (normalization.mean, normalization.std)
        mean, std = (torch.tensor(each, device=device) for each in values)
        for batch in images.split(BATCH):
            batch = batch.to(device, non_blocking=True)
            mean_probabilities = torch.zeros((), device=device)
            for view, weight in views:
                logits = forward(normalize(view(batch), mean, std))
                check_finite(logits)
                mean_probabilities = mean_probabilities + weight * logits.float().softmax(1)
                progress(len(batch))
            parts.append(mean_probabilities)
    return torch.cat(parts).cpu()


def check_finite(logits: Tensor) -> None:
    """Check that a network's outputs are finite; finite weights can overflow on some image.

    Raises:
        Diverged: one is infinite or not a number.
    """
    if not logits.isfinite().all():
        raise Diverged(
            "The network's output is infinite or not a number, so its weights are damaged or its "
            "training diverged. Use another model, or train it again."
        )


def top1(probabilities: Tensor, targets: Tensor) -> float:
    """Return the fraction of images whose most probable class is the target."""
    hits = probabilities.argmax(1) == targets.to(probabilities.device)
    return hits.sum().item() / len(hits)


def evaluate(
    network: nn.Module,
    dataset: ImageSet,
    normalization: Normalization,
    tta: int = 2,
    progress: Progress = lambda done: None,
) -> Evaluation:
    """Evaluate a network on images, with a single view of each and with the mean of `tta` views.

    Arguments and errors are those of `predict_views`.
    """
    single, averaged = predict_views(network, dataset.images, normalization, tta, progress)
    return score(single, averaged, dataset.targets.cpu(), dataset.classes, tta)


def predict_views(
    network: nn.Module,
    images: Images,
    normalization: Normalization,
    tta: int,
    progress: Progress = lambda done: None,
) -> tuple[Tensor, Tensor]:
    """Return the class probabilities of the single view of each image, and their mean over `tta`
    views: float32, N x K, on the CPU.

    Args:
        images: uint8, N x C x H x W.
        tta: number of test-time views to average; 1: the single view alone.
        progress: called with the number of images just done; every image counts once per view.

    Raises:
        SpratError: there is no such set of views, or an output is infinite or not a number.
    """
    (_, own_weight), *others = find_views(tta)
    with frozen(network) as forward:

        def predict(views: Views) -> Tensor:
            return predict_probabilities(forward, images, normalization, views, progress)

        single = predict(SINGLE)
        return single, own_weight * single + predict(others) if others else single


def score(
    single: Tensor, averaged: Tensor, targets: Tensor, classes: Sequence[str], tta: int
) -> Evaluation:
    """Return the evaluation of class probabilities.

    Args:
        single, averaged: as returned by `predict_views`.
        targets: int64, N.
        tta: number of views in the mean.
    """
    predictions, count = single.argmax(1), len(classes)
    confusion = torch.bincount(targets * count + predictions, minlength=count**2)
    confusion = confusion.view(count, count)  # row: true class, column: predicted class
    counts = confusion.sum(1).tolist()
    per_class = [
        hit / count if count else None
        for hit, count in zip(confusion.diag().tolist(), counts, strict=True)
    ]
    hits = int(confusion.diag().sum())
    return {
        "top1": hits / len(targets),
        "top1_ci95": list(wilson_interval(hits, len(targets))),
        "tta_top1": top1(averaged, targets),
        "tta_views": tta,
        "tta_p": mcnemar(predictions == targets, averaged.argmax(1) == targets),
        "n": len(targets),
        "per_class": dict(zip(classes, per_class, strict=True)),
        "confusion": confusion.tolist(),
        "ece": expected_calibration_error(single, targets),
    }


def wilson_interval(hits: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of a proportion (Wilson 1927).

    It covers the sampling of test images, not the variation between seeds.
    """
    z = 1.959964  # 97.5 % quantile of the normal distribution
    share, denominator = hits / n, 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def mcnemar(hits: Tensor, other_hits: Tensor) -> float:
    """Return the two-sided p-value of McNemar's test (1947), in its exact binomial form, of whether
    two classifiers are equally often right on the same images.

    Args:
        hits, other_hits: bool, N.
    """
    only, other_only = (int((a & ~b).sum()) for a, b in ((hits, other_hits), (other_hits, hits)))
    differing = only + other_only
    tail = sum(math.comb(differing, k) for k in range(min(only, other_only) + 1))
    return min(1.0, 2 * tail / 2**differing)


def expected_calibration_error(probabilities: Tensor, targets: Tensor, bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy over equal bins of confidence (Guo et al.
    2017, arXiv 1706.04599): a fraction, 0 is perfect.

    Args:
        probabilities: N x K. targets: int64, N.
    """
    _, confidence, hits = calibration_bins(probabilities, targets, bins)
    return ((confidence - hits).abs().sum() / len(targets)).item()


def calibration_bins(
    probabilities: Tensor, targets: Tensor, bins: int = 15
) -> tuple[Tensor, Tensor, Tensor]:
    """Count images in equal bins of confidence, which exclude their lower and include their upper
    end.

    Args:
        probabilities: N x K. targets: int64, N.

    Returns:
        Number of images, sum of confidences and number of correct predictions in each bin: float64,
            `bins` values each.
    """
    confidence, predictions = probabilities.double().max(1)
    hits = (predictions == targets).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    counts, sums, hit_counts = (
        torch.zeros(bins, dtype=torch.double, device=index.device).index_add_(0, index, values)
        for values in (torch.ones_like(hits), confidence, hits)
    )
    return counts, sums, hit_counts
