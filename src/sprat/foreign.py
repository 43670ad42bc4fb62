"""Networks that were trained elsewhere: their weights, loaded without executing code.

weights.pth                  {"state_dict": {"module.conv1.weight": …}, "epoch": 200, …}
"""

import difflib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sprat.deferred import deferred
from sprat.errors import SpratError, did_you_mean, shown
from sprat.models import NetworkConfig, check_outputs, draft_network, find_name
from sprat.option import Parameter, Token, convert
from sprat.readers import MODEL_BYTES, read_bytes, read_text
from sprat.settings.field import Table, setting
from sprat.shapes import LARGEST_SIDE
from sprat.text import visible, warn

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from sprat import checkpoint
    from sprat.data import found as listing
    from sprat.data import imageset
else:
    torch, checkpoint = deferred("torch"), deferred("sprat.checkpoint")
    imageset, listing = deferred("sprat.data.imageset"), deferred("sprat.data.found")

COLOURS = 3
UNUSUAL = 0.02  # a mean (other than 0) or std below this share of full brightness is reported
# Modules whose objects checkpoints contain besides weights, such as settings and figures.
_LEFT_OUT = (
    *("argparse", "datetime", "numpy", "omegaconf", "pathlib", "types", "typing"),
    *("lightning", "lightning_fabric", "pytorch_lightning"),
)
_DEEPEST = 4  # levels of nested tables in which weights are searched for
_MOST_PARTS = 20  # parts of a name that are considered
_COUNTER = "num_batches_tracked"  # of BatchNorm; no output depends on it
_SAVE = "torch.save(network.state_dict(), 'weights.pth')"


def _split(hint: Any, tokens: Sequence[Token]) -> Any:
    return convert(hint, [t.evolve(value=part) for t in tokens for part in t.value.split(",")])


