"""Puts a trained model into formats that run without sprat: ONNX, int8 ONNX, torch.export, weights.

Every file is written beside its place, read back from there and compared with torch on real
images; only what agrees is put in place.
"""

import contextlib
import copy
import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat import __version__
from sprat.augment.transforms import normalize
from sprat.checkpoint import Model, metadata
from sprat.data import shapes10
from sprat.data.imageset import Images, ImageSet, Normalization, stratified_split
from sprat.errors import SpratError
from sprat.evaluation.evaluate import BATCH, predict_probabilities, top1
from sprat.files import replacing, temporary_folder
from sprat.formats import Format, check_options, check_output

if TYPE_CHECKING:
    from onnx import ModelProto

Run = Callable[[Tensor], Tensor]  # from a graph's input to its output

METADATA = "sprat"  # the key of the JSON that describes a model, as in model.safetensors
OPSET, IR_VERSION = 18, 8  # of ONNX 1.13, 2022, so that older runtimes read it; no node needs more
COMPARED = 1_000  # images
CALIBRATION = 512  # images; the shipped model lost 0 to 0.2 points with 128 to 1,024, in no order
TOLERANCE = 1e-4  # between probabilities in fp32
TIMED_SECONDS = 1.0  # of all contenders together

# What is computed in int8. Softmax is not: with it, probabilities of the shipped model were four
# times as far from fp32's (Kullback-Leibler divergence on 5,000 training images, one try each, as
# all that follows). Ranges by extremes, moving average, entropy or percentiles from 99.99 % on, and
# depthwise layers in fp32, lost 0 to 0.2 points, too near to tell apart; percentile 99.9 lost 0.5.
INT8_OPERATORS = (
    "Conv", "Gemm", "MatMul", "Add", "Relu", "Clip", "Concat", "MaxPool", "AveragePool",
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """One form of a model, measured."""

    name: str
    bytes: int  # of the file; of torch, of its weights in memory
    ms_for_one_image: float  # median, on one thread
    top1: float | None  # on the compared images; None where they have no labels of the model's


@dataclass(frozen=True)
class Exported:
    """A file that was put in place, and how it compares."""

    path: Path
    format: Format
    raw: bool
    n: int  # images compared
    same_top1: float  # share of them that the file names as torch does
    largest_difference: float  # between probabilities
    contenders: tuple[Contender, ...]  # torch first
    model: str = ""
    dataset: str = "shapes10"  # of the compared images
    split: str = "drawings"  # test, val, or drawings of shapes10


class Graph(nn.Module):
    """What is exported: from uint8 images B x 3 x side x side to probabilities B x K.

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


def export(
    model: Model,
    path: Path,
    format: Format = "onnx",
    *,
    raw: bool = False,
    compared: ImageSet | None = None,
    training: ImageSet | None = None,
    max_drop: float = 2.0,
    overwrite: bool = False,
    tell: Callable[[str], None] = lambda doing: None,
) -> Exported:
    """Writes a model in another format, once it is seen to agree with torch.

    Args:
        path: ends in .onnx, .pt2 or .pth, as the format asks.
        format: onnx; onnx-int8, quantised; pt2, a program of torch.export; pth, a state_dict.
        raw: takes normalised float32 images and gives logits, instead of uint8 and probabilities.
        compared: labelled images of the model's classes, of which 1,000 are compared; drawings of
            shapes10 without it, which tell no accuracy.
        training: images that onnx-int8 is calibrated on, never among `compared`.
        max_drop: points of accuracy that int8 may lose.
        overwrite: whether a file that exists may be replaced.
        tell: is told what is being done.

    Raises:
        SpratError: as `check`; int8 has no images; or the file does not agree with torch: in fp32,
            on each image's class and by 1e-4 on every probability. Nothing is put in place then.
    """
    check_options(format, raw, max_drop)
    check_output(path, format, overwrite)
    if format == "onnx-int8" and (training is None or compared is None):
        raise SpratError(
            "onnx-int8 is calibrated on training images of the model's dataset, and judged on "
            "others, and there are none; give the dataset, or take the format onnx"
        )
    network = copy.deepcopy(model.network).cpu().eval()
    graph = Graph(network, None if raw else model.normalization).eval()
    seen = _compared_images(model, compared)

    tell(f"writing {format}")
    contents = _contents(model, graph, format, training, tell)
    with replacing(path, size=len(contents[format])) as beside:
        beside.write_bytes(contents[format])
        contents[format] = beside.read_bytes()
        runs: dict[str, Run] = {"torch": graph}
        runs |= {name: _open(content, name, graph) for name, content in contents.items()}
        tell(f"comparing {len(seen):,} images")
        expected = predict_probabilities(network, seen.images, model.normalization)
        answers = {"torch": expected}
        for name in contents:
            answers[name] = _answers(runs[name], seen.images, model.normalization, raw)
            if name != "onnx-int8":
                _check_same(name, answers[name], expected)
        accuracy = {
            name: None if compared is None else top1(probabilities, seen.targets)
            for name, probabilities in answers.items()
        }
        if format == "onnx-int8":
            _check_drop(accuracy, max_drop, len(seen))
        tell("timing one image")
        milliseconds = _latencies(runs, _inputs(seen.images[:1], model.normalization, raw))
    sizes = {"torch": sum(t.nbytes for t in network.state_dict().values())}
    sizes |= {name: len(content) for name, content in contents.items()}
    same, difference = _agreement(answers[format], expected)
    return Exported(
        path=path,
        format=format,
        raw=raw,
        n=len(seen),
        same_top1=same,
        largest_difference=difference,
        contenders=tuple(
            Contender(name, sizes[name], milliseconds[name], accuracy[name]) for name in runs
        ),
    )


def int8_probabilities(model: Model, images: Images, training: ImageSet) -> Tensor:
    """Return the probabilities N x K that the model's onnx-int8 file gives uint8 images.

    Args:
        images: N x 3 x H x W.
        training: images to calibrate on, of which 512 are used.
    """
    graph = Graph(copy.deepcopy(model.network).cpu().eval(), model.normalization).eval()
    contents = _contents(model, graph, "onnx-int8", training, lambda doing: None)
    run = _open(contents["onnx-int8"], "onnx-int8", graph)
    return _answers(run, images, model.normalization, raw=False)


def _contents(
    model: Model,
    graph: Graph,
    format: Format,
    training: ImageSet | None,
    tell: Callable[[str], None],
) -> dict[Format, bytes]:
    """The file of a format; before that of int8, the one in fp32 that it is made of.

    Files of torch are written into memory, or the name of a file beside would be found in them.
    """
    written = io.BytesIO()
    if format == "pth":
        torch.save(graph.network.state_dict(), written)
        return {format: written.getvalue()}
    program = _program(graph, model.side)
    about = json.dumps(_described(model, graph.raw))
    if format == "pt2":
        torch.export.save(program, written, extra_files={METADATA: about})
        return {format: written.getvalue()}
    proto = _to_onnx(program, graph.raw, about)
    contents: dict[Format, bytes] = {"onnx": proto.SerializeToString()}
    if format == "onnx-int8":
        assert training is not None
        tell(f"calibrating on {min(CALIBRATION, len(training)):,} images")
        quantized = _quantized(proto, model.normalization, training, graph.raw)
        _describe(quantized, about)
        contents[format] = quantized.SerializeToString()
    return contents


def _described(model: Model, raw: bool) -> dict[str, Any]:
    """What a file says of itself, beside what a model's own says."""
    side = model.side
    what = "float32, normalised by mean and std" if raw else "uint8, 0 to 255"
    return metadata(model) | {
        "input": f"images: {what}, batch x 3 (red, green, blue) x {side} x {side}",
        "output": f"{_output(raw)}: float32, batch x {len(model.classes)}",
        "sprat": __version__,
    }


def _output(raw: bool) -> str:
    return "logits" if raw else "probabilities"


def _compared_images(model: Model, compared: ImageSet | None) -> ImageSet:
    """The images of `compared` that count, each class its share; or as many drawings."""
    if compared is None:
        drawn, _ = shapes10.load(train_images=COMPARED, test_images=len(shapes10.CLASSES))
        resized = F.interpolate(
            drawn.images[:].float(), size=(model.side, model.side), mode="bilinear", antialias=True
        )
        return ImageSet(resized.round().clamp(0, 255).byte(), drawn.targets, drawn.classes)
    _, chosen = stratified_split(compared.targets, min(COMPARED, len(compared)), seed=0)
    return compared.subset(chosen)


def _inputs(images: Tensor, normalization: Normalization, raw: bool) -> Tensor:
    """What a graph takes, of uint8 images."""
    if not raw:
        return images
    mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
    return normalize(images, mean, std).contiguous()


@torch.inference_mode()
def _answers(run: Run, images: Images, normalization: Normalization, raw: bool) -> Tensor:
    """Probabilities N x K."""
    parts = [run(_inputs(batch, normalization, raw)) for batch in images.split(BATCH)]
    return torch.cat(parts).softmax(1) if raw else torch.cat(parts)


def _program(graph: Graph, side: int) -> torch.export.ExportedProgram:
    """The graph as torch.export has it, for batches of any size from 1 up."""
    dtype = torch.float32 if graph.raw else torch.uint8
    # of two images: a size of 1 would be taken for fixed
    example = torch.zeros(2, 3, side, side, dtype=dtype)
    batch = {0: torch.export.Dim("batch", min=1)}
    program = torch.export.export(graph, (example,), dynamic_shapes=(batch,))
    for node in program.graph.nodes:  # where each line of the source lies on this machine
        node.meta.pop("stack_trace", None)
    return program


def _to_onnx(program: torch.export.ExportedProgram, raw: bool, about: str) -> "ModelProto":
    """An ONNX model; its optimiser folds BatchNorm into the convolutions before it."""
    with _silenced():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            dynamic_shapes=({0: "batch"},),  # the name of that size in the file
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=[_output(raw)],
        )
    assert exported is not None
    proto = exported.model_proto
    graph = proto.graph
    for part in (*graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]  # whence each came in the source: most of a small file
    del graph.value_info[:], graph.metadata_props[:]
    _describe(proto, about)
    return proto


