"""Commands that evaluate: evaluate, report, compare, runs, predict."""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sprat.cli.app import app
from sprat.cli.options import Code, DataDir, Device, Flag, JsonOutput, ModelName, Threads
from sprat.data import DATASETS
from sprat.data.own import OWN
from sprat.errors import SpratError
from sprat.foreign import Foreign
from sprat.text import visible, warn

if TYPE_CHECKING:
    from sprat.classifier import Prediction

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes cells that begin so


@app.command
def evaluate(
    model: ModelName,
    /,
    *,
    split: Literal["auto", "val", "test", "all"] = "auto",
    dataset: Annotated[
        str | None,
        Parameter(
            help=f"{', '.join(DATASETS)} or {OWN}; by default the dataset that the model was "
            "trained on."
        ),
    ] = None,
    data_dir: DataDir = None,
    path_column: Annotated[str, Parameter(name="--pictures.path-column")] = "",
    label_column: Annotated[str, Parameter(name="--pictures.label-column")] = "",
    unreadable: Annotated[
        Literal["refuse", "skip"] | None, Parameter(name="--pictures.unreadable")
    ] = None,
    tta: int | None = None,
    device: Device = "auto",
    threads: Threads = 0,
    code: Code = (),
    foreign: Annotated[Foreign, Parameter(name="*")] = Foreign(),  # noqa: B008
    json_output: JsonOutput = False,
) -> None:
    """Evaluate a trained model: accuracy with its interval, accuracy per class, calibration.

    Parameters
    ----------
    split
        test, val (images that the run held out) or all; auto: all of your own pictures if the model
        was not trained on them, else val if the run has one, else test.
    path_column
        Column with the paths of the pictures, or with the pictures themselves in parquet files.
    label_column
        Column of a table or of parquet files with the labels.
    unreadable
        Refuse or skip files that are missing or not pictures.
    tta
        Number of views to average by test-time augmentation; by default that of the model's recipe,
        or 2.
    """
    from sprat import api

    settings = {
        "path_column": path_column,
        "label_column": label_column,
        "unreadable": unreadable,
    }
    found = api.evaluate(
        model,
        split=split,
        dataset=dataset,
        data_dir=data_dir,
        pictures={name: value for name, value in settings.items() if value},
        tta=tta,
        device=device,
        code=code,
        threads=threads,
        **dataclasses.asdict(foreign),
    )
    if json_output:
        print(json.dumps(found))
        return

    from sprat.display import make_console, print_evaluation

    console = make_console()
    console.print(f"{visible(found['model'])} on {visible(found['dataset'])} ({found['split']})")
    print_evaluation(console, found)


@app.command
def report(
    run: Path,
    /,
    *,
    output: Path | None = None,
    overwrite: Flag = False,
    dataset: str | None = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    threads: Threads = 0,
    code: Code = (),
) -> None:
    """Write a finished run as one HTML page that works offline: figures, curves, confusion matrix,
    calibration, worst mistakes, settings, and how to reproduce it.

    Parameters
    ----------
    run
        Folder of a finished run. If there are several seeds or folds, the folder of one of them.
    output
        HTML file to write; by default RUN/report.html, which is replaced each time.
    overwrite
        Replace any other existing file.
    dataset
        New location of the run's pictures, if they have moved.
    """
    from sprat import api

    path = api.report(
        run,
        output=output,
        overwrite=overwrite,
        dataset=dataset,
        data_dir=data_dir,
        device=device,
        code=code,
        threads=threads,
    )
    print(visible(path))


@app.command
def compare(
    *results: Path,
    published: bool = True,
    output: Path | None = None,
    markdown: Flag = False,
    json_output: JsonOutput = False,
) -> None:
    """Compare runs with published networks: parameters, MACs, receptive field, accuracy.

    Parameters
    ----------
    results
        Folders of runs, folders of a recipe's seeds or folds, or files with the output of sprat
        evaluate --json.
    published
        Include published figures and their sources.
    output
        PNG file to write: accuracy against parameters, with the Pareto front.
    markdown
        Print the table as Markdown.
    """
    if markdown and json_output:
        raise SpratError("--markdown and --json exclude each other. Give only one.")

    from sprat import api
    from sprat.evaluation.compare import comparison_table, pareto_front, to_markdown

    entries = api.compare(*results, published=published, output=output)
    if json_output:
        front = pareto_front(entries)
        print(json.dumps([entry.to_dict() | {"front": entry in front} for entry in entries]))
    elif markdown:
        print(to_markdown(comparison_table(entries)))
    else:
        from sprat.display import make_console, print_table

        print_table(make_console(), comparison_table(entries), left=1, left_again=5)


