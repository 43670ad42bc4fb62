"""Classification of pictures of any size and mode: files, images, arrays or tensors."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sprat.augment.views import Views, find_views
from sprat.checkpoint import Model
from sprat.data.imageset import to_channels
from sprat.data.picture import SUFFIXES, fit, is_picture, is_skipped, read_picture
from sprat.errors import SpratError, did_you_mean, shown
from sprat.evaluation.evaluate import BATCH, predict_probabilities
from sprat.evaluation.explain import ActivationMaps, Explanation, in_words
from sprat.inference import WORTH_COMPILING, FrozenNetwork
from sprat.readers import unlisted
from sprat.runtime import choose_device

Picture = str | Path | Image.Image | np.ndarray | Tensor


class Predictions(NamedTuple):
    """Predictions for pictures, in their order."""

    labels: list[str]
    """The most probable class of each."""
    probabilities: Tensor
    """Probabilities of all classes, N x K, float32, on the CPU; each row sums to 1."""


Guess = TypedDict("Guess", {"class": str, "probability": float})


class Prediction(TypedDict):
    """Prediction for one picture file."""

    file: str
    """Its path as given."""
    predictions: list[Guess]
    """The most probable classes, the most probable first; none if the file cannot be read."""
    where: NotRequired[str]
    """Description of where in the picture the evidence for the most probable class is, if
    requested."""
    map: NotRequired[str]
    """The PNG file that shows it."""
    error: NotRequired[str]
    """Why the file cannot be read, and what to do."""


class Classifier:
    """A trained model that classifies pictures. Several threads may share one classifier; they take
    turns. It can be pickled and sent to another process.

        classifier = sprat.load()
        labels, probabilities = classifier(["cat.jpg", "dog.png"])

    Args:
        model: what `load_model` returns.
        device: cpu, cuda or mps; auto: the first available of cuda, mps, cpu.

    Raises:
        SpratError: the machine has no such device.
    """

    def __init__(self, model: Model, device: str = "auto") -> None:
        self.name, self.classes = model.name, model.classes
        self.side, self.channels = model.side, model.channels
        self.about = model.about  # how it was trained
        self._normalization = model.normalization
        self._frozen = FrozenNetwork(model.network.to(choose_device(device)).eval())
        self._turn = Lock()

    def __call__(self, images: Picture | Iterable[Picture], tta: int = 1) -> Predictions:
        """Return labels and probabilities of one picture or several; the result is always a batch.

        Args:
            images: a path, a PIL image, an array (uint8, H x W x C, H x W, or N x H x W x C), a
                tensor (uint8, C x H x W or N x C x H x W), or several of these. C is 3, or 1 for
                grey. A picture that is not a square of `side` pixels is cropped to the square in
                its middle and resized. For a model of one channel, colour is converted to grey
                (luma).
            tta: number of views of each picture to average: 1, 2, 6, 8, 10 or 26.

        Raises:
            SpratError: there is no picture, a picture cannot be read, an array has another dtype or
                shape, or there is no such set of views.
        """
        views, pixels = find_views(tta), to_pixels(images, self.side, self.channels)
        probabilities = self._probabilities(pixels, views)
        labels = [self.classes[label] for label in probabilities.argmax(1).tolist()]
        return Predictions(labels, probabilities)

    def predict(
        self, files: str | Path | Sequence[str | Path], *, top: int = 3, tta: int = 1
    ) -> Iterator[Prediction]:
        """Yield a prediction for each file, in order. A file that cannot be read gets an error.

        Args:
            files: one picture or several, read in batches.
            top: number of classes per picture, the most probable first.
            tta: number of views of each picture to average: 1, 2, 6, 8, 10 or 26.

        Raises:
            SpratError: there is no such set of views.
        """
        views = find_views(tta)
        files = [files] if isinstance(files, str | Path) else files
        self._frozen.expect(len(files) * len(views))
        for start in range(0, len(files), BATCH):
            batch = files[start : start + BATCH]
            read = [_read_or_error(Path(file), self.side, self.channels) for file in batch]
            pictures = [picture for picture in read if isinstance(picture, Tensor)]
            if pictures:
                rows = iter(self._probabilities(torch.stack(pictures), views))
            for file, picture in zip(batch, read, strict=True):
                if isinstance(picture, SpratError):
                    error = f"{picture}. Give a picture instead, or leave it out."
                    yield {"file": str(file), "predictions": [], "error": error}
                else:
                    yield {"file": str(file), "predictions": self._guesses(next(rows), top)}

    def explain(
        self, images: Picture | Iterable[Picture], classes: Sequence[str] | None = None
    ) -> list[Explanation]:
        """Return where in each picture the evidence for a class is: a class activation map and its
        description in words. The map is exact for a single view and takes one forward pass.

        Args:
            images: as for a call of the classifier; a map covers what the network sees of a
                picture.
            classes: class to explain for each picture; by default the predicted one.

        Raises:
            SpratError: the network does not end in the mean of a map and one linear layer; there is
                no such class, or not one for each picture; or a picture cannot be read.
        """
        self.check_explains()
        pixels = to_pixels(images, self.side, self.channels)
        labels = None if classes is None else [self._label(name) for name in classes]
        if labels is not None and len(labels) != len(pixels):
            raise SpratError(
                f"classes has {len(labels)} names, but there are {len(pixels)} pictures. Give one "
                "class per picture."
            )
        with self._turn:
            found, maps = self._maps(pixels, labels)
        return [
            Explanation(self.classes[label], each, in_words(each))
            for label, each in zip(found.tolist(), maps, strict=True)
        ]

    def check_explains(self) -> None:
        """Check that the network supports `explain`.

        Raises:
            SpratError: it does not.
        """
        with self._turn:
            _ = self._maps

    @cached_property
    def _maps(self) -> ActivationMaps:
        return ActivationMaps(self._frozen.network, self._normalization, self.side)

    def _label(self, name: str) -> int:
        if name not in self.classes:
            raise SpratError(
                f"Unknown class {shown(name)}{did_you_mean(str(name), self.classes) or '.'} "
                f"Available: {', '.join(self.classes)}."
            )
        return self.classes.index(name)

    def _probabilities(self, pixels: Tensor, views: Views) -> Tensor:
        with self._turn:
            return predict_probabilities(self._frozen, pixels, self._normalization, views)

    def _guesses(self, probabilities: Tensor, top: int) -> list[Guess]:
        values, labels = probabilities.topk(min(top, len(self.classes)))
        return [
            {"class": self.classes[label], "probability": probability}
            for probability, label in zip(values.tolist(), labels.tolist(), strict=True)
        ]

    def prepare(self) -> None:
        """Compile the network's kernels now, if possible and not done yet. This pays off for many
        pictures; otherwise the kernels are compiled after some pictures."""
        self._frozen.expect(WORTH_COMPILING)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_turn"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _turn=Lock())

    def __repr__(self) -> str:
        return f"Classifier({self.name}: {len(self.classes)} classes, {self.side} px)"


def to_pixels(images: Picture | Iterable[Picture], side: int, channels: int = 3) -> Tensor:
    """Return pictures as a network takes them: uint8, N x channels x side x side, on the CPU.

    Raises:
        SpratError: as for `Classifier`.
    """
    if isinstance(images, str | Path):
        return read_picture(Path(images), side, channels)[None]
    if isinstance(images, Image.Image):
        return fit(images, side, channels)[None]
    if isinstance(images, Tensor):
        return _fit_all(images.detach().cpu(), side, channels)
    if isinstance(images, np.ndarray):
        if images.ndim == 2:  # grey
            images = images[..., None]
        if images.dtype != np.uint8 or images.ndim not in (3, 4) or images.shape[-1] not in (1, 3):
            raise SpratError(
                f"The array is {images.dtype} of shape {images.shape}, expected uint8 (0 to 255) "
                "of height x width x 3 (or 1), or a batch of N x height x width x 3. Convert the "
                "array."
            )
        return _fit_all(torch.tensor(images).movedim(-1, -3), side, channels)
    if not isinstance(images, Iterable):
        raise SpratError(
            f"{shown(images)} is not a picture. Give a path, a PIL image, a uint8 array or tensor, "
            "or a list of them."
        )
    parts = [to_pixels(image, side, channels) for image in images]
    if not parts:
        raise SpratError("There is no picture to classify. Give at least one.")
    return torch.cat(parts)


def _fit_all(images: Tensor, side: int, channels: int) -> Tensor:
    if images.dtype != torch.uint8 or images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        raise SpratError(
            f"The tensor is {images.dtype} of shape {tuple(images.shape)}, expected torch.uint8 (0 "
            "to 255) of 3 (or 1) x height x width, or a batch of N x 3 x height x width. Convert "
            "the tensor."
        )
    if not images.numel():
        raise SpratError(
            f"A batch of shape {tuple(images.shape)} contains no pixels. Give at least one image."
        )
    batch = images if images.ndim == 4 else images[None]
    if batch.shape[-2:] == (side, side):
        return to_channels(batch, channels)
    pixels = to_channels(batch, 3).movedim(1, -1).numpy()
    return torch.stack([fit(Image.fromarray(image), side, channels) for image in pixels])


def find_pictures(paths: Sequence[Path]) -> list[Path]:
    """Return the files among `paths`, and the pictures in folders and their subfolders, sorted.

    Raises:
        SpratError: a path does not exist, or a folder cannot be read or contains no picture.
    """
    found = []
    for path in paths:
        if path.is_dir():
            inside = [file for file in _files_in(path) if is_picture(file)]
            if not inside:
                raise SpratError(
                    f"The folder {path} and its subfolders contain no picture "
                    f"({', '.join(sorted(SUFFIXES))}). Name a folder that does."
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise SpratError(f"There is no file or folder {path}. Check its name.")
    return found


def _files_in(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted; each folder counts once, so a link
    to a parent folder does no harm."""
    files: list[Path] = []
    folders, seen = [folder], {folder.resolve()}
    while folders:
        for path in _listed(folders.pop()):
            if not path.is_dir():
                files.append(path)
            elif (place := path.resolve()) not in seen:
                seen.add(place)
                folders.append(path)
    return sorted(files)


def _listed(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not is_skipped(path.name)]
    except OSError as error:
        raise unlisted(folder, error) from error


def _read_or_error(path: Path, side: int, channels: int) -> Tensor | SpratError:
    try:
        return read_picture(path, side, channels)
    except SpratError as error:
        return error
