"""Names what pictures show: any size and mode, files, images, arrays or tensors."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sprat.augment.views import find_views
from sprat.checkpoint import Model
from sprat.data.picture import SUFFIXES, fit, is_picture, is_skipped, read_picture
from sprat.errors import SpratError
from sprat.evaluation.evaluate import BATCH, predict_probabilities
from sprat.inference import WORTH_COMPILING, FrozenNetwork
from sprat.runtime import choose_device
from sprat.text import command

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Predictions(NamedTuple):
    """What pictures show, in their order."""

    labels: list[str]
    """The most probable class of each."""
    probabilities: Tensor
    """Of all classes, N x K, float32, on the CPU; each row sums to 1."""


class Classifier:
    """A trained model to ask. Threads may share one: they take turns at the network. It can be
    pickled, to be sent to another process.

        classifier = sprat.load()
        labels, probabilities = classifier(["cat.jpg", "dog.png"])

    Args:
        model: what `load_model` gives.
        device: cpu, cuda or mps; auto takes the first there is of cuda, mps, cpu.

    Raises:
        SpratError: the machine has no such device.
    """

    def __init__(self, model: Model, device: str = "auto") -> None:
        self.name, self.classes, self.side = model.name, model.classes, model.side
        self.about = model.about  # how it was trained
        self._normalization = model.normalization
        self._frozen = FrozenNetwork(model.network.to(choose_device(device)).eval())
        self._turn = Lock()

    def __call__(self, images: Picture | Iterable[Picture], tta: int = 1) -> Predictions:
        """Labels and probabilities of one picture or of many, as a batch in any case.

        Args:
            images: a path, a PIL image, an array (uint8, H x W x 3, H x W, or N x H x W x 3), a
                tensor (uint8, 3 x H x W or N x 3 x H x W), or several of these one after another.
                What is not `side` pixels square is cropped to its middle square and resized.
            tta: how many views of each are averaged: 1, 2, 6, 8, 10 or 26.

        Raises:
            SpratError: there is no picture, one cannot be read, an array is of another dtype or
                shape, or there is no such set of views.
        """
        views, pixels = find_views(tta), to_pixels(images, self.side)
        with self._turn:
            probabilities = predict_probabilities(self._frozen, pixels, self._normalization, views)
        labels = [self.classes[label] for label in probabilities.argmax(1).tolist()]
        return Predictions(labels, probabilities)

    def prepare(self) -> None:
        """Compile the network's kernels now, if they can be and are not yet, for many pictures to
        come; otherwise that happens after some."""
        self._frozen.expect(WORTH_COMPILING)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=Lock())

    def __repr__(self) -> str:
        return f"Classifier({self.name}: {len(self.classes)} classes, {self.side} px)"


def to_pixels(images: Picture | Iterable[Picture], side: int) -> Tensor:
    """Pictures as a network is to see them: uint8, N x 3 x side x side, on the CPU.

    Raises:
        SpratError: as `Classifier`.
    """
    if isinstance(images, str | Path):
        return read_picture(Path(images), side)[None]
    if isinstance(images, Image.Image):
        return fit(images, side)[None]
    if isinstance(images, Tensor):
        return _fit_all(images.detach().cpu(), side)
    if isinstance(images, np.ndarray):
        if images.ndim == 2:  # grey
            images = images[..., None].repeat(3, axis=-1)
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] != 3:
            raise SpratError(
                f"an array is {images.dtype} of shape {images.shape}, expected uint8 (0 to 255) of "
                "height x width x 3, or many of them: N x height x width x 3"
            )
        return _fit_all(torch.tensor(images).movedim(-1, -3), side)
    if not isinstance(images, Iterable):
        raise SpratError(
            f"{images!r} is no picture; give a path, a PIL image, a uint8 array or tensor, or a "
            "list of them"
        )
    parts = [to_pixels(image, side) for image in images]
    if not parts:
        raise SpratError("there is no picture to look at; give at least one")
    return torch.cat(parts)


def _fit_all(images: Tensor, side: int) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or images.shape[-3] != 3:
        raise SpratError(
            f"a tensor is {images.dtype} of shape {tuple(images.shape)}, expected torch.uint8 (0 "
            "to 255) of 3 x height x width, or many of them: N x 3 x height x width"
        )
    if not images.numel():
        raise SpratError(f"a batch of shape {tuple(images.shape)} holds no pixel; give some")
    batch = images if images.ndim == 4 else images[None]
    if batch.shape[-2:] == (side, side):
        return batch
    return torch.stack(
        [fit(Image.fromarray(image.permute(1, 2, 0).numpy()), side) for image in batch]
    )


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """The files among `paths`, and the pictures directly in each folder, sorted.

    Raises:
        SpratError: a path does not exist, or a folder cannot be read or holds no picture.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = [p for p in _listed(path) if not p.is_dir() and is_picture(p)]
            if not inside:
                raise SpratError(
                    f"the folder {path} holds no picture ({', '.join(sorted(SUFFIXES))})"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise SpratError(f"there is no file or folder {path}")
    return found


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not is_skipped(path.name))
    except OSError as error:
        raise SpratError(
            f"{folder} cannot be read: {error.strerror}; give yourself the right to: "
            f"{command('chmod', 'u+rx', folder)}"
        ) from error


def predict_pictures(
    model: Model, paths: Sequence[Path], top: int
) -> Iterator[dict[str, Any] | SpratError]:
    """Yields for each path, in order, what it shows or why it could not be read.

    Args:
        top: how many classes, the most probable first.

    Yields:
        {"file": str, "predictions": [{"class": str, "probability": float}, …]}, or the error.
    """
    frozen = FrozenNetwork(model.network)
    frozen.expect(len(paths))
    remaining = iter(paths)
    while chunk := list(islice(remaining, BATCH)):
        outcomes = [_read_or_error(path, model.side) for path in chunk]
        pictures = [outcome for outcome in outcomes if isinstance(outcome, Tensor)]
        if pictures:
            stacked = torch.stack(pictures)
            rows = iter(predict_probabilities(frozen, stacked, model.normalization))
        for path, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, SpratError):
                yield outcome
                continue
            probabilities, labels = next(rows).topk(min(top, len(model.classes)))
            yield {
                "file": str(path),
                "predictions": [
                    {"class": model.classes[label], "probability": probability}
                    for probability, label in zip(
                        probabilities.tolist(), labels.tolist(), strict=True
                    )
                ],
            }


def _read_or_error(path: Path, side: int) -> Tensor | SpratError:
    try:
        return read_picture(path, side)
    except SpratError as error:
        return error
