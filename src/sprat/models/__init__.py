"""Networks by name. Each is a class whose constructor takes `num_classes` and `dropout`, and
which maps normalised images B x 3 x H x W of any side from `min_side` up to logits.
"""

import difflib

from torch import nn

from sprat.errors import SpratError
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
from sprat.models.wideresnet import WRN16x1

__all__ = [
    "MODELS",
    "DepthwiseSeparableConv2d",
    "EfficientBlock",
    "OptimizedCIFAR10Net200K",
    "build_model",
    "find_model",
]

MODELS: dict[str, type[nn.Module]] = {
    cls.__name__: cls
    for cls in (
        OptimizedCIFAR10Net200K,
        ResNet8,
        ResNet20,
        ResNet20A,
        WRN16x1,
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

    def plain(word: str) -> str:
        return word.lower().replace("-", "").replace("_", "")

    by_plain_name = {plain(known): cls for known, cls in MODELS.items()}
    if plain(name) in by_plain_name:
        return by_plain_name[plain(name)]
    near = difflib.get_close_matches(plain(name), list(by_plain_name), n=1)
    hint = f"; did you mean {by_plain_name[near[0]].__name__!r}?" if near else ""
    raise SpratError(f"there is no model {name!r}{hint} Known: {', '.join(MODELS)}")


def build_model(name: str, num_classes: int = 10, dropout: float = 0.2) -> nn.Module:
    """A fresh network of the named class, its initial weights drawn from torch's generator.

    Raises:
        SpratError: there is no such class.
    """
    return find_model(name)(num_classes=num_classes, dropout=dropout)
