"""Functions that use a trained model: load, evaluate, predict, export."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sprat import names
from sprat.api.foreign import load_foreign
from sprat.api.images import (
    check_dataset,
    default_split,
    find_config,
    load_evaluated,
    load_images,
)
from sprat.data import FALLBACK, Dataset
from sprat.deferred import deferred
from sprat.deploy import DEFAULT, FORMATS, Format, Options, check_options, check_output
from sprat.errors import SpratError, did_you_mean
from sprat.evaluation.records import Evaluated, Evaluation, NetworkSpec
from sprat.foreign import Foreign
from sprat.models import find_name
from sprat.models.code import Code, is_own, use_all, use_networks
from sprat.settings.config import Config
from sprat.text import warn
from sprat.zoo import best, cards, is_model, locate

if TYPE_CHECKING:
    from sprat import classifier
    from sprat.checkpoint import Model
    from sprat.data.imageset import ImageSet
    from sprat.deploy import writing
else:
    classifier, writing = deferred("sprat.classifier"), deferred("sprat.deploy.writing")


class ModelEvaluation(Evaluation):
    """Evaluation of a model, with the model, the data and the measurements of results.json."""

    model: str
    network: NetworkSpec
    parameters: int
    macs: int | None
    receptive_field: int | None
    recipe: str | None
    side: int
    dataset: str
    split: Evaluated
    found: dict[str, Any] | None
    """Layout and parts of your own pictures; None for other datasets."""


def load(
    model: str | Path | None = None, device: str = "auto", *, code: Code = ()
) -> "classifier.Classifier":
    """Load a trained model, ready to classify pictures.

    Args:
        model: a model.safetensors, the folder of a finished run, or the name of a pretrained model;
            by default the most accurate pretrained one.
        device: cpu, cuda or mps; auto: the first available of cuda, mps, cpu.
        code: Python file or module that defines the model's network, if that is your own, or
            several of them; the file is run.

    Raises:
        SpratError: there is no such model or device, the file is damaged, or the model needs a
            network of your own that was not named.
    """
    use_all(code)
    place = best() if model is None else locate(str(model))

    from sprat.checkpoint import load_model

    return classifier.Classifier(load_model(place), device)


def evaluate(
    model: str | Path,
    *,
    split: Literal["auto", "val", "test", "all"] = "auto",
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    pictures: Mapping[str, Any] | None = None,
    tta: int | None = None,
    device: str = "auto",
    threads: int = 0,
    code: Code = (),
    quiet: bool = False,
    **foreign: Any,
) -> ModelEvaluation:
    """Evaluate a trained model: accuracy with its interval and per class, confusion matrix,
    calibration.

    Args:
        model: a model.safetensors, the folder of a finished run, or the name of a pretrained model.
            With `weights` that were trained elsewhere: the name of a network, or
            "my_nets.py:MyNet", whose file is run.
        split: test, val (images that the run held out) or all; auto: all of your own pictures if
            the model was not trained on them, else val if the run has one, else test.
        dataset: a name, the path of your own pictures, or a dataset in memory; by default the one
            that the model was trained on.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache or a download.
        pictures: settings of your own pictures to change, by name: {"label_column": "species"}.
        tta: number of views to average by test-time augmentation; by default that of the model's
            recipe, or 2.
        device: cpu, cuda or mps; auto: the first available of cuda, mps, cpu.
        threads: CPU threads, set for the whole process; 0: one per usable core.
        code: as for `load`.
        quiet: whether to show no progress on stderr.
        foreign: weights, key, mean, std, side, channels and classes of a network trained elsewhere,
            as for `import_model`; weights, mean and std are required. The default dataset is then
            CIFAR-10, and the default classes are those of the dataset, in its order.

    Returns:
        The values that `sprat evaluate --json` prints, with fractions from 0 to 1: model, recipe,
        side, dataset, split, top1, top1_ci95, tta_top1, tta_views, tta_p, n, per_class, confusion,
        ece, found (layout and parts of your own pictures, or None).

    Raises:
        SpratError: there is no such model, dataset, split or device; the dataset has classes that
            the model lacks; a file is damaged; or weights do not fit.
    """
    from sprat.runtime import check_threads, choose_device, keep_freed_memory, set_threads

    given, name = Foreign(**foreign), str(model)
    place = _locate(name, given, code)
    check_threads(threads)
    if tta is not None:
        names.check_views(tta)
    check_dataset(dataset)
    config = None if place is None else find_config(place)
    _check_split(split, config, model)

    from sprat.budget import costs
    from sprat.checkpoint import load_model
    from sprat.display import make_console, progress_bar
    from sprat.evaluation.evaluate import evaluate as evaluate_network

    keep_freed_memory()
    set_threads(threads)
    to, console = choose_device(device), make_console(stderr=True, quiet=quiet)
    if place is None:
        loaded, dataset = load_foreign(console, name, given, dataset, data_dir, pictures)
    else:
        loaded = load_model(place)
    views = tta or (config.tta if config else 2)
    chosen = load_evaluated(console, name, loaded, config, split, dataset, data_dir, pictures)
    images = chosen.images
    with progress_bar(console, f"evaluating on {chosen.split}", views * len(images)) as progress:
        network = loaded.network.to(to)
        evaluation = evaluate_network(network, images, loaded.normalization, views, progress)
    return {
        "model": loaded.name,
        "network": loaded.network_config.to_dict(),
        **costs(network, loaded.side),
        "recipe": loaded.about.get("recipe"),
        "side": loaded.side,
        "dataset": chosen.dataset,
        "split": chosen.split,
        "found": None if chosen.found is None else chosen.found.to_dict(),
        **evaluation,
    }


def _locate(model: str, given: Foreign, code: Code) -> Path | None:
    """Return the path of a model; None for a network that was trained elsewhere, whose code is run.

    Raises:
        SpratError: there is no such model or network, or settings of the weights are missing.
    """
    if given.given:
        given.check_given()
        use_networks([model], code)
        find_name(model)
        return None
    use_all(code)
    if is_own(model) and not Path(model).exists():
        raise SpratError(
            f"{model} is a network without weights. Give the file of its weights with --weights, "
            "or name a model that sprat trained."
        )
    return locate(model)


def _check_split(split: str, config: Config | None, model: str | Path) -> None:
    if split not in ("auto", "val", "test", "all"):
        raise SpratError(f"split is {split!r}, expected auto, val, test or all. Give one of these.")
    if split == "val" and default_split(config) != "val":
        raise SpratError(
            f"{model} has no val: it is not a run's folder, or the run was trained on all training "
            "images. Use --split test."
        )


def predict(
    *pictures: str | Path | Iterable[str | Path],
    model: str | Path | None = None,
    top: int = 3,
    tta: int = 1,
    explain: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    code: Code = (),
    quiet: bool = False,
    each: "Callable[[classifier.Prediction], object] | None" = None,
) -> "list[classifier.Prediction]":
    """Classify picture files of any size and mode.

    Args:
        pictures: files, folders of pictures, or lists of them. As on the command line, a model's
            file, run or name may come first.
        model: a model.safetensors, the folder of a finished run, or the name of a pretrained model;
            by default the most accurate pretrained one.
        top: number of classes to return for each picture, the most probable first.
        tta: number of views to average by test-time augmentation: 1, 2, 6, 8, 10 or 26.
        explain: folder to write a PNG for each picture to, showing where the evidence for the most
            probable class is. The folder is created if it does not exist.
        device: cpu, cuda or mps; auto: the first available of cuda, mps, cpu.
        threads: CPU threads, set for the whole process; 0: one per usable core.
        code: as for `load`.
        quiet: whether to show no progress on stderr.
        each: called with each prediction as soon as it is available.

    Returns:
        For each picture, in order, {"file": str, "predictions": [{"class": str, "probability":
        float}, …]}. A file that cannot be read has an "error" and no predictions. With `explain`,
        there is also "where", a description in words, and "map", the PNG.

    Raises:
        SpratError: there is no such model, device, file or set of views; no picture is given; a
            folder has none; `explain` would overwrite a file; or the network does not end in a mean
            over a map and one linear layer.
    """
    from sprat.runtime import check_threads, set_threads

    use_all(code)
    files = _flat(pictures)
    if model is None and files and is_model(str(files[0])):
        model, *files = files
    names.check_views(tta)
    check_threads(threads)
    if model is not None:
        locate(str(model))
    _check_predict(files, top, hint=model is None)

    from sprat.api import maps
    from sprat.display import make_console, progress_bar

    set_threads(threads)
    paths, found = classifier.find_pictures(files), []
    drawings = iter(() if explain is None else maps.plan(Path(explain), paths))
    asked = load(model, device)
    if explain is not None:
        asked.check_explains()
        maps.make_folder(Path(explain))
    console = make_console(stderr=True, quiet=quiet)
    with progress_bar(console, "classifying pictures", len(paths)) as progress:
        for prediction in asked.predict(paths, top=top, tta=tta):
            progress(1)
            if explain is not None:
                maps.draw(asked, prediction, next(drawings))
            if each:
                each(prediction)
            found.append(prediction)
    return found


def _flat(pictures: Iterable[str | Path | Iterable[str | Path]]) -> list[Path]:
    paths: list[Path] = []
    for each in pictures:
        if each == "":  # Path("") would be the current folder
            raise SpratError("The name of a picture is empty. Give a file or a folder.")
        paths += [Path(each)] if isinstance(each, str | Path) else map(Path, each)
    return paths


def _check_predict(files: list[Path], top: int, hint: bool) -> None:
    if top < 1:
        raise SpratError(f"--top is {top}, expected at least 1. Give a larger number.")
    if not files:
        raise SpratError("No picture is given. Give files or a folder: sprat predict cat.jpg")
    if missing := next((file for file in files if not file.exists()), None):
        pretrained = [card["name"] for card in cards()]
        meant = did_you_mean(str(missing), pretrained) if hint and missing == files[0] else ""
        raise SpratError(f"There is no file or folder {missing}{meant or '.'} Check its name.")


def export(
    model: str | Path,
    *,
    format: str = DEFAULT,
    output: str | Path | None = None,
    overwrite: bool = False,
    raw: bool = False,
    max_drop: float = 2.0,
    max_class_drop: float = 5.0,
    dataset: Dataset | str | Path | None = None,
    calibrate: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    code: Code = (),
    quiet: bool = False,
    **own: Any,
) -> "writing.Exported":
    """Export a model to a format that runs without sprat, after comparing it with PyTorch on 1,000
    images.

    Args:
        model: a model.safetensors, the folder of a finished run, or the name of a pretrained model.
        format: one of `sprat.deploy.FORMATS`; onnx by default.
        output: file to write; by default the model's name with the format's ending, in the
            current folder.
        overwrite: whether to replace an existing file.
        raw: whether the file takes normalised float32 images and returns logits; by default it
            takes uint8 images (0 to 255) and returns probabilities. Images are B x 3 x H x W.
        max_drop: maximum loss of accuracy in a format of lower precision, in percentage points, on
            the compared images.
        max_class_drop: the same for the images of any single class, beyond what chance explains.
        dataset: dataset used to compare the exported model: a name, a folder of your own pictures,
            or a dataset in memory; by default the one that the model was trained on. Its training
            images calibrate quantised formats, except c if the model contains the ranges of its
            activations.
        calibrate: dataset whose training images calibrate a quantised format, even if the model
            contains ranges.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache or a download.
        code: as for `load`.
        quiet: whether to show no progress on stderr.
        own: limits, and options that only some formats have, as named in `sprat.deploy.Options`.

    Raises:
        SpratError: there is no such model, format or dataset; a package is missing; the output
            exists; a quantised format has no images or loses too much accuracy, on average or in
            one class; a limit is exceeded; or the file does not agree with PyTorch. In these cases,
            nothing is written.
    """
    use_all(code)
    place = locate(str(model))
    options = Options(raw=raw, max_drop=max_drop, max_class_drop=max_class_drop, **own)
    check_options(format, options)
    if output is not None:
        check_output(Path(output), format, overwrite, options)
    check_dataset(dataset)
    _check_calibrate(format, calibrate)

    from sprat.checkpoint import load_model
    from sprat.display import doing, make_console
    from sprat.runtime import keep_freed_memory, set_threads

    keep_freed_memory()
    set_threads()
    loaded = load_model(place)
    path = Path(output or f"{loaded.name}{FORMATS[format].ending}")
    check_output(path, format, overwrite, options)  # before a download
    writing.check_model(loaded, format, options)
    console, config = make_console(stderr=True, quiet=quiet), find_config(place)
    images = functools.partial(load_images, console, str(model), loaded, config, data_dir=data_dir)
    name, split, compared, training = _images_for(
        FORMATS[format], loaded, str(model), images, default_split(config), dataset, calibrate
    )
    with doing(console, "exporting") as log:
        exported = writing.export(
            loaded,
            path,
            format,
            options,
            compared=compared,
            training=training,
            overwrite=overwrite,
            log=log,
        )
    return dataclasses.replace(exported, model=loaded.name, dataset=name, split=split)


def _check_calibrate(format: str, calibrate: Dataset | str | Path | None) -> None:
    if calibrate is not None and not FORMATS[format].calibrated:
        others = ", ".join(each.name for each in FORMATS.values() if each.calibrated)
        raise SpratError(
            f"The format {format} does not take --calibrate. Leave it out, or choose a format "
            f"that does: {others}."
        )
    check_dataset(calibrate)


def _images_for(
    format: Format,
    loaded: "Model",
    model: str,
    images: "Callable[..., tuple[str, ImageSet, ImageSet]]",
    split: str,
    dataset: Dataset | str | Path | None,
    calibrate: Dataset | str | Path | None,
) -> "tuple[str, str, ImageSet | None, ImageSet | None]":
    """Return the name and split of the dataset that an export is compared on, its images (None for
    drawings), and the training images to calibrate on (None if nothing is calibrated).

    Args:
        images: `load_images` with all arguments before `split` bound.

    Raises:
        SpratError: there are no images to calibrate on.
    """
    stored = format.stored_ranges and loaded.ranges is not None
    name, training, compared, failed = FALLBACK, None, None, None
    try:
        name, training, compared = images(split, dataset)
    except SpratError as error:
        failed = error
    if calibrate is not None:
        other, training, others = images("test", calibrate)
        if failed:
            name, split, compared, failed = other, "test", others, None
    elif failed and format.calibrated and not stored:
        lacking = ", since it contains no ranges of activations" if format.stored_ranges else ""
        raise SpratError(
            f"{format.name} is calibrated on images that the model was trained on{lacking}: "
            f"{failed.args[0]}",
            *failed.args[1:],
        ) from failed
    elif failed and stored and dataset is not None:
        raise failed
    elif stored:
        training = None
    if failed:
        warn(f"Compared on drawings of {FALLBACK} instead: {failed}")
    return name, split if compared else "drawings", compared, training
