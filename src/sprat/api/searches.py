"""Functions that find and train the best network within a budget: search, resume_search."""

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sprat.api.runs import Stopping, as_path, check_alone, check_names, resumable
from sprat.data import Dataset
from sprat.deferred import deferred
from sprat.errors import Interrupted, SpratError
from sprat.evaluation.records import RunResult
from sprat.pools import Stopped, Workers, check_gpus, open_workers, parse_workers
from sprat.run_folder import CONFIG_FILE, check_empty, locked, new_run, resume_finished, sweep_run
from sprat.searching import require_optuna
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, parse_time
from sprat.text import command, visible

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.pools.source import Source
    from sprat.searching import outcome as outcomes
    from sprat.searching.outcome import Outcome
    from sprat.searching.plan import Plan
else:
    outcomes = deferred("sprat.searching.outcome")

MOST = {
    "trials": 100_000, "trial_images": 10**9, "trial_epochs": 100_000, "generation": 10_000,
    "cpus_per_trial": 1024,
}  # fmt: skip
FOLDER = "search"  # in a run's folder, with the search's own files


@dataclass(frozen=True)
class Search:
    """A finished search."""

    folder: Path
    """Folder of the winner's run; its folder search/ contains the trials, charts and recipe."""
    results: RunResult
    """Content of results.json: the winner's run."""
    outcome: "Outcome"
    """Content of search/outcome.json: counts, finalists, the importance of each choice."""


def search(
    config: Config | str = "sprat-cpu",
    changes: Mapping[str, Any] | None = None,
    *,
    max_parameters: int | str = 0,
    max_macs: int | str = 0,
    max_ram: int | str = 0,
    max_flash: int | str = 0,
    trials: int = 0,
    time: str = "",
    recipe: str = "",
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    trial_images: int = 0,
    trial_epochs: int = 0,
    generation: int = 9,
    workers: int | str = 1,
    cpus_per_trial: int = 0,
    gpus_per_trial: float = 0,
    quiet: bool = False,
    stopping: Stopping | None = None,
) -> Search:
    """Search for the most accurate network within limits and train it, like `sprat search`.

    Needs sprat[search]. With several workers, call it below `if __name__ == "__main__":`.

    Args:
        config: settings to train the winner with, or the name or path of a recipe.
        changes: settings to change, by name: {"final": True, "budget.stored_as": "int8"}.
        max_parameters, max_macs, max_ram, max_flash: limits, such as 100_000 or "100k"; bytes as
            "64K". 0: no limit.
        trials: number of networks to train; 0: as many as there is time for. With the same number,
            seed and threads, a search is reproducible bit for bit.
        time: time of the whole search, including the winner's training: "2h" or "1h30m".
        recipe: name of the recipe to record; by default that of `config`, or "custom".
        dataset: name or path of a dataset, or a dataset in memory; by default that of the config.
        output: new folder; by default runs/search-seedN-DATE-TIME.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache, or a download.
        trial_images: number of training images of a trial; 0: 10,000, or all if there are fewer.
        trial_epochs: epochs of a trial that is trained to its last rung; 0: depends on the number
            of images, and fewer if the time is short.
        generation: number of trials drawn together. The best third of them continues to three times
            as many epochs, and the best third of these to nine times as many.
        workers: number of trials to train at once, each in its own process; or a Ray cluster,
            which trains as many as it has room for: "ray" for the one that runs on this machine or
            that RAY_ADDRESS names, "ray://HOST:PORT" for another. Needs sprat[ray].
        cpus_per_trial: CPU threads of each; 0: the cores, divided among the workers, or 1 on Ray.
        gpus_per_trial: fraction of a GPU for each on Ray; 0: a whole GPU, if trials run on GPUs.
        quiet: whether to print nothing.
        stopping: as for `train`.

    Raises:
        SpratError: Optuna or Ray is missing, no cluster can be reached or none of its machines has
            what a trial needs, there is no such recipe or setting, no network meets the limits,
            the time is too short, the data is not available or does not fit, the folder is not
            empty, or a file cannot be written.
        KeyboardInterrupt: it was interrupted; `resume_search` continues.
    """
    began = perf_counter()
    require_optuna()
    check_alone("the trials of a search")
    numbers = {
        "trials": trials, "trial_images": trial_images, "trial_epochs": trial_epochs,
        "generation": generation, "cpus_per_trial": cpus_per_trial,
    }  # fmt: skip
    parse_workers(workers)
    seconds, gpus_per_trial = _check_numbers(numbers, time), check_gpus(gpus_per_trial)
    if isinstance(config, str):
        recipe, config = recipe or config, load_recipe(config)
    limits = {"max_parameters": max_parameters, "max_macs": max_macs}
    limits |= {"max_ram": max_ram, "max_flash": max_flash}
    given = {f"budget.{name}": limit for name, limit in limits.items() if limit}
    settings = config.changed({**(changes or {}), **given})
    if isinstance(dataset, str | Path):
        settings = settings.changed({"dataset": str(dataset)})
    check_names(settings, dataset)
    if output is not None:
        _check_new(Path(output))

    from sprat.display import TrainingDisplay, load_shown, make_console
    from sprat.searching.plan import write_plan
    from sprat.searching.prepare import prepare
    from sprat.searching.space import sides_of
    from sprat.training.prepare import check

    console = make_console(quiet=quiet)
    check(settings)
    with contextlib.ExitStack() as stack:
        team = stack.enter_context(open_workers(workers))
        threads = team.threads(cpus_per_trial)
        team.check(threads, gpus_per_trial)
        named = not isinstance(dataset, Dataset)
        if not isinstance(dataset, Dataset):
            dataset = load_shown(console, settings.dataset, as_path(data_dir), settings.pictures)
        own = dataset.own is not None
        sides = sides_of(dataset.train.images.shape[-1], own=own)
        source = _source(settings, dataset, as_path(data_dir), sides, named=named)
        if output is None:
            folder = stack.enter_context(new_run("search", settings.seed))
        else:
            folder = Path(output)
        plan = prepare(
            settings,
            dataset,
            source.md5,
            recipe=recipe or "custom",
            trials=trials,
            seconds=seconds,
            began=began,
            trial_images=trial_images,
            trial_epochs=trial_epochs,
            generation=generation,
            threads=threads,
            observer=TrainingDisplay(console),
        )
        where = _Where(team, team.gpus(gpus_per_trial, plan.trial.device))
        where.check(plan)
        with _searching(folder, stopping) as should_stop:
            _check_new(folder)
            write_plan(folder / FOLDER, plan)
            return _to_the_end(plan, folder, source, where, console, should_stop, began)