@dataclass(frozen=True, kw_only=True)
class Foreign(Table):
    """Settings to use a network that was trained elsewhere, besides its code."""

    weights: str = setting(
        "",
        "File of weights that were trained elsewhere (.pth, .safetensors); the network is given by "
        "its name or as my_nets.py:MyNet",
    )
    key: str = setting("", "Set of weights to use if the file has several, such as state_dict_ema")
    mean: tuple[float, ...] = setting(
        (),
        "Mean that the network's images were normalised with: one value, or one each for red, "
        "green and blue, on a scale of 0 to 1 or 0 to 255",
        at_least=0,
        at_most=255,
    )
    std: tuple[float, ...] = setting(
        (), "Standard deviation that goes with the mean, on the same scale", above=0, at_most=255
    )
    side: int = setting(
        0,
        "Side of the images that the network expects",
        at_least=0,
        at_most=LARGEST_SIDE,
        unit="pixels",
        zero="that of the dataset, 32 for your own pictures",
    )
    channels: Literal[1, 3] = setting(
        3, "Channels of the images that the network takes; 1: colour is converted to grey"
    )
    classes: Annotated[tuple[str, ...], Parameter(converter=_split)] = setting(
        (),
        "Names of the classes in the order of the network's outputs, or a .txt file with one name "
        "per line; by default the classes of the dataset, in its order",
    )

    def __post_init__(self) -> None:
        for key in ("weights", "classes"):
            if isinstance(path := getattr(self, key), Path):
                object.__setattr__(self, key, str(path))
        super().__post_init__()

    @property
    def given(self) -> list[str]:
        """Names of the options that were given."""
        return [key for key in self.settings if getattr(self, key) != getattr(Foreign, key)]

    def check_given(self) -> None:
        """Check what does not need the network: the file exists, and mean and std are given.

        Raises:
            SpratError: weights, mean or std are missing or invalid.
        """
        if not self.weights:
            asked = f", which --{self.given[0]} is about" if self.given else ""
            raise SpratError(f"No weights are given{asked}. Add --weights FILE.")
        if not Path(self.weights).exists():
            raise SpratError(f"There is no file {self.weights}. Name the file of the weights.")
        for name in ("mean", "std"):
            if not (values := getattr(self, name)):
                raise SpratError(
                    f"--{name} is missing. Give --mean and --std of the Normalize that the network "
                    "was trained with, or --mean 0 --std 1 if there was none."
                )
            if len(values) not in (1, self.channels):
                more = f"{COLOURS}, for red, green and blue, or 1 for all of them"
                raise SpratError(
                    f"{name} has {len(values)} values ({', '.join(f'{v:g}' for v in values)}), "
                    f"expected {more if self.channels == COLOURS else '1, for grey'}. Give that "
                    "many."
                )
        if min(self.std) < 1 if self._white == 255 else max(self.std) > 1:
            raise SpratError(
                f"mean is {_numbers(self.mean)} and std is {_numbers(self.std)}, but one is on a "
                "scale of 0 to 1 and the other on 0 to 255. Give both on the same scale."
            )

    @property
    def _white(self) -> int:
        """Full brightness on the scale of mean and std: 1 or 255."""
        return 255 if max(self.mean) > 1 or (not any(self.mean) and max(self.std) > 1) else 1

    def normalization(self) -> "imageset.Normalization":
        """Return mean and std of each channel as fractions of full brightness; warn if they are
        unusual."""
        white = self._white
        if white == 255:
            warn(
                f"mean {_numbers(self.mean)} and std {_numbers(self.std)} are read on a scale of 0 "
                "to 255."
            )
        elif any(self.mean) and min(max(self.mean), max(self.std)) < UNUSUAL:
            warn(
                f"mean {_numbers(self.mean)} or std {_numbers(self.std)} is unusually small for "
                "images of 0 to 1. Check that it was not divided by 255 twice, and that std is "
                "not a variance."
            )
        mean, std = (
            tuple(value / white for value in values) * (self.channels // len(values))
            for values in (self.mean, self.std)
        )
        return imageset.Normalization(mean, std)

    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes; empty if they were not given.

        Raises:
            SpratError: their file cannot be read, or the names are invalid.
        """
        names = self.classes
        if len(names) == 1 and names[0].endswith(".txt"):
            try:
                lines = read_text(Path(names[0])).splitlines()
            except FileNotFoundError as error:
                raise SpratError(
                    f"There is no file {names[0]}. Name the file with the names of the classes."
                ) from error
            names = tuple(line.strip() for line in lines if line.strip())
        names = tuple(name.strip() for name in names)
        of_classes = {"classes": checkpoint.DATA["classes"]}
        if names and (wrong := checkpoint.wrong_metadata({"classes": names}, of_classes)):
            raise SpratError(
                f"--{wrong}. Name each class once, in the order of the network's outputs."
            )
        return names

    def model(
        self, network: str, classes: tuple[str, ...], side: int, about: dict[str, Any]
    ) -> "checkpoint.Model":
        """Return the model: the network with its weights, classes and normalisation.

        Args:
            network: its name, or FILE:CLASS of code that was run.
            classes: names in the order of its outputs.
            side: side of its images, in pixels.
            about: information for people.

        Raises:
            SpratError: there is no such network, the file cannot be read or does not fit, or the
                network does not return a logit for each class.
        """
        spec = NetworkConfig(name=find_name(network))
        built = draft_network(spec, len(classes), self.channels)
        load_weights(built, Path(self.weights), self.key)
        built.eval()
        check_outputs(built, len(classes), side, self.channels)
        _check_logits(built, side, self.channels)
        return checkpoint.Model(built, spec.title, classes, self.normalization(), side, about, spec)


def load_weights(network: "nn.Module", path: Path, key: str = "") -> None:
    """Load weights into the network that they were saved from.

    Prefixes of wrappers ("module.", "_orig_mod.", "model.") are removed, floats are converted to
    the network's dtypes, and counters of batches may be missing.

    Args:
        key: key of the state dict in the file, such as "state_dict_ema"; empty: the one that fits,
            or the first of several whose key does not contain "ema".

    Raises:
        SpratError: the file contains no weights, or none that fit; the message gives the nearest.
    """
    found = read_weights(path)
    if key:
        if key not in found:
            hint = did_you_mean(key, found) or "."
            raise SpratError(
                f"{path} contains no weights under {shown(key)}{hint} Available: "
                f"{listing.few(list(found))}."
            )
        found = {key: found[key]}
    fitted = {place: _Fitted(network, tensors) for place, tensors in found.items()}
    fits = [place for place, each in fitted.items() if not each.wrong]
    if not fits:
        nearest = max(fitted.values(), key=lambda each: len(each.state))
        raise SpratError(
            f"{path} does not fit {type(network).__name__}: {nearest.wrong}. Name the network that "
            "the weights were saved from, with the same number of classes."
        )
    chosen = min(fits, key=lambda place: "ema" in place.lower())
    if len(fits) > 1:
        warn(f"{visible(path)} contains {listing.few(fits)}; using {visible(chosen)} (see --key).")
    if left_out := fitted[chosen].left_out:
        warn(
            f"{visible(path)}: ignored, because the network has no such part: "
            f"{listing.few(left_out)}."
        )
    network.load_state_dict(fitted[chosen].state)


def read_weights(path: Path) -> "dict[str, dict[str, Tensor]]":
    """Return the state dicts in a file of torch.save or safetensors, by their keys in it (empty for
    the file itself, "ema.shadow"), without executing code.

    Raises:
        SpratError: it cannot be read, or contains none.
    """
    try:
        content = read_bytes(path, MODEL_BYTES)
    except FileNotFoundError as error:
        raise SpratError(f"There is no file {path}. Name the file of the weights.") from error
    if content[8:9] == b"{":
        held: Any = _parse_safetensors(path, content)
    else:
        held = _unpickle(path, content)
    found = dict(_state_dicts(held))
    if not found:
        raise SpratError(
            f"{path} contains no state dict (a table of tensors by name). Save one where the "
            f"network can be loaded: {_SAVE}"
        )
    return found


def _parse_safetensors(path: Path, content: bytes) -> "dict[str, Tensor]":
    from safetensors.torch import load

    try:
        return load(content)
    except Exception as error:  # a damaged file raises anything
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> SpratError:
    return SpratError(
        f"{path} is damaged, or not a file of torch.save or safetensors: "
        f"{checkpoint.first_line(error)}. Copy it again, or name another file."
    )


def _unpickle(path: Path, content: bytes) -> Any:
    """Return the contents of a torch.save file, with inert objects for those of _LEFT_OUT."""
    if not content.startswith((b"PK", b"\x80")):
        raise _damaged(path, ValueError("its beginning matches neither format"))
    try:
        names = _unsafe_names(content)
        if all(name.partition(".")[0] in _LEFT_OUT for name in names):
            with torch.serialization.safe_globals([(_Inert, name) for name in names]):
                return checkpoint.unpickle(content)
    except Exception as error:  # a damaged file raises anything
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))
        if refused is None:
            raise _damaged(path, error) from error
        names = [refused[1]]
    raise SpratError(
        f"{path} contains objects that need Python code ({listing.few(names)}), as a pickled "
        "network does, and sprat runs no code from a file. Save only the weights, where the "
        f"network can be loaded: {_SAVE}"
    )


def _unsafe_names(content: bytes) -> list[str]:
    """Return the names that a file refers to, other than those of tensors and plain values.

    Raises:
        ValueError: it is a TorchScript program.
    """
    if not content.startswith(b"PK"):  # the older format, whose loading refuses the first name
        return []
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise ValueError("it is a TorchScript program")
    return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content)))


class _Inert:
    """Placeholder for an object of a checkpoint that is ignored."""

    def __new__(cls, *_: object) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _state_dicts(
    held: Any, place: str = "", seen: set[int] | None = None
) -> "Iterator[tuple[str, dict[str, Tensor]]]":
    """Yield each table of tensors by name, with its key in the file."""
    seen = set() if seen is None else seen
    if not isinstance(held, dict) or id(held) in seen or place.count(".") >= _DEEPEST:
        return
    seen.add(id(held))
    named = {key: value for key, value in held.items() if isinstance(key, str)}
    tensors = {key: v.detach() for key, v in named.items() if isinstance(v, torch.Tensor)}
    if tensors:
        yield place, tensors
    for key, value in named.items():
        yield from _state_dicts(value, f"{place}.{key}".removeprefix("."), seen)


class _Fitted:
    """Tensors fitted to a network as its state.

    state: tensors by the network's names. left_out: names of tensors that the network does not
    have. wrong: why they do not fit, in words; None if they do.
    """

    def __init__(self, network: "nn.Module", tensors: "Mapping[str, Tensor]") -> None:
        expected = network.state_dict()
        names = {_unwrapped(name): name for name in expected}
        plain = {_unwrapped(key): value for key, value in tensors.items()}
        prefix = _prefix(names, plain)
        inside = {key.removeprefix(prefix): key for key in plain if key.startswith(prefix)}
        self.left_out = [key for key in plain if not key.startswith(prefix)]
        self.state = {name: plain[inside[key]] for key, name in names.items() if key in inside}
        self.wrong = self._misnamed(network, names, inside) or self._unlike(expected)
        self.wrong = self.wrong or checkpoint.wrong_weights(network, self.state)

    def _misnamed(
        self, network: "nn.Module", names: Mapping[str, str], inside: Mapping[str, str]
    ) -> str | None:
        missing = [key for key in names if key not in inside and not key.endswith(_COUNTER)]
        added = [key for key in inside if key not in names]
        if missing:
            near = _nearest(missing[0], added)
            return f"it lacks {missing[0]}{near} ({len(missing):,} of {len(names):,} tensors)"
        if added:
            near = _nearest(added[0], names)
            return f"it holds {shown(added[0])} too{near} ({len(added):,} tensors in all)"
        return None

    def _unlike(self, expected: "Mapping[str, Tensor]") -> str | None:
        """Convert the tensors to the network's dtypes; return what is wrong with one that does not
        fit, None if all do."""
        for name, wanted in expected.items():
            found = self.state.get(name, wanted)
            if name.endswith(_COUNTER) and found.dtype != wanted.dtype:
                found = wanted
            if found.layout is not torch.strided or found.is_quantized or found.is_complex():
                return f"{name} is sparse, quantised or complex, expected plain numbers"
            if found.shape != wanted.shape:
                shapes = f"{tuple(found.shape)}, expected {tuple(wanted.shape)}"
                grey = found.dim() == 4 and (found.shape[1], wanted.shape[1]) == (1, COLOURS)
                hint = "; --channels 1 is for networks of grey images" if grey else ""
                return f"{name} is of shape {shapes}{hint}"
            if found.is_floating_point() and wanted.is_floating_point():
                found = found.to(wanted.dtype)
            self.state[name] = found
        return None


def _unwrapped(key: str) -> str:
    """Return a name without the prefixes of torch.compile."""
    return key.replace("_orig_mod.", "")


def _prefix(names: Mapping[str, str], keys: Iterable[str]) -> str:
    """Return the prefix that most of the keys have before a network's names."""
    counts = Counter({"": 0})
    for key in keys:
        *before, _ = key.split(".", _MOST_PARTS)
        for count in range(len(before) + 1):
            prefix = "".join(f"{part}." for part in before[:count])
            counts[prefix] += key.removeprefix(prefix) in names
    return max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))


def _nearest(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=1, cutoff=0.4)
    return f", nearest to {shown(near[0])}" if near else ""


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _check_logits(network: "nn.Module", side: int, channels: int) -> None:
    """Check that a network's outputs are not probabilities, to which evaluation would apply softmax
    again.

    Raises:
        SpratError: they are.
    """
    images = torch.rand(4, channels, side, side, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        answers = network(images)
    if (answers >= 0).all() and ((answers.sum(1) - 1).abs() < 1e-4).all():
        raise SpratError(
            f"{type(network).__name__} returns probabilities, expected logits. Remove the softmax "
            "at its end."
        )
