"""Head start: a run starts from a trained model's weights instead of random ones."""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import StartRecord
from sprat.models import NetworkConfig, build_network
from sprat.training.trained import Trained


class HeadStart(Trained):
    """A trained model whose weights a run starts from."""

    def check(self, dataset: Dataset, final: bool) -> None:
        """Check that the model has not seen the images that the run is evaluated on.

        Raises:
            SpratError: it was trained on all training images, including the run's val.
        """
        about = self.model.about
        if about.get("dataset_md5") != dataset.md5 or about.get("test_top1") is None or final:
            return
        raise SpratError(
            f"The model to start from, {self.model.name}, was trained on all training images of "
            f"this {dataset.name}, including those of val, so the run's accuracy on val would be "
            "too high. Add --final, or start from a model trained without it."
        )

    @torch.no_grad()
    def give(
        self, network: nn.Module, config: NetworkConfig, classes: tuple[str, ...]
    ) -> StartRecord:
        """Copy all tensors with the same name and shape into a network; return what was copied.

        The classifier's weights of each class are copied only if the class names are the same, and
        are reordered if their order differs.

        Args:
            network: built from `config` for as many classes; changed in place.

        Raises:
            SpratError: no convolution or linear layer before the classifier fits.
        """
        given = self.model.network.state_dict()
        of_classes, order = class_axes(config, len(classes)), self._order(classes)
        taken: list[str] = []
        new: list[str] = []
        for name, tensor in network.state_dict().items():
            source = given.get(name)
            if source is not None and name in of_classes:
                source = _in_order(source, of_classes[name], order)
            if source is None or source.shape != tensor.shape:
                new.append(name)
            else:
                tensor.copy_(source)
                taken.append(name)
        parameters = dict(network.named_parameters())
        sizes = {name: parameter.numel() for name, parameter in parameters.items()}
        layers = {name for name, parameter in parameters.items() if parameter.ndim > 1}
        if not layers.intersection(taken).difference(of_classes):
            raise SpratError(
                f"{config} has no weights in common with {self.model.name}, the model to start "
                "from: no convolution or linear layer has the same name and shape. Leave --model "
                "out to train the network of that model, or start from another."
            )
        return {
            **self.about,
            "dataset": self.model.about.get("dataset"),
            "classifier": _classifier(of_classes, new, order),
            "taken": taken,
            "taken_parameters": sum(sizes.get(name, 0) for name in taken),
            "new": new,
            "new_parameters": sum(sizes.get(name, 0) for name in new),
        }

    def _order(self, classes: tuple[str, ...]) -> list[int] | None:
        """Return the index of each class among the model's classes; None if the classes differ."""
        if set(classes) != set(self.model.classes):
            return None
        return [self.model.classes.index(name) for name in classes]


def class_axes(config: NetworkConfig, classes: int) -> dict[str, int]:
    """Return, by name, the tensors whose size depends on the number of classes, and the axis."""
    with torch.device("meta"):
        one, other = (build_network(config, count).state_dict() for count in (classes, classes + 1))
    return {
        name: axis
        for name, tensor in one.items()
        for axis, size in enumerate(tensor.shape)
        if name in other and other[name].shape[axis] != size
    }


def _classifier(
    of_classes: Iterable[str], new: list[str], order: list[int] | None
) -> Literal["kept", "reordered", "new"]:
    """Return what happened to the tensors with an axis of classes."""
    if not set(new).isdisjoint(of_classes):
        return "new"
    return "reordered" if order and order != sorted(order) else "kept"


def _in_order(source: Tensor, axis: int, order: list[int] | None) -> Tensor | None:
    """Return a tensor with its axis of classes reordered; None if it has none of that size."""
    if order is None or axis >= source.ndim or source.shape[axis] != len(order):
        return None
    return source.index_select(axis, torch.tensor(order))
