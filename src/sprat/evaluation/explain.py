"""Class activation maps: which parts of a picture a network's prediction is based on (Zhou et al.
2016, arXiv 1512.04150).

A network that ends in global average pooling and one linear layer computes each logit as a mean
over places, so what each place contributes is known exactly after one forward pass:

    logit = mean over the places of (the class's weights · the map's channels there) + its bias
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.augment.transforms import normalize
from sprat.data.imageset import Images, Normalization
from sprat.errors import SpratError
from sprat.evaluation.evaluate import BATCH, check_finite

# Shares of the evidence from which a part of the picture is named. If evidence is evenly spread,
# the middle and each quarter have 1/4, each half has 1/2.
MIDDLE = 1 / 2
HALF = 3 / 4  # if in two halves, the quarter common to both has at least 1/2
WHOLLY = 9 / 10  # below this, "mostly"
SPREAD, NOWHERE = "spread over the whole picture", "nowhere in particular"


class Explanation(NamedTuple):
    """Evidence for a class, and where in a picture it is."""

    label: str
    """The class."""
    map: Tensor
    """Contribution of each place to the class's logit: H' x W', float32, on the CPU, with the
    size of the network's last map. Its mean plus the bias of the class is the logit."""
    where: str
    """The map in words: "mostly the lower left", "the middle", "spread over the whole picture"."""


class ActivationMaps:
    """Class activation maps of a network.

    Args:
        network: in evaluation mode whenever this is called. It must end in global average pooling
            of what its method `features` returns, B x C x H' x W', and the linear layer
            `classifier`.
        normalization: of the images it was trained on.
        side: side of its images in pixels.

    Raises:
        SpratError: the network does not end in this way.
    """

    def __init__(self, network: nn.Module, normalization: Normalization, side: int) -> None:
        self._features, self._linear = _find_end(network, len(normalization.mean), side)
        self._normalization = normalization

    @torch.inference_mode()
    def __call__(
        self, images: Images, labels: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the classes and their maps: int64, N, and float32, N x H' x W', on the CPU.

        Args:
            images: uint8, N x C x H x W, on any device.
            labels: the class to explain in each image; by default the predicted one.

        Raises:
            SpratError: a logit is infinite or not a number.
        """
        linear, values = self._linear, self._normalization
        device = linear.weight.device
        mean, std = (torch.tensor(each, device=device) for each in (values.mean, values.std))
        found, maps = [], []
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            for start in range(0, len(images), BATCH):
                batch = images[start : start + BATCH].to(device)
                features = self._features(normalize(batch, mean, std)).float()
                logits = F.linear(features.mean((2, 3)), linear.weight, linear.bias)
                check_finite(logits)
                chosen = logits.argmax(1)
                if labels is not None:
                    chosen = torch.tensor(labels[start : start + BATCH], device=device)
                found.append(chosen)
                maps.append(torch.einsum("bchw,bc->bhw", features, linear.weight[chosen]))
        return torch.cat(found).cpu(), torch.cat(maps).cpu()


def _find_end(
    network: nn.Module, channels: int, side: int
) -> tuple[Callable[[Tensor], Tensor], nn.Linear]:
    """Return the function that computes a network's last map, and the linear layer after pooling.

    Raises:
        SpratError: the network has no such method or layer, or its logits do not come from them.
    """
    features, linear = getattr(network, "features", None), getattr(network, "classifier", None)
    if features is None or not callable(features):
        raise _other_end(network, "it has no method features that returns that map")
    if not isinstance(linear, nn.Linear):
        raise _other_end(network, "it has no linear layer named classifier")
    device = linear.weight.device
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, channels, side, side, generator=generator).to(device)
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            logits = network(noise)
            expected = F.linear(features(noise).mean((2, 3)), linear.weight, linear.bias)
            agree = torch.allclose(logits, expected, rtol=1e-3, atol=1e-3)
    except Exception as error:  # whatever the user's code raises
        why = f"{type(error).__name__}: {error}"
        raise _other_end(network, f"computing its features failed ({why})") from error
    finally:
        network.train(training)
    if not agree:
        raise _other_end(network, "its logits are not those of its features and its classifier")
    return features, linear


def _other_end(network: nn.Module, lacks: str) -> SpratError:
    return SpratError(
        f"{type(network).__name__} does not end in a mean over the map and one linear layer, which "
        f"class activation maps need: {lacks}. Leave the maps out, or change its code so that its "
        "logits are classifier(features(images).mean((2, 3)))."
    )


def enlarged(activation: Tensor, side: int) -> Tensor:
    """Return a map H' x W' enlarged to a picture's size, side x side, by bilinear interpolation."""
    return F.interpolate(activation[None, None], (side, side), mode="bilinear")[0, 0]


def in_words(activation: Tensor) -> str:
    """Describe where in a picture the evidence is, which is the positive part of the map.

    This is the middle (half the height and width) if it has at least `MIDDLE` of the evidence, else
    the half that has at least `HALF`, or the quarter common to two such halves; preceded by
    "mostly" unless that part has at least `WHOLLY`. Otherwise the evidence is spread over the
    picture, or nowhere in particular if there is none.

    Args:
        activation: the map, H' x W', finite.
    """
    evidence = activation.double().clamp(min=0)
    total = evidence.sum()
    if total == 0:
        return NOWHERE
    rows, columns = (_quarters(size) for size in activation.shape)
    shares = rows @ (evidence / total) @ columns.T  # 4 x 4
    height, rows_named = _half(shares.sum(1), "upper", "lower")
    width, columns_named = _half(shares.sum(0), "left", "right")
    middle = shares[1:3, 1:3].sum()
    if middle >= MIDDLE:
        name, share = "middle", middle
    elif height or width:
        name = f"{height} {width}" if height and width else f"{height or width} half"
        share = shares[rows_named, columns_named].sum()
    else:
        return SPREAD
    return f"the {name}" if share >= WHOLLY else f"mostly the {name}"


def _half(quarters: Tensor, first: str, second: str) -> tuple[str, slice]:
    """Return the half with the evidence ("" for neither) and the slice of its quarters."""
    share = quarters[:2].sum()
    if share >= HALF:
        return first, slice(0, 2)
    return (second, slice(2, 4)) if share <= 1 - HALF else ("", slice(0, 4))


def _quarters(size: int) -> Tensor:
    """Return the fraction of each of `size` places in a row that is in each quarter: 4 x size."""
    edges = torch.arange(size + 1, dtype=torch.float64) / size
    starts = torch.arange(4, dtype=torch.float64)[:, None] / 4
    return edges.clamp(starts, starts + 1 / 4).diff(dim=1) * size