def resume_search(
    folder: str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    workers: int | str = 1,
    gpus_per_trial: float = 0,
    quiet: bool = False,
    stopping: Stopping | None = None,
) -> Search:
    """Resume an interrupted search with the settings it began with, or return a finished one.

    Args:
        folder: folder of the search.
        dataset: new location of the data, if it has moved, or the dataset itself. The images must
            be those that the search began with.
        workers, gpus_per_trial: as for `search`; the threads of each trial do not change.
        data_dir, quiet, stopping: as for `search`.

    Raises:
        SpratError: it is not a search's folder, another process is searching there, the journal is
            damaged or belongs to another search, or the data is not what the search began with.
    """
    began = perf_counter()
    require_optuna()
    check_alone("the trials of a search")
    parse_workers(workers)
    gpus_per_trial = check_gpus(gpus_per_trial)
    folder = Path(folder)

    from sprat.display import load_again, make_console
    from sprat.searching.plan import read_plan

    plan = read_plan(folder / FOLDER)
    if (finished := resume_finished(folder)) and (
        outcome := outcomes.read_outcome(folder / FOLDER)
    ):
        return Search(folder, finished, outcome)
    console = make_console(quiet=quiet)
    named = not isinstance(dataset, Dataset)
    if not isinstance(dataset, Dataset):
        moved = None if dataset is None else str(dataset)
        dataset = load_again(console, folder, plan.config, moved, as_path(data_dir))
    settings = dataclasses.replace(plan.config, dataset=dataset.name)
    source = dataclasses.replace(
        _source(settings, dataset, as_path(data_dir), plan.sides[:1], named=named), md5=plan.data
    )
    if dataset.md5 != plan.data[plan.sides[0]]:
        raise SpratError(
            f"The search in {folder} used other images than this {dataset.name}. Resume it with "
            "the data that it began with."
        )
    with open_workers(workers) as team:
        where = _Where(team, team.gpus(gpus_per_trial, plan.trial.device))
        where.check(plan)
        with _searching(folder, stopping) as should_stop:
            sweep_run(folder / FOLDER)
            return _to_the_end(plan, folder, source, where, console, should_stop, began)


@dataclass(frozen=True)
class _Where:
    """Workers that train trials, and the GPUs of each trial."""

    workers: Workers
    gpus: float

    def check(self, plan: "Plan") -> None:
        self.workers.check(plan.trial.threads, self.gpus)


def _check_numbers(numbers: Mapping[str, int], time: str) -> float:
    """Check the numbers and the time; return the time in seconds, 0 if none is given."""
    for name, number in numbers.items():
        least = 1 if name == "generation" else 0
        if not least <= number <= MOST[name]:
            option = f"--{name.replace('_', '-')}"
            expected = f"{least} to {MOST[name]:,}"
            raise SpratError(f"{option} is {number}, expected {expected}. Give another number.")
    if not numbers["trials"] and not time:
        raise SpratError("The search has no end. Give --time 2h, or --trials 50.")
    return parse_time(time) if time else 0.0


