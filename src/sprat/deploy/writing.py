"""Export of a trained model to a format that runs without sprat.

Every file is written next to its destination, read back and compared with PyTorch on real images;
only a file that agrees is moved to its destination.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sprat.budget import check_limits, summarize
from sprat.checkpoint import Model
from sprat.data import FALLBACK
from sprat.data.imageset import Images, ImageSet
from sprat.deploy import FORMATS, Format, Options, check_options, check_output
from sprat.deploy.agreement import (
    ClassDrop,
    Contender,
    agreement,
    answers,
    check_alike,
    check_class_drop,
    check_drop,
    check_same,
    compared_images,
    latencies,
)
from sprat.deploy.c.compiler import Compiled
from sprat.deploy.format import Content
from sprat.deploy.graph import Run, Source, graph_input
from sprat.errors import SpratError
from sprat.evaluation.evaluate import predict_probabilities, top1
from sprat.files import replacing, replacing_folder


@dataclass(frozen=True)
class Exported:
    """An exported file, and how it compares with PyTorch."""

    path: Path
    format: str
    raw: bool
    n: int
    """Number of images compared."""
    same_top1: float
    """Share of the images that get the same class as in PyTorch."""
    largest_difference: float
    """Largest difference between probabilities."""
    contenders: tuple[Contender, ...]
    """Size, speed and accuracy of each form, PyTorch first."""
    model: str = ""
    dataset: str = FALLBACK
    """Name of the dataset of the compared images."""
    split: str = "drawings"
    """Split of the compared images: test, val or drawings."""
    worst_class: ClassDrop | None = None
    """The class whose accuracy drops most; None if all predictions agree."""
    compiled: Compiled | None = None
    """Memory of the compiled C code, if requested."""


def export(
    model: Model,
    path: Path,
    format: str = "onnx",
    options: Options = Options(),  # noqa: B008
    *,
    compared: ImageSet | None = None,
    training: ImageSet | None = None,
    overwrite: bool = False,
    log: Callable[[str], None] = lambda doing: None,
) -> Exported:
    """Write a model in another format, if the file agrees with PyTorch.

    Args:
        path: file to write, or folder if the format has several files, with the format's ending.
        format: a name of `FORMATS`.
        compared: labelled images of the model's classes, of which 1,000 are compared; by default
            drawings of shapes10, for which no accuracy is measured.
        training: images to calibrate on, for formats that need some, none of them in `compared`; by
            default the ranges stored with the model are used, if the format supports that.
        overwrite: whether to replace an existing file, or a folder that contains only an export.
        log: called with a description of each stage.

    Raises:
        SpratError: as for `check_options`, `check_output` and `check_model`; there are no images to
            calibrate on; the compiler fails; or the file does not agree with PyTorch (an exact
            format on each image's class, and to 1e-4 on every probability). In these cases, nothing
            is written.
    """
    check_options(format, options)
    check_output(path, format, overwrite, options)
    check_model(model, format, options)
    wanted = FORMATS[format]
    stored = wanted.stored_ranges and model.ranges is not None
    if wanted.calibrated and not stored and (training is None or compared is None):
        exact = ", ".join(name for name, each in FORMATS.items() if not each.calibrated)
        raise SpratError(
            f"The format {format} is calibrated on training images of the model's dataset and "
            "compared on others, but there are none. Give the dataset, or choose another format: "
            f"{exact}."
        )
    source = Source.of(model, options, training, log)
    network, normalization, raw = source.graph.network, model.normalization, options.raw
    seen = compared_images(model.side, model.channels, compared)

    log(f"writing {format}")
    contents, compiled = _contents(wanted, source), None
    if options.compile and wanted.compile:
        log("compiling")
        compiled = wanted.compile(contents[format], options)
    names = wanted.names(options) if wanted.names else ()
    with _placing(path, contents[format], names) as contents[format]:
        runs: dict[str, Run] = {"torch": source.graph}
        runs |= {
            name: FORMATS[name].open(content, source.graph) for name, content in contents.items()
        }
        log(f"comparing {len(seen):,} images")
        expected = predict_probabilities(network, seen.images, normalization)
        given = {"torch": expected}
        for name in contents:
            given[name] = answers(runs[name], seen.images, normalization, raw)
            if FORMATS[name].exact:
                check_same(name, given[name], expected)
        accuracy = {
            name: None if compared is None else top1(probabilities, seen.targets)
            for name, probabilities in given.items()
        }
        before, after = accuracy["torch"], accuracy[format]
        worst = None
        if not wanted.exact and before is not None and after is not None:
            check_drop(format, after, before, options.max_drop, len(seen))
            worst = check_class_drop(format, given[format], expected, seen, options.max_class_drop)
        elif not wanted.exact:
            check_alike(format, given[format], expected)
        log("timing one image")
        timed = {name: run for name, run in runs.items() if name == "torch" or FORMATS[name].timed}
        milliseconds = latencies(timed, graph_input(seen.images[:1], normalization, raw))
    sizes = {"torch": sum(t.nbytes for t in network.state_dict().values())}
    sizes |= {name: FORMATS[name].size(content) for name, content in contents.items()}
    same, difference = agreement(given[format], expected)
    return Exported(
        path=path,
        format=format,
        raw=raw,
        n=len(seen),
        same_top1=same,
        largest_difference=difference,
        contenders=tuple(
            Contender(name, sizes[name], milliseconds.get(name), accuracy[name]) for name in runs
        ),
        worst_class=worst,
        compiled=compiled,
    )


def check_model(model: Model, format: str, options: Options) -> None:
    """Check that a model can be exported, before any image is loaded.

    Raises:
        SpratError: the format does not support the model, or the model exceeds a limit.
    """
    FORMATS[format].check(model, options)
    limits = {"max_parameters": options.max_parameters, "max_macs": options.max_macs}
    if not any(limits.values()):
        return
    for verdict in check_limits(limits, summarize(model.network, model.side)):
        if not verdict.kept:
            raise SpratError(
                f"{model.name} has {verdict.achieved} {verdict.metric}, expected "
                f"{verdict.target} (--max-{verdict.metric.lower()}). Choose a smaller network, or "
                "raise the limit."
            )


def probabilities_by(format: str, model: Model, images: Images, training: ImageSet) -> Tensor:
    """Return the probabilities (N x K, float32) of uint8 images by a model exported to a format.

    Args:
        images: uint8, N x C x H x W.
        training: images to calibrate on, if the format needs some.
    """
    source = Source.of(model, Options(), training)
    content = _contents(FORMATS[format], source)[format]
    run = FORMATS[format].open(content, source.graph)
    return answers(run, images, model.normalization, raw=False)


@contextlib.contextmanager
def _placing(path: Path, content: Content, names: Collection[str]) -> Iterator[Content]:
    """Write a content next to its destination and yield what is read back; move it to its
    destination only if the block ends without an error.

    Args:
        names: names in a folder that may be replaced.
    """
    if isinstance(content, bytes):
        with replacing(path, size=len(content)) as temporary:
            temporary.write_bytes(content)
            yield temporary.read_bytes()
        return
    with replacing_folder(path, names) as temporary:
        for name, part in content.items():
            (temporary / name).write_bytes(part)
        yield {name: (temporary / name).read_bytes() for name in content}


def _contents(format: Format, source: Source) -> dict[str, Content]:
    """Return the contents of a format and of those it is made from, the latter first."""
    contents = _contents(format.made_from, source) if format.made_from else {}
    before = contents[format.made_from.name] if format.made_from else b""
    return contents | {format.name: format.write(source, before)}
