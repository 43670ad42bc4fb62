"""Commands that evaluate: evaluate, report, compare, predict."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sprat import names
from sprat.cli.app import app
from sprat.cli.options import DataDir, JsonOutput, ModelName, check_png
from sprat.errors import SpratError, did_you_mean
from sprat.settings.config import Config
from sprat.text import visible, warn

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.checkpoint import Model
    from sprat.data.imageset import ImageSet


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
    from sprat.run_folder import read_config
    from sprat.runtime import check_threads, choose_device, keep_freed_memory, set_threads
    from sprat.zoo import locate

    place = locate(model)
    check_threads(threads)
    if tta is not None:
        names.check_views(tta)
    if dataset is not None:
        names.check_dataset(dataset)

    from sprat.checkpoint import load_model
    from sprat.display import make_console, print_evaluation, progress_bar
    from sprat.evaluation.evaluate import evaluate as evaluate_network

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
    name, _, judged = load_judged(console, model, loaded, config, split, dataset, data_dir)
    with progress_bar(console, f"evaluating {split}", tta * len(judged)) as progress:
        network = loaded.network.to(choose_device(device))
        judgement = evaluate_network(network, judged, loaded.normalization, tta, progress)
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
        print_evaluation(console, judgement)
    return 0


def load_judged(
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
    from sprat.display import make_console, progress_bar
    from sprat.evaluation.evaluate import predict_probabilities
    from sprat.reporting import Answers, check_output, read_run, write_report
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
        _, _, judged = load_judged(
            console, str(run), loaded, config, split, dataset, data_dir, exactly=True
        )
    except SpratError as error:  # all else there is to say stands in the run's folder
        warn(f"the page has neither diagram nor mistakes: {error}")
        answers = str(error)
    else:
        with progress_bar(console, f"predicting {split}", len(judged)) as progress:
            probabilities = predict_probabilities(
                loaded.network.to(to), judged.images, loaded.normalization, progress=progress
            )
        answers = Answers(judged, probabilities)
    write_report(finished, path, answers)
    print(visible(path))


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
    check_png(output, "--output")
    if markdown and json_output:
        raise SpratError("--markdown and --json cannot both be printed; leave one out")
    if not results and not published:
        raise SpratError("there is nothing to compare; name a run's folder")

    from sprat.display import make_console, print_table
    from sprat.evaluation.compare import comparison_table, pareto_front, read_entries, to_markdown

    entries = read_entries(results, published)
    if output is not None:
        from sprat.figures.png import draw_comparison

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
    from sprat.display import make_console, progress_bar
    from sprat.predict import find_pictures, predict_pictures
    from sprat.runtime import set_threads

    set_threads()
    loaded = load_model(place)
    files = find_pictures([Path(picture) for picture in pictures[named:]])
    answers, unreadable = [], 0
    # lines of text on a terminal are progress enough, and a bar would tear them
    tearing = sys.stdout.isatty() and not json_output
    bar_console = make_console(stderr=True, quiet=tearing)
    with progress_bar(bar_console, "looking at pictures", len(files)) as progress:
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
