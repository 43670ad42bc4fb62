"""Functions that train: train, train_seeds, train_folds, resume."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from sprat.data import Dataset, check_dataset
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError, in_words
from sprat.evaluation.records import FoldsResult, RunResult, SeedSummary
from sprat.files import WriteError
from sprat.models import NetworkConfig, find_name, takes_in_channels
from sprat.models.code import Code, is_own, use_all, use_networks, used
from sprat.pools import open_workers, parse_workers
from sprat.run_folder import (
    CONFIG_FILE,
    CURVES_FILE,
    check_empty,
    new_run,
    read_config,
    resume_finished,
)
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides, parse_time, proportion_note
from sprat.text import command, visible, warn
from sprat.torchrun import is_first, launched, restarts
from sprat.training.observer import Observer, Observers, check_observers
from sprat.zoo import locate

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.training.several import Apart, How

Stopping = AbstractContextManager[Callable[[], bool]]
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path
    """Folder with config.json, metrics.jsonl, results.json, curves.png, model.safetensors and
    last.pt."""
    results: RunResult
    """Content of results.json. Fractions are from 0 to 1; what was not measured is None."""


@dataclass(frozen=True)
class Seeds:
    """Finished runs of one recipe with several seeds."""

    folder: Path
    """Folder with the folder seed-N of each run, and summary.json."""
    summary: SeedSummary
    """Content of summary.json: mean, standard deviation and range of the accuracy over the
    seeds."""


@dataclass(frozen=True)
class Folds:
    """Finished runs of a cross-validation."""

    folder: Path
    """Folder with the folder fold-N of each run, results.json, and the out-of-fold predictions
    as out-of-fold.csv and, with the probability of every class, as out-of-fold.safetensors."""
    results: FoldsResult
    """Content of results.json: mean, standard deviation and range of the accuracy over the
    folds, and the evaluation of all out-of-fold predictions together."""


class Unfinished(WriteError):
    """A run ended because a file cannot be written or another of its processes has ended.

    Args:
        reason: error that ended it.
        folder: folder of the run, which can be resumed if `resumable`.
    """

    def __init__(self, reason: OSError, folder: Path) -> None:
        self.reason, self.folder = reason, folder
        self.resumable = (folder / CONFIG_FILE).exists()
        remedy = f" Then resume with sprat.resume({str(folder)!r})." if self.resumable else ""
        super().__init__(f"{in_words(reason)}{remedy}", reason)


def train(
    config: Config | str = "quick",
    changes: Mapping[str, Any] | None = None,
    *,
    recipe: str = "",
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    time: str = "",
    code: Code = (),
    quiet: bool = False,
    stopping: Stopping | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Train a network, like the command `sprat train`.

    Args:
        config: settings, or the name or path of a recipe.
        changes: settings to change, by name: {"epochs": 12, "optim.lr": 0.2}. If the number of
            epochs changes, settings counted in epochs scale with it unless they are given. With
            "start_from", the network is that of the named model, except for network settings in
            `changes`; "model" replaces it as a whole.
        recipe: name of the recipe to record; by default that of `config`, or "custom".
        dataset: name or path of a dataset, or a dataset in memory; by default that of the config.
        output: new folder for the run; by default runs/RECIPE-seedN-DATE-TIME. Required with
            torchrun; a restarted run resumes from it.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache, or a download.
        time: train as many epochs as finish in this time, including evaluation: "5m" or "1h30m".
            The resulting recipe is saved in the run's folder.
        code: Python file or module that defines the config's network, or several of them; the file
            is run. Not needed for a network in `changes`.
        quiet: whether to print nothing.
        stopping: context manager, entered during training, that returns a function. sprat calls it
            after every step; if it returns true, the run is saved and Interrupted is raised.
        observers: objects that are notified of the run's progress (see Observer). If one fails,
            sprat prints a warning and continues without it.

    Raises:
        SpratError: there is no such recipe or setting, the time is too short, the data is not
            available or does not fit, the model to start from does not exist or has no weights in
            common with the network, the folder is not empty or another process is training there,
            the loss is not finite, or a file cannot be written.
        KeyboardInterrupt: it was interrupted; `resume` continues after the last finished epoch.
    """
    began = perf_counter()
    if launched():
        _check_together(output, time)
    check_observers(observers)
    _use(code, changes)
    plan = _plan(config, changes, recipe, dataset, data_dir, time, quiet, _check_one_run)

    from sprat import distributed
    from sprat.training import start

    with contextlib.ExitStack() as stack:
        if output is None:
            folder = stack.enter_context(new_run(plan.recipe, plan.config.seed))
        else:
            folder = Path(output)
        if time:
            check_empty(folder)
            plan = plan.fitted(folder, time, began)
        with (
            distributed.joined(plan.config.device),
            plan.training(folder, stopping, observers) as how,
        ):
            if restarts() and (folder / CONFIG_FILE).exists():
                results = start.resume(
                    folder, plan.dataset, observer=how["observer"], should_stop=how["should_stop"]
                )
            else:
                results = start.train(plan.config, plan.dataset, folder, **how)
        return _finished(folder, results)