def _describe(proto: "ModelProto", about: str) -> None:
    del proto.metadata_props[:]
    proto.ir_version = IR_VERSION
    proto.producer_name, proto.producer_version = "sprat", __version__
    proto.metadata_props.add(key=METADATA, value=about)


def _quantized(
    proto: "ModelProto", normalization: Normalization, training: ImageSet, raw: bool
) -> "ModelProto":
    """The model in int8, by the range of every map over some training images.

    Weights are symmetric, a scale a channel, and stored as uint8 around 128: as int8, processors
    without VNNI add two products in 16 bits and cut off what exceeds them. On such a processor
    (emulated, SpratM, 400 test images) 4.3 % of the answers were then other than fp32's, with uint8
    0.5 % there as here. Where there is VNNI, uint8 takes 11 to 28 % longer than int8.
    reduce_range, seven bits of int8, does not, and is 1.5 times as far from fp32 (Kullback-Leibler
    divergence) everywhere.
    """
    import onnx
    from onnxruntime.quantization import (
        CalibrationDataReader,
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )

    count = min(CALIBRATION, len(training))
    _, chosen = stratified_split(training.targets, count, seed=0)
    batches = training.subset(chosen).images.split(BATCH)

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Any] | None:
            batch = next(batches, None)
            if batch is None:
                return None
            return {"images": _inputs(batch, normalization, raw).numpy()}

    unchanged = onnx.ModelProto()
    unchanged.CopyFrom(proto)  # it is changed by what quantises
    with temporary_folder() as folder, _silenced():
        written = folder / "int8.onnx"
        quantize_static(
            unchanged,
            written,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(INT8_OPERATORS),
            per_channel=True,
            weight_type=QuantType.QUInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"WeightSymmetric": True},
        )
        quantized = onnx.load(written)
    del quantized.graph.value_info[:]
    return quantized


