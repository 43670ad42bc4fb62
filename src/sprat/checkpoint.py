"""Weights that carry their meaning, and the file a run resumes from. Neither can execute."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.files import replacing
from sprat.models import build_model, find_model

FORMAT = 1  # of the metadata under the key "sprat"
MODEL_FILE, RESUME_FILE = "model.safetensors", "last.pt"


@dataclass(frozen=True)
class Model:
    """A trained network and what it takes to use it."""

    network: nn.Module
    name: str
    classes: tuple[str, ...]
    normalization: Normalization
    side: int  # of the square images it was trained on, pixels
    about: dict[str, Any]  # recipe, dataset, seed, …: what a person wants to know


def save_model(path: Path, model: Model, dtype: torch.dtype = torch.float32) -> None:
    """Writes weights and buffers as safetensors, everything else into the file's metadata.

    dtype: of what is stored of floats; computed is in float32 whatever it is.
    """
    tensors = {
        key: value.detach().cpu().to(dtype if value.is_floating_point() else value.dtype)
        for key, value in model.network.state_dict().items()
    }
    tensors = {key: value.contiguous() for key, value in tensors.items()}
    with replacing(path) as beside:
        save_file(tensors, beside, {"sprat": json.dumps(metadata(model))})


def metadata(model: Model) -> dict[str, Any]:
    """Everything of a model but its weights; plain values for JSON."""
    return {
        "format": FORMAT,
        "model": model.name,
        "classes": model.classes,
        "mean": model.normalization.mean,
        "std": model.normalization.std,
        "side": model.side,
        "about": model.about,
    }


def load_model(path: Path) -> Model:
    """Reads a file that `save_model` wrote, or a run folder's; on the CPU, in eval mode.

    Raises:
        SpratError: no such file, damaged, not sprat's, or its weights do not fit its network.
    """
    if path.is_dir():
        path = path / MODEL_FILE
    if not path.is_file():
        raise SpratError(
            f"there is no model at {path}; name a {MODEL_FILE} or the folder of a finished run"
        )
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("sprat")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise SpratError(f"{path} is not a safetensors file, or damaged: {error}") from error
    if text is None:
        raise SpratError(f"{path} was not written by sprat: it lacks the metadata 'sprat'")
    try:
        meta = json.loads(text)
        if meta["format"] != FORMAT:
            raise SpratError(
                f"{path} has format {meta['format']}, this sprat reads {FORMAT}; upgrade sprat"
            )
        network = build_model(meta["model"], num_classes=len(meta["classes"]))
        network.load_state_dict(state)
        return Model(
            network=network.eval(),
            name=find_model(meta["model"]).__name__,
            classes=tuple(meta["classes"]),
            normalization=Normalization(tuple(meta["mean"]), tuple(meta["std"])),
            side=meta["side"],
            about=meta["about"],
        )
    except SpratError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise SpratError(f"{path} is damaged: its weights and metadata do not fit: {error}") from (
            error
        )


def save_resume(path: Path, state: dict[str, Any]) -> None:
    """Writes tensors and plain values for `load_resume`."""
    with replacing(path) as beside:
        torch.save(state, beside)


def load_resume(path: Path) -> dict[str, Any]:
    """Reads what `save_resume` wrote, onto the CPU; refuses anything that could execute.

    Raises:
        SpratError: there is none, or it is damaged.
    """
    if not path.is_file():
        raise SpratError(f"there is no {path}; is {path.parent} the folder of a run?")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises anything
        raise SpratError(f"{path} is damaged or not sprat's ({error}); start the run anew") from (
            error
        )
    return state
