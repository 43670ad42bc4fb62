"""Quantisation to int8: ONNX whose convolutions and products are computed in 8 bits."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from typing import TYPE_CHECKING, Any

from sprat.deferred import deferred
from sprat.deploy import onnx as fp32
from sprat.deploy.format import Format
from sprat.files import temporary_folder

if TYPE_CHECKING:
    from onnx import GraphProto, TensorProto

    from sprat.deploy import graph as graphs
    from sprat.deploy.graph import Source
else:
    graphs = deferred("sprat.deploy.graph")

# Operators computed in int8. Softmax is not: with it, probabilities are much farther from fp32's.
# Depthwise layers in fp32, or ranges by entropy or high percentiles instead of extremes, made no
# difference that could be distinguished.
OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat", "MaxPool", "AveragePool",
)  # fmt: skip


def write(source: Source, before: bytes) -> bytes:
    """Return the ONNX file `before` quantised, by the range of each activation on training images.

    Weights are symmetric, with one scale for each channel, and stored as uint8 around 128: with
    int8, processors without VNNI add two products in 16 bits, which saturates, so that predictions
    differ from those of a processor with VNNI. There, uint8 is somewhat slower than int8.
    reduce_range (seven bits of int8) is not, but it is less accurate on all processors.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    from sprat.evaluation.ranges import GROUP

    batches = source.calibration().split(GROUP)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            if batch is None:
                return None
            taken = graphs.graph_input(batch, source.model.normalization, source.graph.raw)
            return {"images": taken.numpy()}

    with temporary_folder() as folder, graphs.silenced():
        written = folder / "int8.onnx"
        quantize_static(
            onnx.load_from_string(before),
            written,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(OPERATORS),
            per_channel=True,
            weight_type=QuantType.QUInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True, "CalibMovingAverage": True},
        )
        quantized = onnx.load(written)
    del quantized.graph.value_info[:]
    shorten(quantized.graph)
    return fp32.described(quantized, source)


def shorten(graph: GraphProto) -> None:
    """Remove redundant parts of a quantised graph, in place; its outputs do not change.

    Names and repeated constants are two fifths of a small network's file. Equal constants are
    stored once, zero points of biases (always 0) not at all; nodes lose their names, and values
    except the graph's input and output get names of one or two letters.
    """
    from onnx.numpy_helper import to_array

    kept: dict[tuple[Any, ...], TensorProto] = {}  # by content
    first: dict[str, str] = {}  # from each constant's name to that of the first equal one
    zeros = set()
    for constant in graph.initializer:
        values = to_array(constant)
        same = kept.setdefault((values.dtype, values.shape, values.tobytes()), constant)
        first[constant.name] = same.name
        if values.dtype == "int32" and not values.any():  # of biases; the type of others matters
            zeros.add(same.name)
    uses: Counter[str] = Counter()
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [first.get(name, name) for name in node.input]
        if node.op_type == "DequantizeLinear" and node.input[2:] and node.input[2] in zeros:
            del node.input[2]  # absent, it is 0
        uses.update((*node.input, *node.output))
    letters = (
        "".join(word)
        for length in itertools.count(1)
        for word in itertools.product(string.ascii_letters, repeat=length)
    )
    names = {value.name: value.name for value in (*graph.input, *graph.output)}
    names[""] = ""  # an input that is left out
    for name, _ in uses.most_common():
        if name not in names:
            names[name] = next(letters)
    for node in graph.node:
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    constants = [constant for constant in kept.values() if constant.name in uses]
    for constant in constants:
        constant.name = names[constant.name]
    del graph.initializer[:]
    graph.initializer.extend(constants)


ONNX_INT8 = Format(
    name="onnx-int8",
    about="quantised to 8 bits",
    ending="-int8.onnx",
    write=write,
    open=fp32.open_session,
    made_from=fp32.ONNX,
    exact=False,
    calibrated=True,
    takes=("raw",),
    packages=fp32.PACKAGES,
    extra="export",
)