def train_seeds(
    config: Config | str = "quick",
    changes: Mapping[str, Any] | None = None,
    *,
    seeds: int,
    recipe: str = "",
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    time: str = "",
    code: Code = (),
    quiet: bool = False,
    stopping: Stopping | None = None,
    ended: Callable[[Run], object] | None = None,
    observers: Sequence[Observer] = (),
    workers: int | str = 1,
) -> Seeds:
    """Train with several consecutive seeds, starting at the config's, like `sprat train --seeds`.

    Finished seeds are kept, and an interrupted one is resumed.

    Args:
        seeds: number of runs.
        output: folder for the runs, each in seed-N; by default runs/RECIPE.
        ended: called with each seed's run as soon as it is finished.
        workers: number of runs to train at once, each in its own process, with the cores divided
            among them; or a Ray cluster, as for `search`, where every machine must have access to
            `output`. There, each run has the config's number of `threads`, or 1, and one GPU if it
            trains on GPUs. Observers are copied to each process.
        The others are as for `train`.

    Raises:
        SpratError: as for `train`, or a seed's folder contains a run with other settings or data.
        KeyboardInterrupt: it was interrupted; the same call resumes.
    """
    began = perf_counter()
    check_alone("several seeds")
    parse_workers(workers)
    if not 1 <= seeds <= MOST_SEEDS:
        raise SpratError(f"seeds is {seeds}, expected 1 to {MOST_SEEDS:,}. Give another number.")
    check_observers(observers)
    _use(code, changes)
    plan = _plan(config, changes, recipe, dataset, data_dir, time, quiet, _check_no_folds)

    from sprat.training import seeds as training

    folder = Path(output or Path("runs") / Path(plan.recipe).stem)
    with _several(plan, workers, dataset, data_dir, code, observers) as (plan, apart):
        if time:
            plan = plan.fitted(folder, time, began, again=True)
        with plan.training(folder, stopping, () if apart else observers) as how:
            summary = training.train_seeds(
                plan.config, plan.dataset, folder, seeds, _reporting(ended), apart, **how
            )
    return Seeds(folder, summary)


