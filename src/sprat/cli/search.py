"""The command sprat search."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sprat.cli.app import app
from sprat.cli.errors import complain
from sprat.cli.options import DataDir
from sprat.cli.stop import Stop
from sprat.data import ACCEPTED
from sprat.data.own import PicturesConfig
from sprat.errors import Interrupted, SpratError, in_words
from sprat.settings.config import BudgetConfig
from sprat.text import command, visible

if TYPE_CHECKING:
    from sprat.api import Search

DEFAULT_RECIPE = "sprat-cpu"


@app.command
def search(
    *,
    dataset: Annotated[str, Parameter(help=f"{ACCEPTED}.")] = "auto",
    budget: Annotated[BudgetConfig, Parameter(name="*")] = BudgetConfig(),  # noqa: B008
    time: str = "",
    trials: int = 0,
    recipe: str = DEFAULT_RECIPE,
    final: Annotated[bool, Parameter(negative=())] = False,
    output: Path | None = None,
    resume: Path | None = None,
    seed: int = 0,
    workers: str = "1",
    cpus_per_trial: int = 0,
    gpus_per_trial: float = 0,
    trial_images: int = 0,
    trial_epochs: int = 0,
    generation: int = 9,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    data_dir: DataDir = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
    quiet: Annotated[bool, Parameter(negative=())] = False,
) -> int:
    """Search for the most accurate network within limits, and train it: needs sprat[search].

    Parameters
    ----------
    time
        Time of the whole search, including the winner's training: 2h or 1h30m.
    trials
        Number of networks to train, which makes the search reproducible; 0: as --time allows.
    recipe
        Name of the recipe to train the winner with, or the path of a .toml file. Its
        network is not used.
    final
        Train the winner on all training images, then evaluate it once on the test set.
    output
        New folder; by default runs/search-seedN-DATE-TIME.
    resume
        Folder of an interrupted search to resume; only --dataset, --data-dir, --workers and
        --gpus-per-trial may be added.
    seed
        Seed of the search, and of every training.
    workers
        Number of trials to train at once, each in its own process; or ray, the Ray cluster that
        runs on this machine; or ray://HOST:PORT. Ray needs sprat[ray].
    cpus_per_trial
        CPU threads of each trial; 0: the cores, divided among the workers, or 1 on Ray.
    gpus_per_trial
        Fraction of a GPU for each trial on Ray; 0: a whole GPU, if trials run on GPUs.
    trial_images
        Number of training images of a trial; 0: 10,000, or all if there are fewer.
    trial_epochs
        Epochs of a trial that is trained to the end; 0: depends on the images and the time.
    generation
        Number of trials drawn together; at least --workers keeps all workers busy.
    device
        Device to train on; auto: the first available of cuda, mps, cpu.
    quiet
        Print only errors and warnings.
    """
    from sprat import api
    from sprat.api.runs import Unfinished

    stop, changes = Stop(), _changes(budget, pictures)
    resumed = partial(_to_resume, data_dir=data_dir, workers=workers, gpus=gpus_per_trial)
    place = dataset if dataset != "auto" else None
    try:
        if resume is not None:
            _check_resumed(changes, time, trials, output, final, recipe != DEFAULT_RECIPE)
            found = api.resume_search(
                resume,
                dataset=place,
                data_dir=data_dir,
                workers=workers,
                gpus_per_trial=gpus_per_trial,
                quiet=quiet,
                stopping=stop,
            )
        else:
            changes |= {"final": final, "seed": seed, "device": device, "dataset": dataset}
            found = api.search(
                recipe, changes, time=time, trials=trials, output=output, data_dir=data_dir,
                trial_images=trial_images, trial_epochs=trial_epochs, generation=generation,
                workers=workers, cpus_per_trial=cpus_per_trial, gpus_per_trial=gpus_per_trial,
                quiet=quiet, stopping=stop,
            )  # fmt: skip
    except Interrupted as stopped:
        complain(f"Stopped and saved. Resume with\n  {resumed(stopped.folder)}")
        return 128 + stop.asked
    except Unfinished as error:
        raise SpratError(
            f"{in_words(error.reason)} Then resume with", f"  {resumed(error.folder)}"
        ) from error
    _print_found(found, quiet)
    return 0


def _changes(budget: BudgetConfig, pictures: PicturesConfig) -> dict[str, object]:
    """Return the settings that were given, by their names in a recipe."""
    return {
        f"{table}.{field.name}": getattr(values, field.name)
        for table, values in (("budget", budget), ("pictures", pictures))
        for field in dataclasses.fields(values)
        if getattr(values, field.name) != field.default
    }


def _check_resumed(*given: object) -> None:
    if any(given):
        raise SpratError(
            "--resume continues a search exactly as it began. Leave other settings out (--dataset "
            "and --data-dir may name the place where its data is now)."
        )


def _to_resume(folder: Path, *, data_dir: Path | None, workers: str, gpus: float) -> str:
    words: list[str | Path] = ["sprat", "search", "--resume", folder]
    words += ["--data-dir", data_dir] if data_dir else []
    words += ["--workers", workers] if workers != "1" else []
    words += ["--gpus-per-trial", f"{gpus:g}"] if gpus else []
    return command(*words)


def _print_found(found: "Search", quiet: bool) -> None:
    from sprat.api.runs import resumable
    from sprat.display import make_console, print_evaluation
    from sprat.evaluation.records import evaluation_of

    console, results, outcome = make_console(quiet=quiet), found.results, found.outcome
    which = "the test set, read once" if results["final"] else "val"
    tried = "There was no time to try a network. Give more --time."
    if outcome["trained"]:
        tried = (
            f"{outcome['trained']:,} networks were trained and {outcome['refused']:,} refused by "
            "the limits."
        )
    with resumable(found.folder):
        console.print(
            f"\n{tried} The winner has {results['parameters']:,} parameters; on "
            f"{visible(results['dataset'])} ({which}):"
        )
        print_evaluation(console, evaluation_of(results)[1])
        console.print(
            f"\n{visible(found.folder)}/ contains model.safetensors, results.json and, in "
            "search/, all trials, pareto.png, report.html and winner.toml."
        )