def _open(content: bytes, format: Format, graph: Graph) -> Run:
    """What runs a file of these bytes."""
    if format == "pt2":
        return torch.export.load(io.BytesIO(content)).module()
    if format == "pth":
        reloaded = copy.deepcopy(graph)
        reloaded.network.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
        return reloaded

    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _agreement(answers: Tensor, expected: Tensor) -> tuple[float, float]:
    """The share of images whose class is the same, and the largest difference of probabilities."""
    difference = (answers - expected).abs().max().item()
    return top1(answers, expected.argmax(1)), difference


def _check_same(name: str, answers: Tensor, expected: Tensor) -> None:
    same, difference = _agreement(answers, expected)
    if same < 1 or not difference < TOLERANCE:  # what is no number is not below it either
        others = round((1 - same) * len(expected))
        raise SpratError(
            f"the model as {name} does not agree with torch: {others:,} of {len(expected):,} "
            f"images are named otherwise, probabilities differ by up to {difference:.2g}; expected "
            f"none, and less than {TOLERANCE:.0e}. Nothing was written; take another format"
        )


def _check_drop(accuracy: dict[str, float | None], max_drop: float, n: int) -> None:
    before, after = accuracy["torch"], accuracy["onnx-int8"]
    assert before is not None
    assert after is not None
    drop = 100 * (before - after)
    if drop > max_drop:
        raise SpratError(
            f"in int8 the model names {100 * after:.2f} % of {n:,} images rightly, in fp32 "
            f"{100 * before:.2f} %: {drop:.2f} points less, expected at most {max_drop:g} "
            "(--max-drop); nothing was written. Take the format onnx, or allow more"
        )


@torch.inference_mode()
def _latencies(runs: dict[str, Run], image: Tensor) -> dict[str, float]:
    """Median milliseconds of one image on one thread, the contenders taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for run in runs.values():
            run(image)
        ends = time.perf_counter() + TIMED_SECONDS
        while time.perf_counter() < ends or not seconds["torch"]:
            for name, run in runs.items():
                began = time.perf_counter()
                run(image)
                seconds[name].append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {name: 1e3 * statistics.median(turns) for name, turns in seconds.items()}


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Keeps the exporter's and the quantiser's advice to their authors off the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            # torch's own call of its own deprecated class, when it copies a program
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)`", FutureWarning)
            yield
    finally:
        logging.disable(before)