@app.command
def runs(
    folder: Path = Path("runs"),
    /,
    *,
    sort: Literal["name", "val", "test", "parameters", "epochs", "time"] = "name",
    reverse: Flag = False,
    recipe: str = "",
    network: str = "",
    dataset: str = "",
    state: Literal["finished", "training", "interrupted", "damaged"] | None = None,
    watch: Flag = False,
    json_output: JsonOutput = False,
) -> None:
    """List runs with recipe, network, parameters, finished epochs, accuracy on val and test, time.

    Parameters
    ----------
    folder
        Folder that contains the folders of runs, at any depth.
    sort
        Order of the runs; val and test: best first, otherwise ascending. Runs in the same folder
        stay together.
    reverse
        Reverse the order.
    recipe
        List only runs of this recipe; * matches any characters.
    network
        List only runs of this network; * matches any characters.
    dataset
        List only runs on this dataset; * matches any characters.
    state
        List only runs in this state. Interrupted runs can be resumed.
    watch
        Refresh the table, with the time left, until no run is training.
    """
    if watch and json_output:
        raise SpratError("--watch and --json exclude each other. Give only one.")

    from sprat import api

    read = partial(
        api.list_runs,
        folder,
        sort=sort,
        reverse=reverse,
        recipe=recipe,
        network=network,
        dataset=dataset,
        state=state,
    )
    if json_output:
        print(json.dumps([run.to_dict() for run in read()]))
        return

    from sprat.display import make_console, print_runs, watch_runs

    console = make_console()
    if not watch:
        print_runs(console, read())
        return
    with contextlib.suppress(KeyboardInterrupt):
        watch_runs(console, read)


@app.command
def predict(
    *pictures: str,
    top: int = 3,
    tta: int = 1,
    explain: Path | None = None,
    device: Device = "auto",
    threads: Threads = 0,
    code: Code = (),
    csv_output: Annotated[
        bool, Parameter(name="--csv", negative=(), help="Print CSV, one row per picture.")
    ] = False,
    json_output: JsonOutput = False,
) -> int:
    """Classify pictures.

    Parameters
    ----------
    pictures
        Picture files or folders of pictures, at any depth. To choose a model, put its file, run or
        name first; the default is the most accurate pretrained model.
    top
        Number of classes to print for each picture, the most probable first.
    tta
        Number of views to average by test-time augmentation: 1, 2, 6, 8, 10 or 26.
    explain
        Folder to write a PNG for each picture to, showing where the evidence for the most probable
        class is. The folder is created if it does not exist.
    """
    if csv_output and json_output:
        raise SpratError("--csv and --json exclude each other. Give only one.")

    from sprat import api

    rows = itertools.count()

    def show(prediction: "Prediction") -> None:
        if "error" in prediction:
            warn(prediction["error"])
        elif csv_output:
            _print_row(prediction, header=next(rows) == 0)
        elif not json_output:
            _print_prediction(prediction)

    # lines of text on a terminal show progress already, and a bar would break them up
    quiet = sys.stdout.isatty() and not json_output
    found = api.predict(
        *pictures,
        top=top,
        tta=tta,
        explain=explain,
        device=device,
        threads=threads,
        code=code,
        quiet=quiet,
        each=show,
    )
    read = [prediction for prediction in found if "error" not in prediction]
    if json_output:
        print(json.dumps(read))
    return 0 if len(read) == len(found) else 2


def _print_row(prediction: "Prediction", header: bool) -> None:
    """Print a row of CSV, after the names of the columns if it is the first."""
    shown = visible if sys.stdout.isatty() else _as_it_is
    file = shown(prediction["file"])
    columns, cells = ["file"], [f"./{file}" if file.startswith(_FORMULA) else file]
    for rank, guess in enumerate(prediction["predictions"], 1):
        nth = f"_{rank}" if rank > 1 else ""
        columns += [f"class{nth}", f"probability{nth}"]
        cells += [shown(guess["class"]), str(guess["probability"])]
    if "where" in prediction:
        columns += ["where", "map"]
        cells += [prediction["where"], shown(prediction["map"])]
    for row in ([columns] if header else []) + [cells]:
        line = io.StringIO()
        csv.writer(line).writerow(row)  # quotes the characters of its line end, \r\n
        print(line.getvalue().removesuffix("\r\n"))


def _as_it_is(text: str) -> str:
    """Return text for a file, unchanged except that bytes which are not UTF-8 become \\udcff."""
    return text.encode(errors="backslashreplace").decode()


def _print_prediction(prediction: "Prediction") -> None:
    guesses = "   ".join(
        f"{visible(guess['class'])} {100 * guess['probability']:.1f} %"
        for guess in prediction["predictions"]
    )
    where = f"   where: {prediction['where']}" if "where" in prediction else ""
    print(f"{visible(prediction['file'])}   {guesses}{where}")
