"""Functions that report results: report, compare, list_runs."""

from pathlib import Path
from typing import TYPE_CHECKING

from sprat import names
from sprat.api.images import check_dataset, load_images
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.compare import Entry, read_entries
from sprat.models.code import Code, CodeNotNamed, use_all
from sprat.run_list import ListedRun, Order, State
from sprat.run_list import list_runs as listed
from sprat.text import warn

if TYPE_CHECKING:
    from sprat.checkpoint import Model
    from sprat.evaluation.explain import ActivationMaps


def report(
    run: str | Path,
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    threads: int = 0,
    code: Code = (),
    quiet: bool = False,
) -> Path:
    """Write a finished run as one HTML page that works offline.

    The page shows figures, curves, confusion matrix, calibration, worst mistakes, settings, and how
    to reproduce the run. Without the run's data or model, it has no calibration and mistakes, and
    says so. Each mistake has its class activation map, if the network supports these.

    Args:
        run: folder of a finished run. If there are several seeds or folds, the folder of one of
            them.
        output: HTML file to write; by default RUN/report.html, which is replaced each time.
        overwrite: whether to replace any other existing file.
        dataset: new location of the run's pictures, if they have moved, or the dataset itself.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache, or a download.
        device: cpu, cuda or mps; auto: the first available of cuda, mps, cpu.
        threads: CPU threads, set for the whole process; 0: one per usable core.
        code: as for `load`.
        quiet: whether to suppress progress on stderr.

    Returns:
        Path of the page.

    Raises:
        SpratError: the folder is not that of a finished run, the output exists or is not an HTML
            file, or there is no such device or dataset.
    """
    from sprat.runtime import check_threads

    use_all(code)
    check_threads(threads)
    check_dataset(dataset)

    from sprat.checkpoint import load_model
    from sprat.display import make_console, progress_bar
    from sprat.evaluation.evaluate import predict_probabilities
    from sprat.reporting import Answers, check_output, read_run, write_report
    from sprat.runtime import choose_device, keep_freed_memory, set_threads

    finished = read_run(Path(run))
    path = check_output(finished, None if output is None else Path(output), overwrite)
    to = choose_device(device)
    keep_freed_memory()
    set_threads(threads)
    console = make_console(stderr=True, quiet=quiet)
    answers: Answers | str
    try:
        loaded = load_model(finished.folder)
        config, split = finished.config, finished.split
        _, _, images = load_images(
            console, str(run), loaded, config, split, dataset, data_dir, exactly=True
        )
    except CodeNotNamed:  # the page also counts the network's costs
        raise
    except SpratError as error:  # the run's folder contains everything else
        warn(f"The page has no calibration and no mistakes: {error}")
        answers = str(error)
    else:
        with progress_bar(console, f"evaluating on {split}", len(images)) as progress:
            probabilities = predict_probabilities(
                loaded.network.to(to), images.images, loaded.normalization, progress=progress
            )
        answers = Answers(images, probabilities, _maps_or_why_not(loaded))
    write_report(finished, path, answers)
    return path


def _maps_or_why_not(model: "Model") -> "ActivationMaps | str":
    from sprat.evaluation.explain import ActivationMaps

    try:
        return ActivationMaps(model.network.eval(), model.normalization, model.side)
    except SpratError as error:
        return str(error)


def compare(
    *results: str | Path, published: bool = True, output: str | Path | None = None
) -> list[Entry]:
    """Compare runs with published networks: parameters, MACs, accuracy.

    Args:
        results: folders of runs, folders of a recipe's seeds or folds, or files with the output of
            `sprat evaluate --json`.
        published: whether to include published figures.
        output: PNG file to write: accuracy against parameters, with the Pareto front.

    Returns:
        An entry for each result and each published figure, ordered by parameters.

    Raises:
        SpratError: there is nothing to compare; a result is missing, damaged or on another dataset;
            or the output is not a PNG file.
    """
    names.check_png(output, "--output")
    if not results and not published:
        raise SpratError("There is nothing to compare. Name a run's folder.")

    entries = read_entries([Path(result) for result in results], published)
    if output is not None:
        from sprat.figures.png import draw_comparison

        draw_comparison(entries, Path(output))
    return entries


def list_runs(
    folder: str | Path = "runs",
    *,
    sort: Order = "name",
    reverse: bool = False,
    recipe: str = "",
    network: str = "",
    dataset: str = "",
    state: State | None = None,
) -> list[ListedRun]:
    """List the runs in a folder and its subfolders, finished or not, like `sprat runs`.

    A run with damaged files is listed as damaged, with the reason.

    Args:
        folder: folder that contains runs, or the folder of one run.
        sort: name, val, test, parameters, epochs or time. val and test: best first; otherwise
            ascending. Runs in the same folder, such as the seeds of a recipe, stay together,
            ordered by their mean. Runs without the figure come last.
        reverse: whether to reverse the order.
        recipe, network, dataset: list only runs with these names; upper and lower case make no
            difference, and * matches any characters.
        state: list only runs in this state: finished, training, interrupted or damaged.

    Raises:
        SpratError: there is no such folder, or it cannot be read.
    """
    return listed(
        Path(folder),
        sort=sort,
        reverse=reverse,
        recipe=recipe,
        network=network,
        dataset=dataset,
        state=state,
    )
