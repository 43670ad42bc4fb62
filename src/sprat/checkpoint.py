"""Model files, and the files that runs resume from. Loading them cannot execute code. Each contains
a digest of its content, so a file with a flipped bit is refused."""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as deserialize
from safetensors.torch import save as serialize
from torch import Tensor, nn

from sprat.data.imageset import Normalization
from sprat.errors import SpratError, shown
from sprat.evaluation.records import StartRecord, with_names_of_today, wrong_history
from sprat.files import replacing
from sprat.model_file import file_of, read_model, write_model
from sprat.models import NetworkConfig, build_network, find_name
from sprat.models.code import CodeNotNamed
from sprat.names import CARD_FILE, MODEL_FILE
from sprat.readers import MODEL_BYTES, parse_json, read_bytes, read_text
from sprat.shapes import (
    ANYTHING,
    MOST_CLASSES,
    POSITIVE,
    SCALAR,
    SETTING,
    SHARE,
    SIDE,
    TEXT,
    Kind,
    ListOf,
    Maybe,
    Shape,
    TableOf,
    mismatch,
    number,
    shape_of,
    whole,
)
from sprat.text import visible, warn

FORMAT = 1  # version of the metadata under the key "sprat"
RESUME_FILE = "last.pt"
RESUME_MAGIC = b"sprat resume 1\n"  # then the content's sha256, 32 bytes, then the content
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # dtypes that weights may be stored in


@dataclass(frozen=True)
class Model:
    """A trained network with everything needed to use it."""

    network: nn.Module
    name: str
    classes: tuple[str, ...]
    normalization: Normalization
    side: int  # of the square images that it takes, in pixels
    about: dict[str, Any]  # recipe, dataset, seed, …: information for people
    spec: NetworkConfig | None = None  # of the network; None: all that `name` stands for
    ranges: Any = None  # of activations, see evaluation/ranges.py; older files have none

    @property
    def channels(self) -> int:
        """Channels of its images: 3, or 1 for grey."""
        return len(self.normalization.mean)

    @property
    def network_config(self) -> NetworkConfig:
        """The network's name and settings."""
        return self.spec or NetworkConfig(name=self.name)


CLASS = Kind("a name of 1 to 255 characters", lambda v: TEXT.fits(v) and 1 <= len(v) <= 255)
DATA: dict[str, Shape] = {  # metadata that depends on the images
    "classes": ListOf(CLASS, 2, MOST_CLASSES),
    "mean": ListOf(number(-1e3, 1e3), 1, 3),  # for each channel of the images: 1 or 3
    "std": ListOf(number(1e-6, 1e3), 1, 3),
    "side": SIDE,
}
METADATA: Shape = DATA | {
    "format": whole(FORMAT, FORMAT),
    "model": TEXT,
    "network?": TableOf(SETTING),
    # the values that are used; all others may be any plain value
    "about": {
        "recipe?": Maybe(TEXT),
        "dataset?": TEXT,
        "dataset_md5?": Maybe(TEXT),
        "seed?": Maybe(whole()),
        "val_top1?": Maybe(SHARE),
        "test_top1?": Maybe(SHARE),
        "pictures?": TableOf(SCALAR),
    },
}


