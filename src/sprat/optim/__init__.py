"""Optimizers and their settings.

To add one, add its settings to `OptimConfig`, a function that builds it and a line to `OPTIMIZERS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sprat.deferred import deferred
from sprat.optim.schedules import SCHEDULES
from sprat.settings.field import Table, refused, setting

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    import torch
    from torch import nn
    from torch.optim import Optimizer

    from sprat.optim import muon as muons
else:
    torch, muons = deferred("torch"), deferred("sprat.optim.muon")


def sgd(network: nn.Module, config: OptimConfig) -> Optimizer:
    """Return SGD with momentum."""
    groups = groups_of(network, config, _sgd_remembers(config))
    return torch.optim.SGD(groups, **_sgd_settings(network, config))


def muon(network: nn.Module, config: OptimConfig) -> Optimizer:
    """Return Muon for the 1x1 convolutions, without weight decay, and SGD for the rest."""
    parameters = list(network.parameters())
    pointwise = {p for p in parameters if p.ndim == 4 and p.shape[2:] == (1, 1)}
    groups = groups_of(network, config, _sgd_remembers(config), without=pointwise)
    if pointwise:
        groups.append({
            "params": [p for p in parameters if p in pointwise],
            "lr": config.muon_lr,
            "weight_decay": 0.0,
            "momentum": 0.0,
            "nesterov": False,
            "muon_momentum": config.momentum,
            "remembered": ("muon_average",),
        })  # fmt: skip
    return muons.Muon(groups, **_sgd_settings(network, config))


OPTIMIZERS: dict[str, Callable[[nn.Module, OptimConfig], Optimizer]] = {"sgd": sgd, "muon": muon}


def groups_of(
    network: nn.Module,
    config: OptimConfig,
    remembered: tuple[str, ...],
    without: Set[nn.Parameter] = frozenset(),
) -> list[dict[str, Any]]:
    """Return the parameters in groups by weight decay.

    Weight decay applies to the weights of convolutions and linear layers, and to BatchNorm
    parameters and biases only if `config.decay_norm_and_bias`.

    Args:
        remembered: names of the state that the optimizer keeps for each parameter.
    """
    parameters = [p for p in network.parameters() if p not in without]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {
            "params": [p for p in parameters if p.ndim <= 1],
            "weight_decay": config.weight_decay * config.decay_norm_and_bias,
        },
    ]
    return [group | {"remembered": remembered} for group in groups if group["params"]]


def _sgd_remembers(config: OptimConfig) -> tuple[str, ...]:
    return ("momentum_buffer",) if config.momentum else ()


def _sgd_settings(network: nn.Module, config: OptimConfig) -> dict[str, Any]:
    devices = {p.device.type for p in network.parameters()}
    return {
        "lr": config.lr,
        "momentum": config.momentum,
        "nesterov": config.nesterov,
        "fused": devices <= {"cpu", "cuda"} or None,
    }


@dataclass(frozen=True, kw_only=True)
class OptimConfig(Table, name="optim"):
    """The optimizer and its learning rate over a run."""

    name: str = setting(
        "sgd",
        "Optimizer; muon orthogonalises the steps of 1x1 convolutions and uses sgd elsewhere",
        choices=OPTIMIZERS,
    )
    muon_lr: float = setting(0.02, "Peak learning rate of the parameters that Muon trains", above=0)
    lr: float = setting(0.25, "Peak learning rate; adjust it together with the batch size", above=0)
    momentum: float = setting(
        0.9, "Momentum: fraction of the previous step's direction to keep", at_least=0, below=1
    )
    nesterov: bool = setting(True, "Use Nesterov momentum")
    weight_decay: float = setting(5e-4, "Weight decay (L2 penalty)", at_least=0)
    decay_norm_and_bias: bool = setting(
        False, "Apply weight decay to BatchNorm parameters and biases too"
    )
    warmup_epochs: float = setting(
        2.0, "Epochs of linear warm-up to the peak learning rate; may be a fraction", at_least=0
    )
    schedule: str = setting(
        "cosine", "Shape of the learning rate's decay after the warm-up", choices=SCHEDULES
    )
    max_norm: float = setting(
        0.0, "Gradient norm above which gradients are clipped", at_least=0, zero="no clipping"
    )

    def check_together(self) -> None:
        if self.nesterov and not self.momentum:
            raise refused(
                "optim.nesterov",
                True,
                "false, since optim.momentum is 0",
                "Set optim.nesterov to false, or optim.momentum above 0.",
            )


def build_optimizer(network: nn.Module, config: OptimConfig) -> Optimizer:
    """Return the optimizer that `config` names, for the parameters of `network`.

    Each group has its peak learning rate in "peak_lr", for a schedule to scale, and in "remembered"
    the names of the state that the optimizer keeps for each parameter.
    """
    optimizer = OPTIMIZERS[config.name](network, config)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def restore_state(optimizer: Optimizer, saved: dict[Any, Any]) -> None:
    """Restore `optimizer.state_dict()["state"]`; the optimizer keeps the settings it was built
    with.

    Raises:
        ValueError: it does not fit the parameters.
    """
    current = optimizer.state_dict()["param_groups"]
    for group, numbers in zip(optimizer.param_groups, current, strict=True):
        for parameter, number in zip(group["params"], numbers["params"], strict=True):
            kept = {name: v for name, v in saved.get(number, {}).items() if v is not None}
            fits = kept.keys() == set(group["remembered"]) and all(
                value.shape == (() if name == "step" else parameter.shape)
                for name, value in kept.items()
            )
            if saved and not fits:  # there is no state before the first step
                raise ValueError(f"the optimizer's state does not fit parameter {number}")
    if len(saved) > sum(len(group["params"]) for group in current):
        raise ValueError("the optimizer's state has more parameters")
    optimizer.load_state_dict({"state": saved, "param_groups": current})
