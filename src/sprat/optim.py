"""The optimizer: SGD over two groups of parameters, the decayed and the others."""

from torch import nn
from torch.optim import SGD

from sprat.config import OptimConfig


def build_sgd(network: nn.Module, config: OptimConfig, fused: bool = False) -> SGD:
    """SGD with momentum over `network`'s parameters.

    Weight decay falls on convolution and linear weights; on BatchNorm's parameters and on
    biases only where `config.decay_norm_and_bias` says so. `fused` takes the one-kernel
    implementation.
    """
    weights = [p for p in network.parameters() if p.ndim > 1]
    norms_and_biases = [p for p in network.parameters() if p.ndim <= 1]
    decay = config.weight_decay
    groups = [
        {"params": weights, "weight_decay": decay},
        {"params": norms_and_biases, "weight_decay": decay * config.decay_norm_and_bias},
    ]
    return SGD(
        [group for group in groups if group["params"]],
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        fused=fused or None,
    )
