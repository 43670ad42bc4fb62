"""Networks by name, and the settings that make another network of one.

    network = build_network(NetworkConfig(name="SpratNet", widths=(40, 72)), num_classes=10)

A new network is a class in its family's file and a line of `NETWORKS`. Its constructor takes
`num_classes`, `dropout`, `in_channels` and, by the names they have in `NetworkConfig`, the settings
it has. It maps normalised images B x in_channels x H x W of any side from `min_side` up to logits
B x num_classes.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sprat.deferred import deferred
from sprat.errors import SpratError, did_you_mean, plain, shown
from sprat.models import code
from sprat.settings.field import Table, setting

if TYPE_CHECKING:
    import torch
    from torch import nn
else:
    torch, nn = deferred("torch"), deferred("torch.nn")


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(Table, name="network"):
    """Settings of a network where they differ from those that its name stands for."""

    widths: tuple[int, ...] = setting((), "Channels of each stage", at_least=1, at_most=4_096)
    depth: tuple[int, ...] = setting(
        (), "Blocks per stage: one number for all stages, or one for each", at_least=0, at_most=64
    )
    strides: tuple[int, ...] = setting((), "Stride of each stage", at_least=1, at_most=4)
    widening: tuple[float, ...] = setting(
        (),
        "Width inside a block as a multiple of its outer width, for all stages or for each",
        at_least=0.1,
        at_most=16,
    )
    kernels: tuple[int, ...] = setting(
        (),
        "Depthwise window sizes, each for an equal share of the channels; 1 leaves them unchanged",
        at_least=1,
        at_most=31,
        unit="pixels",
    )
    shortcut: tuple[int, ...] = setting(
        (),
        "1: add the input of a block to its output; 0: do not; for all stages or for each",
        at_least=0,
        at_most=1,
    )


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(NetworkSettings, name="network"):
    """The network: a name, and settings where they differ from those that the name stands for."""

    name: str = setting(
        "OptimizedCIFAR10Net200K",
        "Name of a network (case, - and _ make no difference), or a class of your own: "
        "my_nets.py:MyNet",
    )

    @functools.cached_property
    def given(self) -> dict[str, tuple[float, ...]]:
        """The settings that differ from those the name stands for."""
        values = dataclasses.asdict(self)
        return {key: value for key, value in values.items() if key != "name" and value}

    @property
    def title(self) -> str:
        """The name, of a network of the user's own that of its class."""
        return self.name.rpartition(":")[2]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Return the network that `to_dict` described.

        Raises:
            SpratError: a setting is unknown, or does not have such a value.
        """
        if unknown := [key for key in values if key not in cls.settings]:
            raise SpratError(
                f"Unknown network setting {shown(unknown[0])}. Available: "
                f"{', '.join(cls.settings)}. A newer version of sprat may have more."
            )
        return cls(**values)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Return the network that a model, run or result describes, maybe one of an older sprat.

        Raises:
            SpratError: as `from_dict`.
        """
        config = cls.from_dict(values)
        former = FORMER.get(config.name, {})
        return dataclasses.replace(config, **{k: v for k, v in former.items() if not values.get(k)})

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings that are given, as JSON has them."""
        return {"name": self.name} | {key: list(value) for key, value in self.given.items()}

    def __str__(self) -> str:
        """SpratNet (widths 40, 72; depth 3)."""
        settings = (f"{key} {', '.join(map(str, value))}" for key, value in self.given.items())
        return f"{self.title} ({'; '.join(settings)})" if self.given else self.title


# the module of sprat.models that holds each class
NETWORKS = {
    "OptimizedCIFAR10Net200K": "optimized200k",
    "SpratNet": "sprat",
    "SpratT": "sprat",
    "SpratS": "sprat",
    "SpratM": "sprat",
    "SpratL": "sprat",
    "ResNet8": "resnet8",
    "ResNet20": "resnet",
    "ResNet20A": "resnet",
    "WRN16x1": "wideresnet",
    "Tiniest": "tiniest",
    "DenseNetBC40": "densenet",
    "ShuffleNetV2x05": "shufflenetv2",
    "MobileNetV2": "mobilenetv2",
    "ResNet18": "resnet",
}

# settings that a name once stood for: what records that do not say mean by it
FORMER: dict[str, dict[str, Any]] = {"SpratM": {"widths": (48, 84)}}


def find_name(name: str) -> str:
    """Return the network's name as `NETWORKS` spells it; case, "-" and "_" do not matter. A class
    of the user's own keeps the name it was given.

    Raises:
        SpratError: no network has that name; gives the names there are and the nearest.
    """
    if code.is_own(name):
        return name
    by_plain_name = {plain(each): each for each in NETWORKS}
    if plain(name) in by_plain_name:
        return by_plain_name[plain(name)]
    raise SpratError(
        f"Unknown network {shown(name)}{did_you_mean(name, NETWORKS) or '.'} Available: "
        f"{', '.join(NETWORKS)}, or a class of your own as my_nets.py:MyNet."
    )


def find_class(name: str) -> Callable[..., nn.Module]:
    """Return the class that a name stands for; of the user's own, from the code in use, it may be a
    function that makes a network too.

    Raises:
        SpratError: there is none, or it is in a file that the user did not name.
    """
    if code.is_own(name):
        return code.find(name)
    name = find_name(name)
    cls: Callable[..., nn.Module] = getattr(import_module(f"sprat.models.{NETWORKS[name]}"), name)
    return cls


def to_record(network: NetworkConfig) -> NetworkConfig:
    """Return the same network for a record: its name as `NETWORKS` spells it, and what that stands
    for now, where it once stood for something else.

    Raises:
        SpratError: as `find_class`.
    """
    name = find_name(network.name)
    now = {key: getattr(find_class(name), key) for key in FORMER.get(name, {})}
    given = {key: value for key, value in now.items() if not getattr(network, key)}
    return dataclasses.replace(network, name=name, **given)


def build_network(
    network: NetworkConfig | str,
    num_classes: int = 10,
    dropout: float = 0.0,
    in_channels: int = 3,
) -> nn.Module:
    """Return a new network, its initial weights drawn from torch's generator.

    Args:
        network: its name, or its name and settings.
        num_classes: length of the logits.
        dropout: probability of zeroing a pooled feature in training.
        in_channels: of its images: 3, or 1 of grey ones; the network keeps it as an attribute. A
            network of the user's own whose constructor does not take it is built without it.

    Raises:
        SpratError: there is no such network, it does not take a setting or its value, or it is the
            user's own and fails.
    """
    config = NetworkConfig(name=network) if isinstance(network, str) else network
    cls = find_class(config.name)
    takes = inspect.signature(cls).parameters
    for key in config.given:
        if key not in takes:
            raise _not_taken(config, key, takes)
    settings = {"num_classes": num_classes, "dropout": dropout, "in_channels": in_channels}
    passed_on = {"num_classes"} if _passes_on(cls) else set()
    settings = {key: value for key, value in settings.items() if key in takes or key in passed_on}
    try:
        built = cls(**settings, **config.given)
    except SpratError:
        raise
    except Exception as error:
        if not code.is_own(config.name):
            raise
        raise SpratError(
            f"{config.name} cannot be built: {type(error).__name__}: {error}. It was called with "
            f"{' and '.join(settings) or 'no arguments'}. Change its code."
        ) from error
    if not isinstance(built, nn.Module):
        raise SpratError(
            f"{config.name} returns {shown(built)}, expected a torch.nn.Module. Name a class or "
            "function that returns a network."
        )
    if "in_channels" in takes:
        built.in_channels = in_channels  # type: ignore[assignment]
    return built


def _passes_on(make: Callable[..., nn.Module]) -> bool:
    """Return whether a function hands any settings on to a network: def net(**kwargs)."""
    kinds = [each.kind for each in inspect.signature(make).parameters.values()]
    return inspect.isfunction(make) and inspect.Parameter.VAR_KEYWORD in kinds


def takes_in_channels(network: NetworkConfig) -> bool:
    """Return whether a network can be built for images of one channel.

    Raises:
        SpratError: as `find_class`.
    """
    return "in_channels" in inspect.signature(find_class(network.name)).parameters


def _not_taken(config: NetworkConfig, key: str, takes: Iterable[str]) -> SpratError:
    settings = [each for each in takes if each in config.settings and each != "name"]
    has = f"only {', '.join(settings)}" if settings else "none"
    return SpratError(
        f"network.{key} is {shown(list(config.given[key]))}, but {config.name} does not have this "
        f"setting (of these settings: {has}). Leave it out, or choose a network with --model, "
        "which discards the recipe's network settings."
    )


def draft_network(
    network: NetworkConfig | str, num_classes: int = 10, in_channels: int = 3
) -> nn.Module:
    """Return a network as `build_network` builds it, to look at: its initial weights leave torch's
    generator as it was.

    Raises:
        SpratError: as `build_network`.
    """
    with torch.random.fork_rng(devices=[]):
        return build_network(network, num_classes, in_channels=in_channels)


def check_outputs(network: nn.Module, num_classes: int, side: int, channels: int = 3) -> None:
    """Check that a network answers an image channels x side x side with a logit for each class.

    Raises:
        SpratError: it cannot take the image, or answers with something else.
    """
    name, remedy = type(network).__name__, ", or the images' side"
    if getattr(network, "in_channels", 3) != channels:
        remedy = " so that its constructor takes in_channels, or use --pictures.channels 3"
    was_training = network.training
    try:
        with torch.inference_mode():
            logits = network.eval()(torch.zeros(1, channels, side, side))
    except Exception as error:  # the user's own code
        raise SpratError(
            f"{name} cannot process an image of {channels} x {side} x {side}: "
            f"{type(error).__name__}: {error}. Change its code{remedy}."
        ) from error
    finally:
        network.train(was_training)
    if not isinstance(logits, torch.Tensor):
        raise SpratError(
            f"{name} returns a {type(logits).__name__} for one image, expected logits of shape (1, "
            f"{num_classes}). Wrap it in a class whose forward returns only the logits."
        )
    shape = tuple(logits.shape)
    if shape != (1, num_classes):
        raise SpratError(
            f"{name} returns {shape} for one image, expected logits of shape (1, {num_classes}), "
            "one per class. Let its constructor accept num_classes, or give the number of its "
            "classes (--classes)."
        )