def _check_new(folder: Path) -> None:
    """Check that a search can start in a folder."""
    from sprat.searching.plan import SETTINGS_FILE

    if (folder / FOLDER / SETTINGS_FILE).exists():
        raise SpratError(
            f"{folder} contains a search and is not overwritten. Give another --output, or "
            f"resume it: {command('sprat', 'search', '--resume', folder)}"
        )
    left = folder / FOLDER  # of a search that ended before it began
    empty = left.is_dir() and all(path.name.startswith(".") for path in left.iterdir())
    check_empty(folder, besides=(FOLDER,) if empty else ())


@contextlib.contextmanager
def _searching(folder: Path, stopping: Stopping | None) -> Any:
    """Lock a search's folder; yield the function that returns whether to stop. Folders that are
    still empty at the end are removed."""
    try:
        with (
            resumable(folder),
            locked(folder / FOLDER),
            stopping or contextlib.nullcontext(lambda: False) as should_stop,
        ):
            yield should_stop
    finally:
        for empty in (folder / FOLDER, folder):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _source(
    config: Config, dataset: Dataset, data_dir: Path | None, sides: tuple[int, ...], *, named: bool
) -> "Source":
    """Return the source of a search's images, after reading them once at each side."""
    from sprat.data import load_dataset
    from sprat.pools.source import Source

    first, *others = sides
    md5 = {first: dataset.md5}
    for side in others:
        pictures = dataclasses.replace(config.pictures, side=side)
        md5[side] = load_dataset(dataset.name, data_dir, own=pictures).md5
    own = dataset.own is not None
    pictures = dataset.own or config.pictures
    held = None if own and named else dataset
    return Source(dataset.name, data_dir, pictures, md5, own, held, named)


def _to_the_end(
    plan: "Plan",
    folder: Path,
    source: "Source",
    where: "_Where",
    console: "Console",
    should_stop: Any,
    began: float,
) -> Search:
    from sprat.display import TrainingDisplay
    from sprat.reporting.search import write_search_page
    from sprat.run_folder import read_config
    from sprat.training import start

    inner = folder / FOLDER
    outcome = outcomes.read_outcome(inner)
    if outcome is None:
        outcome = _decide(plan, folder, source, where, console, should_stop, began)
    path = inner / outcomes.RECIPE_FILE
    with TrainingDisplay(console) as display:
        if (folder / CONFIG_FILE).exists():
            dataset = source.load(read_config(folder)[0].pictures.side)
            results = start.resume(folder, dataset, observer=display, should_stop=should_stop)
        else:
            config = outcomes.read_recipe(inner, plan)
            dataset = source.load(config.pictures.side)
            config = dataclasses.replace(config, dataset=dataset.name)
            results = start.train(
                config,
                dataset,
                folder,
                recipe=str(path),
                observer=display,
                should_stop=should_stop,
                besides=(FOLDER,),
            )
    from sprat.figures.png import draw_curves

    draw_curves(folder)
    write_search_page(inner, plan, outcome, results)
    return Search(folder, results, outcome)


def _decide(
    plan: "Plan",
    folder: Path,
    source: "Source",
    where: "_Where",
    console: "Console",
    should_stop: Any,
    began: float,
) -> "Outcome":
    """Search, and write all files of the search's own folder, outcome.json last."""
    import shutil

    from sprat.display import SearchDisplay
    from sprat.evaluation.records import write_json
    from sprat.figures.png import draw_pareto
    from sprat.reporting.search import write_search_page
    from sprat.searching.driver import WORK_FOLDER, Driver
    from sprat.searching.trial import train_rung
    from sprat.training.pace import fit

    inner = folder / FOLDER
    pool = where.workers.pool(
        train_rung, source, should_stop, threads=plan.trial.threads, gpus=where.gpus
    )
    try:
        with SearchDisplay(console) as display:
            driver = Driver(plan, inner, pool, watcher=display, began=began)
            display.started(driver, folder)
            decision = driver.run()
    except Stopped as stopped:
        raise Interrupted(folder) from stopped
    finally:
        pool.close()
    outcome = outcomes.outcome_of(decision, driver)
    records = outcomes.write_trials(inner, decision)
    draw_pareto(
        [record for record in records if record["state"] != "refused"],
        decision.winner.number,
        outcome["limits"],
        inner / outcomes.PARETO_FILE,
    )
    config = outcomes.winning_config(plan, decision)
    if plan.seconds:
        dataset = source.load(config.pictures.side)
        since = perf_counter() - driver.elapsed
        config = fit(config, dataset, plan.seconds, since, strict=False)
    outcomes.write_recipe(inner, config, outcome)
    write_search_page(inner, plan, outcome, None)
    write_json(inner / outcomes.OUTCOME_FILE, outcome)
    shutil.rmtree(inner / WORK_FOLDER, ignore_errors=True)
    winner = decision.winner
    console.print(
        f"found {visible(winner.design.network)}: {winner.cost['parameters']:,} parameters, "
        f"{winner.cost['macs']:,} MACs; its recipe is {visible(inner / outcomes.RECIPE_FILE)}"
    )
    return outcome
