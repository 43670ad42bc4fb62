"""What a network costs and sees."""

import copy

import torch
from torch import Tensor, nn


def count_parameters(network: nn.Module) -> int:
    """Trainable numbers: weights, biases and BatchNorm's scale and shift; buffers not."""
    return sum(p.numel() for p in network.parameters())


def receptive_field(network: nn.Module, side: int = 256) -> int:
    """Side, in pixels, of the square of input that one value before global pooling depends on.

    Measured, not derived: every weight of a float64 copy is made positive, so that nothing
    cancels, and the gradient of one central value is traced back to the image.

    Args:
        network: has a method `features` that maps images to the map before pooling.
        side: of the probing image; more than twice the receptive field.
    """
    probe = copy.deepcopy(network).cpu().double().eval()  # a GPU of Apple has no float64
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.fill_(1 / max(1, parameter[0].numel() if parameter.ndim > 1 else 1))
    images = torch.ones(1, 3, side, side, dtype=torch.double, requires_grad=True)
    features: Tensor = probe.features(images)  # type: ignore[operator]
    height, width = features.shape[2:]
    features[0, :, height // 2, width // 2].sum().backward()
    assert images.grad is not None
    return int(images.grad.abs().sum(dim=(0, 1, 3)).count_nonzero())
