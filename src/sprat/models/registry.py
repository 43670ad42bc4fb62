"""Registry of networks, and the settings that vary a network.

    network = build_network(NetworkConfig(name="SpratNet", widths=(40, 72)), num_classes=10)

To add a network, add a class to its family's file and a line to `NETWORKS`. Its constructor takes
`num_classes`, `dropout`, `in_channels` and those settings of `NetworkConfig` that it supports, by
the same names. It maps normalised images B x in_channels x H x W of any side from `min_side` to
logits B x num_classes.
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
    """Settings of a network that differ from the defaults of its name."""

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
    """A network: its name, and settings that differ from the defaults of that name."""

    name: str = setting(
        "OptimizedCIFAR10Net200K",
        "Name of a network (case, - and _ make no difference), or a class of your own: "
        "my_nets.py:MyNet",
    )

    @functools.cached_property
    def given(self) -> dict[str, tuple[float, ...]]:
        """The settings that differ from the defaults of the name."""
        values = dataclasses.asdict(self)
        return {key: value for key, value in values.items() if key != "name" and value}

    @property
    def title(self) -> str:
        """The name; for a network in the user's own code, the name of its class."""
        return self.name.rpartition(":")[2]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Return the network that `to_dict` described.

        Raises:
            SpratError: a setting is unknown or has an invalid value.
        """
        if unknown := [key for key in values if key not in cls.settings]:
            raise SpratError(
                f"Unknown network setting {shown(unknown[0])}. Available: "
                f"{', '.join(cls.settings)}. A newer version of sprat may have more."
            )
        return cls(**values)

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> NetworkConfig:
        """Return the network that a model, run or result describes, perhaps one of an older
        version.

        Raises:
            SpratError: as `from_dict`.
        """
        config = cls.from_dict(values)
        former = FORMER.get(config.name, {})
        return dataclasses.replace(config, **{k: v for k, v in former.items() if not values.get(k)})

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings given with it, as plain values for JSON."""
        return {"name": self.name} | {key: list(value) for key, value in self.given.items()}

    def __str__(self) -> str:
        """Return a name such as "SpratNet (widths 40, 72; depth 3)"."""
        settings = (f"{key} {', '.join(map(str, value))}" for key, value in self.given.items())
        return f"{self.title} ({'; '.join(settings)})" if self.given else self.title


# module of sprat.models that defines each class
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

# former defaults of a name, for records that do not contain the settings
FORMER: dict[str, dict[str, Any]] = {"SpratM": {"widths": (48, 84)}}


def find_name(name: str) -> str:
    """Return a network's name as `NETWORKS` spells it; case, "-" and "_" do not matter. The name of
    a class in the user's own code is returned unchanged.

    Raises:
        SpratError: no network has that name; the message lists all names and the nearest one.
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
    """Return the class that a name stands for; in the user's own code it may also be a function
    that makes a network.

    Raises:
        SpratError: there is none, or it is in code that the user did not name.
    """
    if code.is_own(name):
        return code.find(name)
    name = find_name(name)
    cls: Callable[..., nn.Module] = getattr(import_module(f"sprat.models.{NETWORKS[name]}"), name)
    return cls


def to_record(network: NetworkConfig) -> NetworkConfig:
    """Return the same network for a record: its name as `NETWORKS` spells it, and its current
    defaults if they were once others.

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
    """Return a new network, with initial weights drawn from torch's global generator.

    Args:
        network: its name, or its name and settings.
        num_classes: number of logits.
        dropout: probability of zeroing a pooled feature in training.
        in_channels: channels of the images: 3, or 1 if grey; kept as an attribute of the network. A
            network in the user's own code that does not take it is built without it.

    Raises:
        SpratError: there is no such network, it does not support a setting or its value, or it is
            in the user's own code, which fails.
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
    """Return whether a function passes any settings on to a network: def net(**kwargs)."""
    kinds = [each.kind for each in inspect.signature(make).parameters.values()]
    return inspect.isfunction(make) and inspect.Parameter.VAR_KEYWORD in kinds


def takes_in_channels(network: NetworkConfig) -> bool:
    """Return whether a network can be built for images with one channel.

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
    """Return a network built by `build_network` for inspection, without advancing torch's
    generator.

    Raises:
        SpratError: as `build_network`.
    """
    with torch.random.fork_rng(devices=[]):
        return build_network(network, num_classes, in_channels=in_channels)


def check_outputs(network: nn.Module, num_classes: int, side: int, channels: int = 3) -> None:
    """Check that a network returns one logit per class for an image channels x side x side.

    Raises:
        SpratError: it cannot process the image, or returns something else.
    """
    name, remedy = type(network).__name__, ", or the images' side"
    if getattr(network, "in_channels", 3) != channels:
        remedy = " so that its constructor takes in_channels, or use --pictures.channels 3"
    was_training = network.training
    try:
        with torch.inference_mode():
            logits = network.eval()(torch.zeros(1, channels, side, side))
    except Exception as error:  # whatever the user's code raises
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
