"""The exported graph: the network with normalisation before it and softmax after it."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sprat import __version__
from sprat.augment.transforms import normalize
from sprat.checkpoint import Model, metadata
from sprat.data.imageset import Images, ImageSet, Normalization
from sprat.evaluation.ranges import calibration_images

if TYPE_CHECKING:
    from sprat.deploy import Options

METADATA = "sprat"  # the key of the JSON that describes a model, as in model.safetensors

CHANNELS = {1: "1 (grey)", 3: "3 (red, green, blue)"}  # descriptions of images

Run = Callable[[Tensor], Tensor]  # from a graph's input to its output


class Graph(nn.Module):
    """A network from uint8 images B x C x side x side to probabilities B x K.

    Args:
        normalization: None for the raw graph, from normalised float32 images to logits.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, normalization: Normalization | None) -> None:
        super().__init__()
        self.network = network
        self.raw = normalization is None
        if normalization is not None:
            mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
            self.register_buffer("shift", (mean * 255).view(1, -1, 1, 1))
            self.register_buffer("scale", (1 / (std * 255)).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.raw:
            return self.network(images)
        return self.network((images.float() - self.shift) * self.scale).softmax(1)


@dataclass(frozen=True)
class Source:
    """A model as the formats receive it.

    graph: a copy of the model's network, on the CPU, in evaluation mode. training: images to
    calibrate on, for formats that need some. log: called with a description of each stage.
    """

    model: Model
    graph: Graph
    options: Options
    training: ImageSet | None = None
    log: Callable[[str], None] = lambda doing: None

    @classmethod
    def of(
        cls,
        model: Model,
        options: Options,
        training: ImageSet | None = None,
        log: Callable[[str], None] = lambda doing: None,
    ) -> Source:
        """Return the source for a model, which is not changed."""
        network = copy.deepcopy(model.network).cpu().eval()
        graph = Graph(network, None if options.raw else model.normalization).eval()
        return cls(model, graph, options, training, log)

    def calibration(self) -> Images:
        """Return training images to calibrate on, stratified by class."""
        assert self.training is not None
        images = calibration_images(self.training)
        self.log(f"calibrating on {len(images):,} images")
        return images

    @property
    def output(self) -> str:
        """Name of the graph's output."""
        return "logits" if self.graph.raw else "probabilities"

    def about(self) -> str:
        """Return the JSON about the model, its input and its output that a file contains."""
        side = self.model.side
        what = "float32, normalised by mean and std" if self.graph.raw else "uint8, 0 to 255"
        described: dict[str, Any] = metadata(self.model) | {
            "input": f"images: {what}, batch x {CHANNELS[self.model.channels]} x {side} x {side}",
            "output": f"{self.output}: float32, batch x {len(self.model.classes)}",
            "sprat": __version__,
        }
        return json.dumps(described)

    def program(self) -> torch.export.ExportedProgram:
        """Return the graph as a torch.export program, for batches of any size from 1 up."""
        side, dtype = self.model.side, torch.float32 if self.graph.raw else torch.uint8
        # two images: a size of 1 would be treated as fixed
        example = torch.zeros(2, self.model.channels, side, side, dtype=dtype)
        batch = {0: torch.export.Dim("batch", min=1)}
        program = torch.export.export(self.graph, (example,), dynamic_shapes=(batch,))
        for node in program.graph.nodes:  # contains paths of source files
            node.meta.pop("stack_trace", None)
        return program


def graph_input(images: Tensor, normalization: Normalization, raw: bool) -> Tensor:
    """Return a graph's input for uint8 images."""
    if not raw:
        return images
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    return normalize(images, mean, std).contiguous()


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Suppress messages of the exporter and the quantiser that are meant for developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch uses its own deprecated class when it copies a program
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
            yield
    finally:
        logging.disable(before)