def save_model(path: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Write a model as safetensors: weights and buffers as tensors, all else as metadata.

    Args:
        dtype: type in which floats are stored, except tensors with values too large for it. The
            loaded model always computes in float32.
    """
    write_model(path, packed(model, dtype))


def packed(model: Model, dtype: torch.dtype = torch.float32) -> bytes:
    """Return the content of a model's file; see `save_model`."""
    state = model.network.state_dict()
    tensors = {
        key: _stored(value.detach().cpu(), dtype).contiguous() for key, value in state.items()
    }
    ranges = {} if model.ranges is None else {"ranges": model.ranges}
    return _whole_file(tensors, metadata(model) | ranges)


def _whole_file(tensors: Mapping[str, Tensor], meta: dict[str, Any]) -> bytes:
    """Return the content of a model's file, given its metadata without the digest."""
    meta = meta | {"sha256": _digest(tensors, meta)}
    # one entry: safetensors writes several in varying order
    return serialize(dict(tensors), {"sprat": json.dumps(meta)})


def with_ranges(path: Path, content: bytes, ranges: Any) -> bytes:
    """Return the content of a model's file with these ranges of activations, or without ranges;
    nothing else is changed.

    Args:
        path: file that `content` was read from, for messages.

    Raises:
        SpratError: it is not a model file.
    """
    tensors, text = _parse(path, content)
    meta = _parse_metadata(path, text)
    digest, before = meta.pop("sha256", None), meta.pop("ranges", None)
    if before is None and ranges is None:
        return content
    if ranges is not None:
        meta["ranges"] = ranges
    if digest:
        return _whole_file(tensors, meta)
    return serialize(tensors, {"sprat": json.dumps(meta)})


def _stored(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return floats in a dtype, unless some would become infinite."""
    if not value.is_floating_point():
        return value
    rounded = value.to(dtype)
    return rounded if torch.equal(rounded.isfinite(), value.isfinite()) else value


def metadata(model: Model) -> dict[str, Any]:
    """Return a model's metadata without its ranges, as plain values for JSON."""
    return {
        "format": FORMAT,
        "model": model.name,
        **({} if model.spec is None else {"network": model.spec.to_dict()}),
        "classes": model.classes,
        "mean": model.normalization.mean,
        "std": model.normalization.std,
        "side": model.side,
        "about": model.about,
    }


def _digest(tensors: Mapping[str, Tensor], about: dict[str, Any]) -> str:
    """Return the sha256 of the metadata and of each tensor's name, type, shape and bytes."""
    names = sorted(tensors)
    layout = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    digest = hashlib.sha256(json.dumps([about, layout]).encode())
    for name in names:
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_model(path: Path) -> Model:
    """Load a model from a file that `save_model` wrote, or from its folder; on the CPU, in
    evaluation mode.

    Raises:
        SpratError: there is no such file, it is damaged or not sprat's, its weights do not fit its
            network, or the network's outputs are not finite.
    """
    path = file_of(path)
    content = read_model(path)
    of_card = _check_card(path, content)
    tensors, text = _parse(path, content)
    meta = _parse_metadata(path, text)
    digest = meta.pop("sha256", None)
    if digest and digest != _digest(tensors, meta):
        raise SpratError(
            f"{path} is damaged: its content differs from its sha256. Copy it again, or train it "
            "again."
        )
    if not digest and not of_card:
        _note_no_digest(path)
    if wrong := wrong_metadata(meta, METADATA):
        raise SpratError(f"{path} is damaged: in its metadata {wrong}. Train the model again.")
    spec, network = _network(path, meta)
    wrong = wrong_weights(network, tensors)
    if not wrong:
        network = build_network(spec, len(meta["classes"]), in_channels=len(meta["mean"]))
        network.load_state_dict(tensors)
        wrong = _wrong_side(network, meta["side"])
    model = Model(
        network=network.eval(),
        name=spec.title,
        classes=tuple(meta["classes"]),
        normalization=Normalization(
            tuple(map(float, meta["mean"])), tuple(map(float, meta["std"]))
        ),
        side=meta["side"],
        about=meta["about"],
        spec=spec if "network" in meta or spec.given else None,
        ranges=meta.get("ranges"),
    )
    if wrong := wrong or wrong_answers(model):
        raise SpratError(f"{path} cannot be used: {wrong}. Train the model again.")
    return model


def _network(path: Path, meta: dict[str, Any]) -> tuple[NetworkConfig, nn.Module]:
    """Return the configuration of a file's network (older files contain only its name), and a draft
    of it that takes no memory, since a damaged file may claim any size.

    Raises:
        SpratError: there is no such network, or it is defined by the user's code, which was not
            named.
    """
    try:
        spec = NetworkConfig.recorded(meta.get("network", {"name": meta["model"]}))
        spec = dataclasses.replace(spec, name=find_name(spec.name))
        with torch.device("meta"):
            channels = len(meta["mean"])
            return spec, build_network(spec, len(meta["classes"]), in_channels=channels)
    except CodeNotNamed:
        raise
    except SpratError as error:
        raise SpratError(
            f"{path} uses a network that this version of sprat does not have: {error} Train the "
            "model again, or upgrade sprat."
        ) from error


def _check_card(path: Path, content: bytes) -> bool:
    """Return whether a shipped model's card is next to the file and contains its sha256.

    Raises:
        SpratError: it contains another.
    """
    try:
        card = parse_json(read_text(path.with_name(CARD_FILE)))
    except (FileNotFoundError, ValueError):  # no card, or one that is not sprat's
        return False
    expected = card.get("sha256") if isinstance(card, dict) else None
    if expected and hashlib.sha256(content).hexdigest() != expected:
        raise SpratError(
            f"{path} is damaged: its sha256 is not the one in its {CARD_FILE}. Install sprat "
            "again, or copy the model again."
        )
    return bool(expected)


@functools.cache  # warn once for each file
def _note_no_digest(path: Path) -> None:
    warn(
        f"{visible(path)} was written by an older version of sprat and contains no digest, so "
        "damage may go unnoticed."
    )


def _parse(path: Path, content: bytes) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file and sprat's metadata."""
    try:
        tensors = deserialize(content)
        length = int.from_bytes(content[:8], "little")
        named = parse_json(content[8 : 8 + length].decode()).get("__metadata__") or {}
    except Exception as error:  # a damaged file raises anything
        raise SpratError(
            f"{path} is damaged or not a safetensors file: {first_line(error)}. Copy it again, or "
            "name another file."
        ) from error
    if "sprat" not in named:
        raise SpratError(
            f"{path} was not written by sprat: it lacks the metadata 'sprat'. Name a {MODEL_FILE} "
            "that sprat wrote."
        )
    return tensors, named["sprat"]


def first_line(error: Exception) -> str:
    """Return the first line of a library's error about a damaged file, shortened."""
    return str(error).partition("\n")[0][:200].rstrip(". ")


def _parse_metadata(path: Path, text: str) -> dict[str, Any]:
    try:
        meta = parse_json(text)
    except ValueError as error:
        raise SpratError(
            f"{path} is damaged: its metadata is not JSON ({error}). Copy it again, or train it "
            "again."
        ) from error
    if not isinstance(meta, dict):
        raise SpratError(f"{path} is damaged: its metadata is not a table. Train the model again.")
    found = meta.get("format")
    if type(found) is int and found > FORMAT:
        raise SpratError(
            f"{path} has format {found}, but this version of sprat reads format {FORMAT}. Upgrade "
            "sprat."
        )
    return meta


def wrong_metadata(meta: Any, shape: Shape = DATA) -> str | None:
    """Return what is wrong with a model's metadata, or with the part of it in `shape`, in words;
    None if nothing is."""
    if wrong := mismatch(meta, shape):
        return wrong
    channels = [len(meta[name]) for name in ("mean", "std") if name in meta]
    if channels not in ([], [1, 1], [3, 3]):
        return f"mean and std have {channels[0]} and {channels[1]} values, expected 1 or 3 of each"
    seen: set[str] = set()
    for name in meta["classes"]:
        if name in seen:
            return f"classes names {shown(name)} twice"
        seen.add(name)
    return None


def wrong_weights(network: nn.Module, tensors: Mapping[str, Tensor]) -> str | None:
    """Return why tensors do not fit a network as its state, in words; None if they do."""
    expected, name = network.state_dict(), type(network).__name__
    if missing := sorted(expected.keys() - tensors.keys()):
        return f"it lacks {missing[0]} of {name}"
    if added := sorted(tensors.keys() - expected.keys()):
        return f"it holds {shown(added[0])}, which {name} does not have"
    for key, wanted in expected.items():
        found = tensors[key]
        types = FLOATS if wanted.is_floating_point() else (wanted.dtype,)
        if found.shape != wanted.shape or found.dtype not in types:
            return (
                f"{key} is {found.dtype} of shape {tuple(found.shape)}, expected {wanted.dtype} of "
                f"{tuple(wanted.shape)}"
            )
        if not found.isfinite().all():
            return f"{key} holds an infinite value or one that is not a number"
        if key.endswith("running_var") and (found < 0).any():
            return f"{key}, a variance, holds {found.min().item():.4g}, expected at least 0"
    return None


def _wrong_side(network: nn.Module, side: int) -> str | None:
    least = getattr(network, "min_side", 1)
    if side < least:
        return f"side is {side}, but {type(network).__name__} takes images of at least {least} px"
    return None


@torch.inference_mode()
def wrong_answers(model: Model) -> str | None:
    """Return what is wrong if finite weights give logits that are not finite, tried on a black, a
    white and a grey image of the smallest side that the network takes; None if nothing is."""
    side = getattr(model.network, "min_side", model.side)
    mean, std = (
        torch.tensor(values)[:, None, None]
        for values in (model.normalization.mean, model.normalization.std)
    )
    greys = torch.linspace(0, 1, 3)[:, None, None, None]
    images = greys.expand(3, model.channels, side, side)
    if model.network((images - mean) / std).isfinite().all():
        return None
    return "its network returns infinite values or values that are not numbers for a plain image"


def _is_finite(value: Any) -> bool:
    """Return whether a value is a dense tensor in memory with finite values."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    if value.device.type != "cpu" or value.nbytes > value.untyped_storage().nbytes():
        return False
    return bool(value.isfinite().all())


def _are_slots(value: Any) -> bool:
    """Return whether a value is an optimizer's state by parameter: {0: {"momentum_buffer": …},
    …}."""
    if not isinstance(value, dict) or not all(type(number) is int for number in value):
        return False
    return all(mismatch(slots, TableOf(Maybe(FINITE))) is None for slots in value.values())


FINITE = Kind("a tensor of finite values", _is_finite)
STATE = TableOf(FINITE, low=1)
RESUME: Shape = {
    "epoch": whole(),
    "batch": whole(),
    "losses": FINITE,
    "epoch_seconds": POSITIVE,
    "seconds": POSITIVE,
    "history": ListOf(ANYTHING),
    "best": Maybe({"epoch": whole(1), "top1": SHARE, "weights": STATE}),
    "config": TableOf(ANYTHING),
    "dataset_md5": TEXT,
    "teacher": Maybe(TEXT),
    "git": Maybe({"commit": TEXT}),
    "network": STATE,
    "optimizer": {"state": Kind("tensors for each parameter", _are_slots)},
    "scaler": TableOf(SCALAR),
    "ema": Maybe(STATE),
    "start?": Maybe(shape_of(StartRecord)),
}


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values for `load_resume`."""
    file = io.BytesIO()
    torch.save(state, file)
    content = file.getbuffer()
    head = RESUME_MAGIC + hashlib.sha256(content).digest()
    size = len(head) + len(content)
    with replacing(path, size=size) as temporary, temporary.open("wb") as to:
        to.write(head)
        to.write(content)


def load_resume(path: Path) -> dict[str, Any]:
    """Load a run's state that `save_resume` wrote, onto the CPU, without executing any code.

    Raises:
        SpratError: there is no such file, or it is damaged.
    """
    try:
        content = read_bytes(path, MODEL_BYTES)
    except FileNotFoundError as error:
        raise SpratError(
            f"There is no {path}. Check that {path.parent} is the folder of a run."
        ) from error
    begin = len(RESUME_MAGIC) + 32
    if content.startswith(RESUME_MAGIC):
        digest, content = content[len(RESUME_MAGIC) : begin], content[begin:]
        if hashlib.sha256(content).digest() != digest:
            raise _damaged(path, "its content differs from its sha256")
    elif content.startswith(b"PK"):  # written by older versions, without a digest
        _note_no_digest(path)
    else:
        raise _damaged(path, "it does not begin as such a file does")
    try:
        state = unpickle(content)
    except Exception as error:  # a damaged file raises anything
        raise _damaged(path, first_line(error)) from error
    if wrong := mismatch(state, RESUME):
        raise _damaged(path, wrong)
    history = with_names_of_today(state["history"])
    if wrong := wrong_history(history):
        raise _damaged(path, wrong)
    return state | {"history": history}


def unpickle(content: bytes) -> Any:
    """Return plain values and tensors (on the CPU) that torch.save wrote, without executing any
    code.

    Raises:
        Exception: of any kind, if the content is damaged or contains anything else.
    """
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked > len(content):  # torch.save does not compress
            raise ValueError(f"it would unpack to {unpacked:,} bytes")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def _damaged(path: Path, why: str) -> SpratError:
    return SpratError(f"{path} is damaged or was not written by sprat ({why}). Start a new run.")