def train_folds(
    config: Config | str = "quick",
    changes: Mapping[str, Any] | None = None,
    *,
    folds: int = 0,
    recipe: str = "",
    dataset: Dataset | str | Path | None = None,
    output: str | Path | None = None,
    data_dir: str | Path | None = None,
    time: str = "",
    code: Code = (),
    quiet: bool = False,
    stopping: Stopping | None = None,
    ended: Callable[[Run], object] | None = None,
    observers: Sequence[Observer] = (),
    workers: int | str = 1,
) -> Folds:
    """Cross-validate, like `sprat train --folds`: each training image is predicted once, by a run
    that was not trained on it.

    Like a final run, the run of a fold trains for the full length of the recipe and keeps its last
    weights, so that nothing is chosen on the fold. If the dataset has its own val, its images are
    divided into folds with the others. The test set is not read. Finished folds are kept, and an
    interrupted one is resumed.

    Args:
        folds: number of folds; 0: the config's.
        output: folder for the runs, each in fold-N; by default runs/RECIPE-folds.
        ended: called with each fold's run as soon as it is finished.
        workers: as for `train_seeds`.
        The others are as for `train`.

    Raises:
        SpratError: as for `train`, or a class has fewer training images than there are folds, there
            are fewer groups, or a fold's folder contains a run with other settings or data.
        KeyboardInterrupt: it was interrupted; the same call resumes.
    """
    began = perf_counter()
    check_alone("folds")
    parse_workers(workers)
    check_observers(observers)
    _use(code, changes)
    changes = {**(changes or {}), **({"folds": folds} if folds else {})}
    plan = _plan(config, changes, recipe, dataset, data_dir, time, quiet, _check_all_folds)

    from sprat.training import folds as training

    folder = Path(output or Path("runs") / f"{Path(plan.recipe).stem}-folds")
    with _several(plan, workers, dataset, data_dir, code, observers) as (plan, apart):
        if time:
            of_one = dataclasses.replace(plan.config, fold=1)
            plan = dataclasses.replace(plan, config=of_one).fitted(folder, time, began, again=True)
        with plan.training(folder, stopping, () if apart else observers) as how:
            results = training.train_folds(
                plan.config, plan.dataset, folder, _reporting(ended), apart, **how
            )
    return Folds(folder, results)


def resume(
    folder: str | Path,
    *,
    dataset: Dataset | str | Path | None = None,
    data_dir: str | Path | None = None,
    code: Code = (),
    quiet: bool = False,
    stopping: Stopping | None = None,
    observers: Sequence[Observer] = (),
) -> Run:
    """Resume an interrupted run with the settings it began with, or return a finished run
    unchanged.

    Args:
        folder: folder of the run.
        dataset: new location of the data, if it has moved, or the dataset itself. The images,
            labels and classes must be those that the run began with.
        data_dir, code, quiet, stopping, observers: as for `train`.

    Raises:
        SpratError: it is not a run's folder, another process is training there, or the data is not
            what the run began with.
    """
    check_observers(observers)
    use_all(code)
    folder = Path(folder)
    config, _, _ = read_config(folder)
    if finished := resume_finished(folder):
        return _finished(folder, finished)

    from sprat import distributed
    from sprat.display import TrainingDisplay, load_again, make_console
    from sprat.training import start

    console = make_console(quiet=quiet or not is_first())
    if not isinstance(dataset, Dataset):
        moved = None if dataset is None else str(dataset)
        dataset = load_again(console, folder, config, moved, as_path(data_dir))
    with (
        distributed.joined(config.device),
        resumable(folder),
        stopping or _never() as should_stop,
        TrainingDisplay(console) as display,
    ):
        results = start.resume(
            folder, dataset, observer=Observers(display, observers), should_stop=should_stop
        )
    return _finished(folder, results)


