"""The command line. Commands are thin, and import what is heavy only when they run."""

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, ArgumentCollection, CycloptsError, Parameter
from cyclopts.config import Dict

from sprat import __version__, names
from sprat.errors import SpratError, did_you_mean
from sprat.models import code, find_name
from sprat.serve.limits import Limits, check_port
from sprat.settings.config import COMMON, RUN, BudgetConfig, Config, PicturesConfig
from sprat.settings.recipes import (
    load_recipe,
    overrides,
    parse_time,
    proportion_note,
    recipe_path,
)
from sprat.text import command as to_paste
from sprat.text import visible, warn

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from sprat.checkpoint import Model
    from sprat.data.imageset import ImageSet


DEFAULT_RECIPE = "quick"
MOST_SEEDS = 10_000
# what a command that takes a recipe's settings begins from
DEFAULT_RECIPES = {("train",): DEFAULT_RECIPE, ("augment", "preview"): "reference"}

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of the dataset; by default $SPRAT_DATA, the user's cache or a download."
    ),
]
ModelName = Annotated[
    str,
    Parameter(
        help="A model.safetensors, the folder of a finished run, or the name of a shipped model."
    ),
]
JsonOutput = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print one line of JSON instead of text.")
]

app = App(
    name="sprat",
    version=__version__,
    help="Train, judge and use image classifiers that fit a hard budget.",
    help_format="plaintext",
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
data = App(name="data", help="Look at the datasets; fetch them and check their files.")
augment = App(name="augment", help="Look at augmentation.")
app.command(data)
app.command(augment)


def main() -> None:
    """Runs a command; a user's mistake ends it with one line on stderr and exit code 2."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started sprat
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):  # a bar of blocks must not fail in cp1252
            stream.reconfigure(errors="replace")
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of damage that sprat refuses or reads past
    code = _run(sys.argv[1:])
    if (error := _flush(sys.stdout)) and code != 141:
        code = _ended_by(error)
    _flush(sys.stderr)
    sys.exit(code)


def _run(words: list[str]) -> int:
    """Runs a command; returns its exit code."""
    try:
        code: int = app(
            words,
            result_action="return_int_as_exit_code_else_zero",
            exit_on_error=False,
            print_error=False,
        )
        return code
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else bool(ended.code)
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except CycloptsError as error:
        _complain(str(error))
        return 2
    except (SpratError, OSError) as error:
        return _ended_by(error)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        _complain(
            "There is not enough memory for this. Take smaller batches (--batch-size) or pictures "
            "(--pictures.side), or end other programs; a run that has saved an epoch goes on with "
            "sprat train --resume."
        )
        return 2


def _lacks_memory(error: Exception) -> bool:
    """Whether Python, torch or a GPU could not allocate."""
    signs = ("DefaultCPUAllocator", "out of memory", "bad_alloc")
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def _ended_by(error: SpratError | OSError) -> int:
    """Says what ended a command; returns its exit code."""
    if isinstance(error, BrokenPipeError):  # the reader has seen enough: sprat predict … | head
        return 141
    _complain(_in_words(error))
    return 2


def _in_words(error: SpratError | OSError) -> str:
    if isinstance(error, SpratError):
        return str(error)
    if error.filename is None and error.errno in _NO_ROOM:  # files are written under their names
        return f"standard output cannot be written: {error.strerror}. Send it elsewhere."
    where = f" ({visible(error.filename)})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        warn(text)


def _flush(stream: IO[str]) -> OSError | None:
    """Writes what is buffered; returns the error if that fails, and lets go of the rest, which
    would fail again as the interpreter ends."""
    try:
        stream.flush()
    except OSError as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return error
    return None


def _recipe_under_options(
    app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Lays the recipe's settings under those that were typed."""
    if commands not in DEFAULT_RECIPES:
        return
    typed = arguments["--recipe"].tokens
    recipe = typed[-1].value if typed else DEFAULT_RECIPES[commands]
    config = load_recipe(recipe)  # says what is wrong with it in our own words
    typed = arguments["--epochs"].tokens
    with contextlib.suppress(ValueError):  # what is no number of epochs is refused later
        config = config.changed({"epochs": int(typed[-1].value)}) if typed else config
    values = config.to_dict()
    for command in reversed(commands):  # or a table named like a command would be taken for it
        values = {command: values}
    Dict(values, source=str(recipe_path(recipe)))(app, commands, arguments)


app.config = [_recipe_under_options]


@app.command
def train(
    *,
    recipe: Annotated[str, Parameter(group=COMMON)] = DEFAULT_RECIPE,
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
    time: Annotated[str, Parameter(group=COMMON)] = "",
    seeds: Annotated[int, Parameter(group=COMMON)] = 0,
    output: Annotated[Path | None, Parameter(group=COMMON)] = None,
    resume: Annotated[Path | None, Parameter(group=COMMON)] = None,
    data_dir: Annotated[DataDir, Parameter(group=RUN)] = None,
    quiet: Annotated[bool, Parameter(group=RUN, negative=())] = False,
) -> int:
    """Train a network from a recipe. Any setting can be changed with its option.

    A default shown below holds where the recipe does not set a value.

    Parameters
    ----------
    recipe
        Name of a recipe that ships with sprat, or the path of a .toml file.
    output
        New folder for the run; by default runs/RECIPE-DATE-TIME, with --seeds runs/RECIPE.
    resume
        Folder of an interrupted run to resume; only --dataset and --data-dir go with it.
    seeds
        Number of runs, with seeds from --seed on, each in OUTPUT/seed-N; 0: one run, in OUTPUT.
    time
        Train as many epochs as finish in this time, evaluation included: 5m or 1h30m.
    quiet
        Print only errors and warnings.
    """
    began = perf_counter()
    began_as = load_recipe(recipe)
    changed = overrides(config, began_as)
    seconds = parse_time(time) if time else 0.0
    if time and "epochs" in changed:
        raise SpratError("--time decides how many epochs there are; leave --epochs out.")
    if not 0 <= seeds <= MOST_SEEDS:
        raise SpratError(f"--seeds is {seeds}, expected 0 (one run) to {MOST_SEEDS:,}")
    moved: str | None = None  # the place of a resumed run's data, if it has changed
    if resume is not None:
        if config.dataset != began_as.dataset:
            moved = config.dataset
        same = config == dataclasses.replace(began_as, dataset=config.dataset)
        if recipe != DEFAULT_RECIPE or output or seeds or time or not same:
            raise SpratError(
                "--resume goes on exactly as the run began; leave other settings out (--dataset "
                "and --data-dir may name the place where its data is now)."
            )
        from sprat.results import read_config

        config, _, _ = read_config(resume)
    else:
        _check_names(config)

    from sprat.display import TrainingDisplay, load_again, load_shown, make_console
    from sprat.plots import draw_curves
    from sprat.results import CONFIG_FILE, CURVES_FILE, check_empty, new_run, resume_finished
    from sprat.training import start
    from sprat.training.pace import fit, fit_again, fitted_recipe, keep_recipe
    from sprat.training.prepare import check
    from sprat.training.run import Interrupted
    from sprat.training.seeds import train_seeds

    console = make_console(quiet=quiet)
    if resume is None and (note := proportion_note(config, began_as)):
        console.print(note)

    def ended(run: Path, results: dict[str, Any]) -> None:
        if not (run / CURVES_FILE).exists():  # as where a finished run is named again
            draw_curves(run)
        _print_outcome(console, results, run)

    if resume is None:
        check(config)  # rather than after a download
        dataset = load_shown(console, config.dataset, data_dir, config.pictures)
    elif finished := resume_finished(resume):
        with _offering(lambda: ["sprat", *sys.argv[1:]]):
            ended(resume, finished)
        return 0
    else:
        dataset = load_again(console, resume, config, moved, data_dir)
    with contextlib.ExitStack() as stack:
        run = resume or output
        if run is None and seeds:
            run = Path("runs") / Path(recipe).stem
        elif run is None:
            run = stack.enter_context(new_run(recipe, config.seed))
        if time:
            if not seeds:
                check_empty(run)
            fitted = fitted_recipe(run, recipe, time)
            if seeds and fitted.exists():  # all seeds have as many epochs, however fast each is
                config = fit_again(config, fitted)
            else:
                console.print(f"timing a few steps, to see how many epochs end in {time}")
                config = fit(config, dataset, seconds, began)
            recipe, changed = keep_recipe(config, fitted), {}
        again: list[str | Path] = ["sprat", *sys.argv[1:]]
        resumed: list[str | Path] = ["sprat", "train", "--resume", run]
        resumed += ["--dataset", moved] if moved else []
        resumed += ["--data-dir", data_dir] if data_dir else []

        def command() -> list[str | Path]:
            return resumed if not seeds and (run / CONFIG_FILE).exists() else again

        try:
            with (
                _offering(command),
                _stop_on_signal() as stop,
                TrainingDisplay(console) as display,
            ):
                going: dict[str, Any] = {"observer": display, "should_stop": stop.was_asked}
                going |= {} if resume else {"recipe": recipe, "overrides": changed}
                if seeds:
                    summary = train_seeds(config, dataset, run, seeds, ended=ended, **going)
                elif resume:
                    results = start.resume(run, dataset, **going)
                else:
                    results = start.train(config, dataset, run, **going)
        except Interrupted:
            assert stop.signal is not None
            _complain(f"stopped and saved; go on with\n  {to_paste(*command())}")
            return 128 + stop.signal
        with _offering(command):
            if seeds:
                _print_seeds(console, summary, run)
            else:
                ended(run, results)
    return 0


@contextlib.contextmanager
def _offering(command: Callable[[], list[str | Path]]) -> Iterator[None]:
    """Adds the command to go on with to a refusal of the system's: what was saved before a full
    disk, say, is whole."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        going_on = to_paste(*command())
        raise SpratError(f"{_in_words(error)} Then go on with", f"  {going_on}") from error


@app.command
def evaluate(
    model: ModelName,
    /,
    *,
    split: Literal["auto", "val", "test"] = "auto",
    dataset: str | None = None,
    data_dir: DataDir = None,
    tta: int | None = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
    json_output: JsonOutput = False,
) -> int:
    """Judge a trained model: accuracy with its interval, per class, calibration.

    Parameters
    ----------
    split
        test, or val (the images a run held out); auto: val for a run that has one, else test.
    dataset
        cifar10, cifar100, svhn, shapes10 or a folder of own pictures; by default the one the model
        was trained on.
    tta
        Views that test-time augmentation averages; by default those of the model's recipe, or 2.
    device
        Where to judge; auto takes the first there is of cuda, mps, cpu.
    threads
        CPU threads; 0: one per core that it may use.
    """
    from sprat.results import read_config
    from sprat.runtime import check_threads, choose_device, keep_freed_memory, set_threads
    from sprat.zoo import locate

    place = locate(model)
    check_threads(threads)
    if tta is not None:
        names.check_views(tta)
    if dataset is not None:
        names.check_dataset(dataset)

    from sprat.checkpoint import load_model
    from sprat.display import judging_bar, make_console, print_judgement
    from sprat.evaluate import judge

    keep_freed_memory()
    set_threads(threads)
    loaded = load_model(place)
    config = read_config(place)[0] if place.is_dir() else None
    if tta is None:
        tta = config.tta if config else 2
    held_out_exists = config is not None and not config.final
    if split == "auto":
        split = "val" if held_out_exists else "test"
    if split == "val" and not held_out_exists:
        raise SpratError(
            f"{model} has no val: it is no run's folder, or trained on all training images; "
            "use --split test"
        )
    console = make_console(stderr=json_output)
    name, _, judged = _load_judged(console, model, loaded, config, split, dataset, data_dir)
    with judging_bar(console, f"judging {split}", tta * len(judged)) as progress:
        network = loaded.network.to(choose_device(device))
        judgement = judge(network, judged, loaded.normalization, tta, progress)
    named = {
        "model": loaded.name,
        "recipe": loaded.about.get("recipe"),
        "side": loaded.side,
        "dataset": name,
        "split": split,
    } | judgement
    if json_output:
        print(json.dumps(named))
    else:
        console.print(f"{visible(loaded.name)} on {visible(name)} ({split})")
        print_judgement(console, judgement)
    return 0


def _load_judged(
    console: "Console",
    model: str,
    loaded: "Model",
    config: Config | None,
    split: str,
    dataset: str | None,
    data_dir: Path | None,
    *,
    exactly: bool = False,
) -> "tuple[str, ImageSet, ImageSet]":
    """The name of the dataset, its training images, and those of its test or val, to judge a model
    on.

    Args:
        model: what the user called it.
        config: of its run, which decides val; None where there is no run.
        dataset: by default the one it was trained on.
        exactly: whether test too must be of the very data it was trained on, as val must.

    Raises:
        SpratError: the dataset cannot be had, has other classes, or is not the one it must be.
    """
    from sprat.display import load_shown
    from sprat.training.images import split_off_val

    if config is None:  # how own pictures were split is in the model too
        config = Config.from_dict({"pictures": loaded.about.get("pictures", {})}, model)
    pictures = dataclasses.replace(config.pictures, side=loaded.side)
    name = dataset or loaded.about.get("dataset", "auto")
    source = load_shown(console, name, data_dir, pictures)
    if loaded.classes != source.train.classes:
        raise SpratError(
            f"{model} tells apart {', '.join(loaded.classes)}, but {source.name} holds "
            f"{', '.join(source.train.classes)}; choose another --dataset"
        )
    changed = loaded.about.get("dataset_md5") != source.md5
    if changed and (exactly or split == "val"):
        remedy = "" if exactly else ", or use --split test"
        raise SpratError(
            f"{model} was trained on other images than this {source.name}, so its {split} is not "
            f"in there; give the data it was trained on{remedy}"
        )
    if source.own and changed and loaded.about.get("dataset") == source.name:
        warn(
            f"the pictures in {visible(source.name)} have changed since {visible(model)} was "
            "trained; a test part that was split off by a seed may now hold some that it was "
            "trained on"
        )
    if split == "test":
        return source.name, source.train, source.test
    kept, held_out = split_off_val(source, config)
    return source.name, source.train.subset(kept), source.train.subset(held_out)


@app.command
def export(
    model: ModelName,
    /,
    *,
    format: Literal["onnx", "onnx-int8", "pt2", "pth"] = "onnx",
    output: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    raw: Annotated[bool, Parameter(negative=())] = False,
    max_drop: float = 2.0,
    dataset: str | None = None,
    data_dir: DataDir = None,
    json_output: JsonOutput = False,
) -> None:
    """Write a model in a format that runs without sprat, once it is seen to agree with torch on
    1,000 images.

    Parameters
    ----------
    format
        onnx; onnx-int8, quantised; pt2, a program of torch.export; pth, a state_dict.
    output
        File to write; by default NAME.onnx, NAME-int8.onnx, NAME.pt2 or NAME.pth in this folder.
    overwrite
        Replace a file that exists.
    raw
        Take images that are normalised already, float32, and give logits; by default images are
        uint8, 0 to 255, and probabilities come out.
    max_drop
        Percentage points of accuracy that onnx-int8 may lose on the compared images.
    dataset
        Of the images that are compared, and that onnx-int8 is calibrated on; by default the one
        the model was trained on.
    """
    from sprat.formats import ENDINGS, check_options, check_output
    from sprat.zoo import locate

    place = locate(model)
    check_options(format, raw, max_drop)
    if output is not None:
        check_output(output, format, overwrite)
    if dataset is not None:
        names.check_dataset(dataset)

    from sprat.checkpoint import load_model
    from sprat.display import doing, make_console, print_contenders
    from sprat.export import export as write
    from sprat.results import read_config
    from sprat.runtime import keep_freed_memory, set_threads

    keep_freed_memory()
    set_threads()
    loaded = load_model(place)
    path = output or Path(f"{loaded.name}{ENDINGS[format]}")
    check_output(path, format, overwrite)  # rather than after a download
    config = read_config(place)[0] if place.is_dir() else None
    split = "val" if config is not None and not config.final else "test"
    console = make_console(stderr=json_output)
    name, training, compared = "shapes10", None, None
    try:
        name, training, compared = _load_judged(
            console, model, loaded, config, split, dataset, data_dir
        )
    except SpratError as error:
        if format == "onnx-int8":
            why = (
                f"onnx-int8 is calibrated on images that the model was trained on: {error.args[0]}"
            )
            raise SpratError(why, *error.args[1:]) from error
        warn(f"compared on drawings of shapes10 instead: {error}")
    with doing(console, "exporting") as tell:
        exported = write(
            loaded,
            path,
            format,
            raw=raw,
            compared=compared,
            training=training,
            max_drop=max_drop,
            overwrite=overwrite,
            tell=tell,
        )
    split = split if compared else "drawings"
    if json_output:
        named = {"model": loaded.name, "dataset": name, "split": split}
        print(json.dumps(named | dataclasses.asdict(exported) | {"path": str(path)}))
        return
    print_contenders(console, exported.contenders)
    console.print(
        f"\n{exported.n:,} images of {visible(name)} ({split}): {100 * exported.same_top1:.2f} % "
        "are named as torch names them, probabilities differ by up to "
        f"{exported.largest_difference:.2g}; one image is timed on one thread\n{visible(path)}"
    )


@app.command
def report(
    run: Path,
    /,
    *,
    output: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative=())] = False,
    dataset: str | None = None,
    data_dir: DataDir = None,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
) -> None:
    """Write one HTML page about a finished run, which needs no network and no other file: figures,
    curves, confusion, calibration, worst mistakes, settings, how to reproduce it.

    Parameters
    ----------
    run
        Folder of a finished run; of several seeds, that of one of them.
    output
        HTML file to write; by default RUN/report.html, which is written anew each time.
    overwrite
        Replace another file that exists.
    dataset
        Where it is now, if the run's own pictures have been moved.
    device
        Where to predict; auto takes the first there is of cuda, mps, cpu.
    threads
        CPU threads; 0: one per core that it may use.
    """
    from sprat.runtime import check_threads

    check_threads(threads)
    if dataset is not None:
        names.check_dataset(dataset)

    from sprat.checkpoint import load_model
    from sprat.display import judging_bar, make_console
    from sprat.evaluate import predict_probabilities
    from sprat.report import Answers, check_output, read_run, write_report
    from sprat.runtime import choose_device, keep_freed_memory, set_threads

    finished = read_run(run)
    path = check_output(finished, output, overwrite)
    to = choose_device(device)
    keep_freed_memory()
    set_threads(threads)
    console = make_console(stderr=True)
    answers: Answers | str
    try:
        loaded = load_model(run)
        config, split = finished.config, finished.split
        _, _, judged = _load_judged(
            console, str(run), loaded, config, split, dataset, data_dir, exactly=True
        )
    except SpratError as error:  # all else there is to say stands in the run's folder
        warn(f"the page has neither diagram nor mistakes: {error}")
        answers = str(error)
    else:
        with judging_bar(console, f"predicting {split}", len(judged)) as progress:
            probabilities = predict_probabilities(
                loaded.network.to(to), judged.images, loaded.normalization, progress=progress
            )
        answers = Answers(judged, probabilities)
    write_report(finished, path, answers)
    print(visible(path))


@app.command
def summary(
    model: str,
    /,
    *,
    depth: int = 0,
    side: int | None = None,
    classes: int = 10,
    effective: Path | None = None,
    json_output: JsonOutput = False,
) -> None:
    """What a network costs and sees: layers, parameters, MACs, receptive field, memory.

    Parameters
    ----------
    model
        A network's name, a model.safetensors or a run's folder, or module:Class of your own.
    depth
        Parts of a layer's path that make a row; 0: every layer for itself.
    side
        Of the image, in pixels; by default what the model was trained on, else 32.
    classes
        Outputs of a network that is not a saved model.
    effective
        PNG file to draw the effective receptive field into: with the pretrained weights of the
        network if it has some, else with its initial ones.
    """
    if depth < 0:
        raise SpratError(f"--depth is {depth}, expected 0 (every layer) or above")
    _check_png(effective, "--effective")

    from sprat.display import make_console, print_summary

    network, side = _find_network(model, side, classes, pretrained=effective is not None)

    from sprat.budget import summarize

    summarized = summarize(network, side, depth)
    values = summarized.to_dict()
    if effective is not None:
        values["effective_side"] = _draw_effective(
            make_console(stderr=True), network, side, effective
        )
    if json_output:
        print(json.dumps(values))
    else:
        print_summary(make_console(), summarized)
        if effective is not None:
            place = visible(effective)
            print(f"  effective field    {values['effective_side']:.1f} px, drawn in {place}")


@app.command
def check(
    model: str,
    /,
    *,
    budget: Annotated[BudgetConfig, Parameter(name="*")] = BudgetConfig(),  # noqa: B008
    min_accuracy: float = 0.0,
    side: int | None = None,
    classes: int = 10,
    json_output: JsonOutput = False,
) -> int:
    """Hold a network to limits: a line for each; exit code 0 if all are kept, else 1.

    Parameters
    ----------
    model
        A network's name, a model.safetensors or a run's folder, or module:Class of your own.
    min_accuracy
        Least accuracy of a run, on what it was judged on, as a fraction: 0.85.
    side
        Of the image, in pixels; by default what the model was trained on, else 32.
    classes
        Outputs of a network that is not a saved model.
    """
    limits = budget.limits | {"min_accuracy": min_accuracy}
    if not 0 <= min_accuracy <= 1:
        raise SpratError(f"--min-accuracy is {min_accuracy}, expected a fraction, 0 to 1")
    if not any(limits.values()):
        raise SpratError("no limit is given; --max-parameters 200000, say (see sprat check --help)")

    from sprat.display import make_console, print_verdicts
    from sprat.results import RESULTS_FILE, read_results

    accuracy = None
    if min_accuracy:
        results = read_results(Path(model) / RESULTS_FILE)
        accuracy = (results["test"] or results["val"])["top1"]
    network, side = _find_network(model, side, classes)

    from sprat.budget import judge_limits, summarize

    summarized = summarize(network, side)
    verdicts = judge_limits(limits, summarized, budget.stored_as, accuracy)
    if json_output:
        print(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts]))
    else:
        print_verdicts(make_console(), summarized.model, verdicts)
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def _find_network(
    model: str, side: int | None, classes: int, pretrained: bool = False
) -> "tuple[nn.Module, int]":
    """Return a network by its name, file, run or class, and the side of its images.

    Args:
        pretrained: with its pretrained weights, if a network of that name and ten classes has some.
    """
    if side is not None and side < 1:
        raise SpratError(f"--side is {side}, expected at least 1 pixel")
    if classes < 1:
        raise SpratError(f"--classes is {classes}, expected at least 1")
    is_file = Path(model).exists() or model.endswith(".safetensors")
    if not is_file and ":" not in model:
        find_name(model)

    import torch

    from sprat.checkpoint import load_model
    from sprat.models import build_network, check_outputs
    from sprat.zoo import is_model, locate

    if is_file or (pretrained and classes == 10 and is_model(model)):
        loaded = load_model(locate(model))
        return loaded.network, side or loaded.side
    torch.manual_seed(0)  # initial weights are drawn
    if ":" in model:
        code.use(code.source_of(model))
        network = build_network(model, classes)
        check_outputs(network, classes, side or 32)
        return network, side or 32
    return build_network(model, classes), side or 32


def _draw_effective(console: "Console", network: "nn.Module", side: int, path: Path) -> float:
    """Draws the effective receptive field on images that hold the whole field; gives its side."""
    from sprat.budget import DRAWS, effective_field, effective_side, receptive_field
    from sprat.display import judging_bar
    from sprat.plots import draw_effective_field

    size = receptive_field(network, side) or side
    canvas = max(side, 32 * math.ceil((size + 1) / 32))
    with judging_bar(console, "following the gradient", DRAWS) as progress:
        field = effective_field(network, canvas, progress)
    title = f"What a value of {type(network).__name__} depends on"
    draw_effective_field(field, size, side, title, path)
    return effective_side(field)


@app.command
def compare(
    *results: Path,
    published: bool = True,
    output: Path | None = None,
    markdown: Annotated[bool, Parameter(negative=())] = False,
    json_output: JsonOutput = False,
) -> None:
    """Results of runs beside published figures: parameters, MACs, receptive field, accuracy.

    Parameters
    ----------
    results
        Run folders, folders of a recipe's seeds with a summary.json, or files that sprat evaluate
        --json printed.
    published
        Put published figures beside them, with what they rest on and who says so.
    output
        PNG file to draw accuracy against parameters into, with the Pareto front.
    markdown
        Print the table as Markdown.
    """
    _check_png(output, "--output")
    if markdown and json_output:
        raise SpratError("--markdown and --json cannot both be printed; leave one out")
    if not results and not published:
        raise SpratError("there is nothing to compare; name a run's folder")

    from sprat.compare import comparison_table, pareto_front, read_entries, to_markdown
    from sprat.display import make_console, print_table

    entries = read_entries(results, published)
    if output is not None:
        from sprat.plots import draw_comparison

        draw_comparison(entries, output)
    if json_output:
        front = pareto_front(entries)
        print(json.dumps([entry.to_dict() | {"front": entry in front} for entry in entries]))
    elif markdown:
        print(to_markdown(comparison_table(entries)))
    else:
        print_table(make_console(), comparison_table(entries), left=1, left_again=5)


@app.command
def predict(
    *pictures: str,
    top: int = 3,
    json_output: JsonOutput = False,
) -> int:
    """Name what pictures show.

    Parameters
    ----------
    pictures
        Files, or folders of pictures; any size and mode. A model's file, run or name before them
        is used; else the best that ships with sprat.
    top
        How many classes to give for each picture, the most probable first.
    """
    if top < 1:
        raise SpratError(f"--top is {top}, expected at least 1")

    from sprat.zoo import best, cards, is_model, locate

    named = bool(pictures) and is_model(pictures[0])
    if len(pictures) == named:
        raise SpratError("no picture is named; give files or a folder: sprat predict cat.jpg")
    place = locate(pictures[0]) if named else best()
    if missing := next((word for word in pictures[named:] if not Path(word).exists()), None):
        shipped = [card["name"] for card in cards()]
        hint = did_you_mean(missing, shipped) if missing == pictures[0] else ""
        raise SpratError(f"there is no file or folder {missing}{hint}")

    from sprat.checkpoint import load_model
    from sprat.display import judging_bar, make_console
    from sprat.predict import find_pictures, predict_pictures
    from sprat.runtime import set_threads

    set_threads()
    loaded = load_model(place)
    files = find_pictures([Path(picture) for picture in pictures[named:]])
    answers, unreadable = [], 0
    # lines of text on a terminal are progress enough, and a bar would tear them
    tearing = sys.stdout.isatty() and not json_output
    bar_console = make_console(stderr=True, quiet=tearing)
    with judging_bar(bar_console, "looking at pictures", len(files)) as progress:
        for outcome in predict_pictures(loaded, files, top):
            progress(1)
            if isinstance(outcome, SpratError):
                unreadable += 1
                warn(outcome)
            elif json_output:
                answers.append(outcome)
            else:
                guesses = "   ".join(
                    f"{visible(guess['class'])} {100 * guess['probability']:.1f} %"
                    for guess in outcome["predictions"]
                )
                print(f"{visible(outcome['file'])}   {guesses}")
    if json_output:
        print(json.dumps(answers))
    return 2 if unreadable else 0


@app.command
def models(
    name: str | None = None,
    /,
    *,
    json_output: JsonOutput = False,
) -> None:
    """The trained models that ship with sprat, best first; with a name, that one's card.

    Parameters
    ----------
    name
        A shipped model's.
    """
    from sprat.display import make_console, print_table
    from sprat.zoo import card_text, cards, find_card, listed

    if name is not None:
        card = find_card(name)
        if json_output:
            print(json.dumps(card))
        elif sys.stdout.isatty():
            from rich.markdown import Markdown

            make_console().print(Markdown(card_text(card)))
        else:
            print(card_text(card))
        return
    known = [listed(card) for card in cards()]
    if json_output:
        print(json.dumps(known))
        return
    rows = [("name", "parameters", "test accuracy", "bytes", "sha256")]
    rows += [
        (
            model["name"],
            f"{model['parameters']:,}",
            f"{100 * model['test_top1']:.2f} %",
            f"{model['bytes']:,}",
            model["sha256"],
        )
        for model in known
    ]
    print_table(make_console(), rows, left=1, left_again=4)


@app.command
def serve(
    model: str | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    allowed_hosts: str = "",
    trusted_proxies: str = "",
    limits: Annotated[Limits, Parameter(name="*")] = Limits(),  # noqa: B008
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 0,
) -> None:
    """Answer over HTTP what pictures show: a page for people, an interface for programs.

    Parameters
    ----------
    model
        A model.safetensors, the folder of a finished run, or the name of a shipped model; by
        default the best that ships.
    host
        Address to listen on; 0.0.0.0 lets other machines ask, with --allowed-hosts.
    port
        0: a free one, which is printed.
    allowed_hosts
        Names by which requests may call this server, separated by commas, besides localhost; '*':
        any.
    trusted_proxies
        Addresses of your own proxies, separated by commas, whose X-Forwarded-For is believed.
    device
        Where the network runs; auto takes the first there is of cuda, mps, cpu.
    threads
        CPU threads of the network; 0: one per core that it may use.
    """
    from sprat.serve import require_packages

    require_packages()

    from sprat.runtime import check_threads, keep_freed_memory, set_threads
    from sprat.serve.origins import parse_hosts, parse_proxies
    from sprat.zoo import locate

    check_threads(threads)
    check_port(port)
    parse_hosts(allowed_hosts)
    parse_proxies(trusted_proxies)
    if model is not None:
        locate(model)

    from sprat.serve.server import run

    keep_freed_memory()
    set_threads(threads)
    run(model, host, port, limits, device, trusted_proxies, allowed_hosts)


@data.command
def show(
    *,
    dataset: str = "auto",
    output: Path | None = None,
    columns: int = 12,
    data_dir: DataDir = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
) -> None:
    """Draw a contact sheet: a row of training images for each class.

    Parameters
    ----------
    dataset
        cifar10, cifar100, svhn, shapes10, auto, or a folder that holds a folder of pictures for
        each class.
    output
        PNG file to write; by default DATASET.png.
    columns
        Images in a row.
    """
    _check_picture(output, columns)
    names.check_dataset(dataset)

    from sprat.display import load_shown, make_console
    from sprat.plots import draw_contact_sheet

    console = make_console()
    loaded = load_shown(console, dataset, data_dir, pictures)
    title = f"{loaded.name}: {len(loaded.train):,} training, {len(loaded.test):,} test images"
    path = output or Path(f"{Path(loaded.name).name}.png")
    draw_contact_sheet(loaded.train, title, path, columns)
    print(visible(path))


@data.command
def fetch(
    *,
    dataset: str = "cifar10",
    data_dir: Annotated[
        Path | None,
        Parameter(help="Where to; by default, if it is not in $SPRAT_DATA, the user's cache."),
    ] = None,
) -> None:
    """Fetch a dataset unless it is there whole, and say where it lies; an interrupted fetch goes
    on where it was.

    Parameters
    ----------
    dataset
        cifar10, cifar100 or svhn.
    """
    names.check_published(dataset)

    from sprat.data import fetch_dataset
    from sprat.display import loading, make_console, noting

    console = make_console(stderr=True)
    with loading(console, f"looking for {dataset}") as progress:
        place = fetch_dataset(dataset, data_dir, progress, noting(console))
    print(visible(place))


@data.command
def verify(
    *,
    dataset: str = "cifar10",
    data_dir: Annotated[
        Path | None,
        Parameter(help="Where the dataset lies; by default $SPRAT_DATA, then the user's cache."),
    ] = None,
    json_output: JsonOutput = False,
) -> int:
    """Hold a dataset's files to their published md5s: a line for each; exit code 0 if all are
    whole, else 1.

    Parameters
    ----------
    dataset
        cifar10, cifar100 or svhn.
    """
    names.check_published(dataset)

    from sprat.data import verify_dataset

    folder, states = verify_dataset(dataset, data_dir)
    ok = all(state == "ok" for state in states.values())
    if json_output:
        named = {str(path): state for path, state in states.items()}
        print(json.dumps({"folder": str(folder), "ok": ok, "files": named}))
    else:
        for path, state in states.items():
            print(f"{visible(path)}   {'DAMAGED' if state == 'damaged' else state}")
    return 0 if ok else 1


@augment.command
def preview(
    *,
    recipe: str = DEFAULT_RECIPES["augment", "preview"],
    output: Path | None = None,
    columns: int = 8,
    data_dir: DataDir = None,
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
) -> None:
    """Draw what a recipe does to training images: each transform alone at its limits, all
    together, and each mixer with its weights.

    Parameters
    ----------
    recipe
        A shipped recipe's name, or the path of a .toml file; its settings can be changed here.
    output
        PNG file to write; by default augment-RECIPE.png.
    columns
        Pictures in a row, of as many classes.
    """
    _check_picture(output, columns)
    _check_names(config)

    from sprat.display import load_shown, make_console
    from sprat.plots import draw_preview
    from sprat.training.images import preview_augmentation

    loaded = load_shown(make_console(), config.dataset, data_dir, config.pictures)
    rows = preview_augmentation(config, loaded.train, columns)
    name = Path(recipe).stem
    path = output or Path(f"augment-{name}.png")
    draw_preview(rows, f"{name} on {loaded.name}", path)
    print(visible(path))


def _check_names(config: Config) -> None:
    """Check whatever names something in a config, before torch is loaded."""
    from sprat.zoo import locate

    names.check_dataset(config.dataset)
    find_name(config.model)
    names.check_views(config.tta)
    for teacher in config.distill.teacher:
        locate(teacher)


def _check_png(path: Path | None, option: str) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise SpratError(f"{option} is {path}, expected a name that ends in .png")


def _check_picture(output: Path | None, columns: int) -> None:
    _check_png(output, "--output")
    if not 1 <= columns <= 100:
        raise SpratError(f"--columns is {columns}, expected 1 to 100")


class _Stop:
    """Whether and by which signal the process was asked to stop."""

    signal: int | None = None

    def was_asked(self) -> bool:
        return self.signal is not None

    def ask(self, number: int, frame: FrameType | None) -> None:
        if self.was_asked():  # the second time, at once
            raise KeyboardInterrupt
        self.signal = number


@contextlib.contextmanager
def _stop_on_signal() -> Iterator[_Stop]:
    """Within it, Ctrl-C and SIGTERM let the training step under way end first."""
    stop = _Stop()
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_outcome(console: "Console", results: dict[str, Any], run: Path) -> None:
    from sprat.display import print_judgement

    which = "the test set, read once" if results["final"] else "val"
    minutes = results["seconds"] / 60
    console.print(
        f"\n{visible(results['model'])}, {results['parameters']:,} parameters, "
        f"{results['epochs']} epochs in {minutes:.1f} minutes; on {visible(results['dataset'])} "
        f"({which}):"
    )
    print_judgement(console, results["test"] or results["val"])
    if results["dataset"] == "shapes10":
        console.print("This is shapes10, drawn shapes; it says nothing about CIFAR-10.")
    console.print(
        f"\n{visible(run)}/ holds model.safetensors, results.json, curves.png. Use the model:\n"
        f"  {to_paste('sprat', 'predict', run, 'picture.jpg')}\n"
        f"  {to_paste('sprat', 'evaluate', run)}"
    )


def _print_seeds(console: "Console", summary: dict[str, Any], folder: Path) -> None:
    count = len(summary["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    console.print(f"\n{seeds}, on {summary['split']}:")
    for key, label in (("top1", "accuracy"), ("tta_top1", "with test-time views")):
        figure = summary[key]
        spread = f" ± {100 * figure['std']:.2f}" if figure["n"] > 1 else ""
        console.print(
            f"  {label:24}  {100 * figure['mean']:.2f}{spread} %  (n = {figure['n']}, "
            f"{100 * figure['min']:.2f} to {100 * figure['max']:.2f})"
        )
    console.print(f"{visible(folder)}/summary.json holds them.")
