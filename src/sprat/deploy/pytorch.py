"""PyTorch's own formats: a torch.export program, and the weights alone."""

from __future__ import annotations

import copy
import io
from typing import TYPE_CHECKING

from sprat.deferred import deferred
from sprat.deploy.format import Format

if TYPE_CHECKING:
    import torch

    from sprat.deploy import graph as graphs
    from sprat.deploy.graph import Graph, Run, Source
else:
    torch, graphs = deferred("torch"), deferred("sprat.deploy.graph")

# Both are written to memory, since they would contain the name of a file on disk.


def write_program(source: Source, before: bytes) -> bytes:
    """Return a torch.export file, with the model's description in its extra files."""
    written = io.BytesIO()
    described = {graphs.METADATA: source.about()}
    torch.export.save(source.program(), written, extra_files=described)
    return written.getvalue()


def open_program(content: bytes, graph: Graph) -> Run:
    """Return the function that runs a torch.export file."""
    return torch.export.load(io.BytesIO(content)).module()


def write_weights(source: Source, before: bytes) -> bytes:
    """Return a file with the network's state_dict."""
    written = io.BytesIO()
    torch.save(source.graph.network.state_dict(), written)
    return written.getvalue()


def open_weights(content: bytes, graph: Graph) -> Run:
    """Return a copy of the graph with the weights of a file."""
    reloaded = copy.deepcopy(graph)
    reloaded.network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return reloaded


PT2 = Format(
    name="pt2",
    about="a torch.export program",
    ending=".pt2",
    write=write_program,
    open=open_program,
    takes=("raw",),
)
PTH = Format(
    name="pth",
    about="a state dict",
    ending=".pth",
    write=write_weights,
    open=open_weights,
)
