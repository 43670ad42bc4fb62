"""ONNX, for onnxruntime and many other runtimes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sprat import __version__
from sprat.deferred import deferred
from sprat.deploy.format import Format

if TYPE_CHECKING:
    import torch
    from onnx import ModelProto

    from sprat.deploy import graph as graphs
    from sprat.deploy.graph import Graph, Run, Source
else:
    torch, graphs = deferred("torch"), deferred("sprat.deploy.graph")

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET, IR_VERSION = 18, 8  # of ONNX 1.13, 2022, so that older runtimes read it; no node needs more


def write(source: Source, before: bytes) -> bytes:
    """Return an ONNX file; torch's optimiser folds BatchNorm into the preceding convolution."""
    with graphs.silenced():
        exported = torch.onnx.export(
            source.program(),
            dynamo=True,
            dynamic_shapes=({0: "batch"},),  # the name of that size in the file
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[source.output],
        )
    assert exported is not None
    proto = exported.model_proto
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # places in the source code: most of a small file
    del graph.value_info[:], graph.metadata_props[:]
    return described(proto, source)


def described(proto: ModelProto, source: Source) -> bytes:
    """Return the content of an ONNX file, with the model's description in its metadata."""
    del proto.metadata_props[:]
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "sprat", __version__
    proto.metadata_props.add(key=graphs.METADATA, value=source.about())
    return proto.SerializeToString()


def open_session(content: bytes, graph: Graph) -> Run:
    """Return the function that runs an ONNX file with onnxruntime, on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


ONNX = Format(
    name="onnx",
    about="ONNX in fp32",
    ending=".onnx",
    write=write,
    open=open_session,
    takes=("raw",),
    packages=PACKAGES,
    extra="export",
)