@contextlib.contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Raise Unfinished, which says how to resume the run in `folder`, if a file cannot be written
    or a process has ended; what was saved before is intact."""
    try:
        yield
    except (BrokenPipeError, Unfinished):
        raise
    except OSError as error:
        raise Unfinished(error, folder) from error


def _check_together(output: str | Path | None, time: str) -> None:
    """Check what processes that torchrun started must agree on."""
    if output is None:
        raise SpratError(
            "Several processes train in one folder, but no folder is given. Give --output."
        )
    if time:
        raise SpratError(
            f"With --time {time}, each process that torchrun started would choose a different "
            "number of epochs. Give --epochs instead."
        )


@contextlib.contextmanager
def _several(
    plan: "_Plan",
    workers: int | str,
    dataset: object,
    data_dir: str | Path | None,
    code: Code,
    observers: Sequence[Observer],
) -> Iterator[tuple["_Plan", "Apart | None"]]:
    """Connect to the workers of several runs for the block; yield the plan with the number of
    threads of each run, and how runs are trained at once (None with one worker).

    Args:
        dataset: dataset as the user gave it.
    """
    with open_workers(workers) as team:
        if not team.several:
            yield plan, None
            return
        from sprat.pools.source import Source
        from sprat.training.several import Apart

        _check_copies(observers)
        threads = team.threads(plan.config.threads)
        config = dataclasses.replace(plan.config, threads=threads)
        of_data, named = plan.dataset, not isinstance(dataset, Dataset)
        pictures, own = of_data.own or config.pictures, of_data.own is not None
        side = config.pictures.side
        source = Source(
            of_data.name, as_path(data_dir), pictures, {side: of_data.md5}, own,
            None if own and named else of_data, named,
        )  # fmt: skip
        sources = used() if code or is_own(config.model) else []
        apart = Apart(team, source, tuple(sources), tuple(observers))
        yield dataclasses.replace(plan, config=config), apart


def _check_copies(observers: Sequence[Observer]) -> None:
    """Check that observers can be copied to other processes."""
    import pickle

    for observer in observers:
        try:
            pickle.dumps(observer)
        except Exception as error:  # the user's own class
            raise SpratError(
                f"The observer {type(observer).__name__} cannot be copied to other processes "
                f"({error}). Define its class in a file and keep open files and locks out of it, "
                "or use one worker."
            ) from error


def check_alone(what: str) -> None:
    """Check that torchrun did not start this process."""
    if launched():
        raise SpratError(
            f"torchrun trains a single run, but {what} were requested. Start sprat without "
            "torchrun."
        )


def _check_one_run(config: Config) -> None:
    if config.all_folds:
        raise SpratError(
            f"folds is {config.folds}, which needs that many runs. Train them with train_folds, or "
            "set fold to train a single one."
        )


def _check_no_folds(config: Config) -> None:
    if config.folds:
        raise SpratError(
            f"folds is {config.folds}, but several seeds were requested as well. Give either seeds "
            "or folds."
        )


def _check_all_folds(config: Config) -> None:
    if not config.folds:
        raise SpratError("folds is 0, expected at least 2. Give a number of folds.")
    if config.fold:
        raise SpratError(
            f"fold is {config.fold}, but all {config.folds} folds were requested. Leave fold out."
        )


def _reporting(ended: Callable[[Run], object] | None) -> Callable[[Path, RunResult], None]:
    """Return the function to call with each finished run: it draws the run's curves and calls
    `ended`."""

    def each_ended(run: Path, results: RunResult) -> None:
        finished = _finished(run, results)
        if ended:
            ended(finished)

    return each_ended


def _finished(folder: Path, results: RunResult) -> Run:
    if is_first() and not (folder / CURVES_FILE).exists():  # also of an earlier run
        from sprat.figures.png import draw_curves

        with resumable(folder):
            draw_curves(folder)
    return Run(folder, results)


@contextlib.contextmanager
def _never() -> Iterator[Callable[[], bool]]:
    yield lambda: False


@dataclass(frozen=True)
class _Plan:
    """Everything that is decided before training starts."""

    recipe: str
    config: Config
    overrides: dict[str, Any]
    dataset: Dataset
    console: "Console"

    @contextlib.contextmanager
    def training(
        self, folder: Path, stopping: Stopping | None, observers: Sequence[Observer]
    ) -> Iterator["How"]:
        """During the block, show training on the console and stop it when asked; yield the
        arguments of training besides config, data and folder."""
        from sprat.display import TrainingDisplay

        with (
            resumable(folder),
            stopping or _never() as should_stop,
            TrainingDisplay(self.console) as display,
        ):
            yield {
                "recipe": self.recipe,
                "overrides": self.overrides,
                "observer": Observers(display, observers),
                "should_stop": should_stop,
            }

    def fitted(self, folder: Path, time: str, since: float, *, again: bool = False) -> "_Plan":
        """Return the plan with as many epochs as finish in the given time.

        Args:
            since: value of `time.perf_counter` when the time began.
            again: whether to use the number of epochs that an earlier call saved in `folder`.
        """
        from sprat.training.pace import fit, fit_again, fitted_recipe, keep_recipe

        kept = fitted_recipe(folder, self.recipe, time)
        if again and kept.exists():
            config = fit_again(self.config, kept)
        else:
            self.console.print(f"timing a few steps to find how many epochs fit into {time}")
            config = fit(self.config, self.dataset, parse_time(time), since)
        recipe = keep_recipe(config, kept)
        return dataclasses.replace(self, recipe=recipe, config=config, overrides={})


def _plan(
    config: Config | str,
    changes: Mapping[str, Any] | None,
    recipe: str,
    dataset: Dataset | str | Path | None,
    data_dir: str | Path | None,
    time: str,
    quiet: bool,
    check_folds: Callable[[Config], None],
) -> _Plan:
    """Check all arguments, before and after torch is loaded, and load the dataset.

    Args:
        check_folds: raises a SpratError if the config's folds do not fit the calling function.
    """
    if isinstance(config, str):
        recipe, config = recipe or config, load_recipe(config)
    settings = config.changed(changes or {})
    check_folds(settings)
    changed = overrides(settings, config)
    if time:
        parse_time(time)
        if "epochs" in changed:
            raise SpratError(
                "--time determines the number of epochs, so --epochs cannot be given as well. "
                "Leave one of them out."
            )
    if isinstance(dataset, str | Path):
        settings = settings.changed({"dataset": str(dataset)})
    check_names(settings, dataset)

    from sprat.display import load_shown, make_console
    from sprat.training.prepare import check

    console = make_console(quiet=quiet or not is_first())
    if settings.start_from:
        network = _network_to_start(config, changes or {}, settings)
        settings = dataclasses.replace(settings, network=network)
        changed = overrides(settings, config)
    check(settings)  # before a download
    if note := proportion_note(settings, config):
        console.print(note)
    if not isinstance(dataset, Dataset):
        pictures = settings.pictures
        if pictures.channels == "auto" and not takes_in_channels(settings.network):
            pictures = dataclasses.replace(pictures, channels=3)
        dataset = load_shown(console, settings.dataset, as_path(data_dir), pictures)
    if dataset.own is not None:
        _warn_of_leaks(dataset, dataset.own)
    return _Plan(recipe or "custom", settings, changed, dataset, console)


def _network_to_start(
    config: Config, changes: Mapping[str, Any], settings: Config
) -> NetworkConfig:
    """Return the network of a run that starts from a model: that of the model, unless `changes`
    name a network, or the recipe names both the model and a network.

    Args:
        settings: `config` with the changes.

    Raises:
        SpratError: there is no such model, or it has no weights in common with the network.
    """
    from sprat.models import draft_network
    from sprat.training.head_start import HeadStart

    start = HeadStart.load(settings.start_from)
    names_another = "start_from" not in changes and config.network != NetworkConfig()
    network = settings.network
    if not (names_another or {"model", "network.name"} & changes.keys()):
        of_model = dataclasses.replace(config, network=start.model.network_config)
        network = of_model.changed(changes).network
    classes = start.model.classes
    start.give(draft_network(network, len(classes)), network, classes)
    return network


def _warn_of_leaks(dataset: Dataset, own: PicturesConfig) -> None:
    from sprat.data.check import count_leaks

    count = count_leaks(dataset)
    if count:
        pictures = "1 picture" if count == 1 else f"{count:,} pictures"
        changed = {
            field.name: getattr(own, field.name)
            for field in dataclasses.fields(own)
            if getattr(own, field.name) != field.default and field.name != "unreadable"
        }
        options = [
            word
            for name, value in changed.items()
            for word in (f"--pictures.{name.replace('_', '-')}", value)
        ]
        warn(
            f"{pictures} of val or test in {visible(dataset.name)} can also be found, exactly or "
            "nearly, in another part, so the measured accuracy will be too high. List them with\n"
            f"  {command('sprat', 'data', 'check', dataset.name, *options)}"
        )


def check_names(config: Config, dataset: object = None) -> None:
    """Check all names in a config, before torch is loaded.

    Args:
        dataset: dataset that replaces the config's; one in memory needs no check.

    Raises:
        SpratError: there is no such dataset, network, teacher or model to start from.
    """
    if dataset is None or isinstance(dataset, str | Path):
        check_dataset(config.dataset)
    find_name(config.model)
    for model in (*config.distill.teacher, *filter(None, [config.start_from])):
        locate(model)


def _use(code: Code, changes: Mapping[str, Any] | None) -> None:
    """Run the code that the user named, and that of a network among `changes`."""
    use_networks(map((changes or {}).get, ("model", "network.name")), code)


def as_path(path: str | Path | None) -> Path | None:
    """Return a path that may be given as text; None stays None."""
    return None if path is None else Path(path)
