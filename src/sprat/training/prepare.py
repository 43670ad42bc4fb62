"""Checks and decisions before a run: what "auto" means on this machine, whether the data fits."""

import dataclasses
from typing import Literal

import torch
from torch import nn

from sprat import distributed
from sprat.augment.reference import require_albumentations
from sprat.augment.views import find_views
from sprat.budget import check_limits, summarize
from sprat.checkpoint import wrong_metadata
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.kernels import NoKernels, prepare, why_not
from sprat.kernels.support import check_momenta
from sprat.models import check_outputs, draft_network, to_record
from sprat.models.code import is_own
from sprat.runtime import choose_device, choose_precision, set_threads
from sprat.settings.config import Config
from sprat.training.observer import Observer
from sprat.zoo import locate


def check(config: Config, num_classes: int = 10, channels: int = 3) -> nn.Module:
    """Check everything that does not need data; return the config's network for that many classes
    and channels, for inspection only.

    Raises:
        SpratError: the machine lacks what the config needs, or there is no such network, teacher or
            set of views.
    """
    network = draft_network(config.network, num_classes, channels)
    for name in config.distill.teacher:
        locate(name)
    find_views(config.tta)
    choose_precision(config.precision, choose_device(config.device))
    if config.augment.engine == "albumentations":
        require_albumentations()
    return network


def settle(
    config: Config,
    observer: Observer = Observer(),  # noqa: B008
    network: nn.Module | None = None,
) -> Config:
    """Return the config with "auto" and 0 threads replaced by what they mean on this machine.

    Compiled kernels are built here if necessary, which `observer` is notified of.

    Args:
        network: the result of `check`; without it the config is checked here.

    Raises:
        SpratError: as `check`, or the machine cannot do what the config asks for.
    """
    if network is None:
        network = check(config)
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    if device.type == "cpu" and precision == "bf16" and _has_gapped_windows(network):
        if config.precision == "bf16":
            raise SpratError(
                "precision is 'bf16', but torch computes wrong bf16 gradients for "
                f"{config.model}'s dilated depthwise convolutions on CPUs. Use --precision fp32."
            )
        precision = "fp32"
    config = dataclasses.replace(
        config,
        network=to_record(config.network),
        device=device.type,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        threads=set_threads(config.threads),
    )
    if config.kernels == "auto":
        ways: tuple[Literal["compiled", "graph", "torch"], ...] = ("compiled", "graph", "torch")
        possible = (way for way in ways if not why_not_kernels(config, way, network, observer))
        return dataclasses.replace(config, kernels=next(possible))
    check_kernels(config, network, observer)
    return config


def check_fit(config: Config, network: nn.Module, dataset: Dataset) -> None:
    """Check that a config fits the data to train on.

    Args:
        network: the result of `check` for the data's number of classes and channels.

    Raises:
        SpratError: it does not, or a model file could not describe the data.
    """
    side, classes = dataset.train.images.shape[-1], dataset.train.classes
    normalization = {"mean": dataset.normalization.mean, "std": dataset.normalization.std}
    wrong = wrong_metadata({"classes": classes, "side": side} | normalization)
    if wrong:
        raise SpratError(f"{dataset.name} cannot be trained on: {wrong}. Change the dataset.")
    if is_own(config.model):
        check_outputs(network, len(classes), side, dataset.channels)
    _check_budget(config, network, side)
    if config.augment.crop >= side:
        raise SpratError(
            f"augment.crop is {config.augment.crop}, but the images are only {side} px wide. Give "
            "a smaller number."
        )


def _check_budget(config: Config, network: nn.Module, side: int) -> None:
    if not any(config.budget.limits.values()):
        return
    summary = summarize(network, side=side)
    verdicts = check_limits(config.budget.limits, summary, config.budget.stored_as)
    broken = [f"{v.metric} {v.achieved}, limit {v.target}" for v in verdicts if not v.kept]
    if broken:
        raise SpratError(
            f"{summary.model} does not fit the budget: {'; '.join(broken)}. Choose another "
            "--model, or change the recipe's [budget]."
        )


def _has_gapped_windows(network: nn.Module) -> bool:
    """Return whether a network has dilated depthwise convolutions: in torch 2.13, the bf16 gradient
    of their weights on CPUs with channels last reads uninitialised memory."""
    convs = (m for m in network.modules() if isinstance(m, nn.Conv2d))
    return any(conv.groups > 1 and max(conv.dilation) > 1 for conv in convs)


def check_kernels(config: Config, network: nn.Module, observer: Observer) -> None:
    """Check that the steps of a settled config can be computed with its kernels.

    Raises:
        SpratError: they cannot on this machine.
    """
    if reason := why_not_kernels(config, config.kernels, network, observer):
        raise SpratError(
            f"kernels is {config.kernels!r}, but {reason}. Change the network or the settings, or "
            "use --kernels auto."
        )


def why_not_kernels(
    config: Config, kernels: str, network: nn.Module, observer: Observer | None = None
) -> str | None:
    """Return why the steps of a settled config cannot be computed with `kernels`; None if they can.

    With an observer, kernels are compiled if they have not been yet.
    """
    device = torch.device(config.device)
    if kernels == "compiled":
        if config.precision == "fp16":
            return "the compiled kernels keep maps in bf16 or fp32, not in fp16"
        images = distributed.check_batch_size(config.batch_size)
        reason = why_not(network, device, images)
        if reason is None and observer is not None:
            try:
                prepare(device, config.precision == "bf16", observer.preparing)
            except NoKernels as failed:
                return str(failed)
        return reason
    if kernels == "graph" and device.type != "cuda":
        return f"graphs are for CUDA, not {device.type}"
    if kernels == "graph" and config.precision == "fp16":
        return "a graph cannot scale the loss of fp16"
    if kernels == "graph":
        try:
            check_momenta(network)
        except NoKernels as reason:
            return str(reason)
    return None


def why_torch(config: Config) -> str | None:
    """Return why a settled config trains with plain PyTorch; None if it does not."""
    if config.kernels != "torch":
        return None
    return why_not_kernels(config, "compiled", draft_network(config.network)) or "it was asked for"
