"""Networks by name. Each is a class whose constructor takes `num_classes` and `dropout`, and
which maps normalised images B x 3 x H x W of any side from `min_side` up to logits.
"""

import importlib
import inspect
import sys
from typing import TypeGuard

import torch
from torch import nn

from sprat.errors import SpratError, did_you_mean
from sprat.models.densenet import DenseNetBC40
from sprat.models.mobilenetv2 import MobileNetV2
from sprat.models.optimized200k import (
    DepthwiseSeparableConv2d,
    EfficientBlock,
    OptimizedCIFAR10Net200K,
)
from sprat.models.resnet import ResNet18, ResNet20, ResNet20A
from sprat.models.resnet8 import ResNet8
from sprat.models.shufflenetv2 import ShuffleNetV2x05
from sprat.models.sprat import SpratL, SpratM, SpratS, SpratT
from sprat.models.tiniest import Tiniest
from sprat.models.wideresnet import WRN16x1
from sprat.names import find_network

__all__ = [
    "MODELS",
    "DepthwiseSeparableConv2d",
    "EfficientBlock",
    "OptimizedCIFAR10Net200K",
    "build_model",
    "check_outputs",
    "draft_model",
    "find_model",
    "import_model",
]

MODELS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        OptimizedCIFAR10Net200K,
        SpratT,
        SpratS,
        SpratM,
        SpratL,
        ResNet8,
        ResNet20,
        ResNet20A,
        WRN16x1,
        Tiniest,
        DenseNetBC40,
        ShuffleNetV2x05,
        MobileNetV2,
        ResNet18,
    )
}


def find_model(name: str) -> type[nn.Module]:
    """The class a name stands for; case, "-" and "_" do not matter.

    Raises:
        SpratError: there is none; says which there are and which is nearest.
    """
    return MODELS[find_network(name, MODELS)]


def build_model(name: str, num_classes: int = 10, dropout: float = 0.2) -> nn.Module:
    """A fresh network of the named class, its initial weights drawn from torch's generator.

    Raises:
        SpratError: there is no such class.
    """
    return find_model(name)(num_classes=num_classes, dropout=dropout)


def draft_model(name: str, num_classes: int = 10) -> nn.Module:
    """Return a network as `build_model` builds it, to look at: its initial weights leave torch's
    generator as it was.

    Raises:
        SpratError: there is no such class.
    """
    with torch.random.fork_rng(devices=[]):
        return build_model(name, num_classes)


def check_outputs(network: nn.Module, num_classes: int, side: int) -> None:
    """Runs a network on an image of 3 x side x side: it must give a logit for each class.

    Raises:
        SpratError: it cannot take the image, or gives something else.
    """
    name = type(network).__name__
    was_training = network.training
    try:
        with torch.inference_mode():
            logits = network.eval()(torch.zeros(1, 3, side, side))
    except Exception as error:  # the user's own code
        raise SpratError(
            f"{name} cannot take an image of 3 x {side} x {side}: {type(error).__name__}: {error}"
        ) from error
    finally:
        network.train(was_training)
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    if shape != (1, num_classes):
        raise SpratError(
            f"{name} gives {shape} for one image, expected logits of shape (1, {num_classes}), one "
            "for each class; give the number of its classes (--classes), or mend its last layer"
        )


def _is_network(value: object) -> TypeGuard[type[nn.Module]]:
    return isinstance(value, type) and issubclass(value, nn.Module)


def import_model(spec: str, num_classes: int = 10) -> nn.Module:
    """A network of a class of the user's own, "module:Class", from the working folder or what is
    installed. Its constructor is given `num_classes` if it takes that, else nothing.

    Raises:
        SpratError: there is no such module or class, or it cannot be built.
    """
    module_name, _, class_name = spec.partition(":")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SpratError(
            f"{spec}: the module {module_name!r} cannot be imported: {error}; name a module of "
            "this folder or an installed one, as my_networks:MyNet"
        ) from error
    finally:
        sys.path.remove("")
    model = getattr(module, class_name, None)
    if not _is_network(model):
        hint = did_you_mean(class_name, (k for k, v in vars(module).items() if _is_network(v)))
        raise SpratError(f"{spec}: there is no network {class_name!r} in {module_name}{hint}")
    takes = inspect.signature(model).parameters
    try:
        return model(num_classes=num_classes) if "num_classes" in takes else model()
    except Exception as error:  # the user's own code
        raise SpratError(f"{spec} cannot be built: {type(error).__name__}: {error}") from error
