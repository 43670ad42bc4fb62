"""The command sprat train."""

import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from sprat import torchrun
from sprat.cli.app import app
from sprat.cli.errors import complain
from sprat.cli.options import Code, DataDir
from sprat.cli.recipe import DEFAULT_RECIPE, chosen_recipe
from sprat.cli.stop import Stop
from sprat.data import caution_for
from sprat.errors import Interrupted, SpratError, in_words
from sprat.models.code import is_own
from sprat.models.code import options as code_options
from sprat.pools import parse_workers
from sprat.settings.config import COMMON, RUN, Config
from sprat.settings.recipes import departures
from sprat.text import command as to_paste
from sprat.text import visible

if TYPE_CHECKING:
    from sprat.api import Folds, Run, Seeds
    from sprat.evaluation.records import Spread


@app.command
def train(
    *,
    recipe: Annotated[str, Parameter(group=COMMON)] = DEFAULT_RECIPE,
    model: Annotated[str, Parameter(group=COMMON)] = "",
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
    code: Annotated[Code, Parameter(group=RUN)] = (),
    time: Annotated[str, Parameter(group=COMMON)] = "",
    seeds: Annotated[int, Parameter(group=COMMON)] = 0,
    workers: Annotated[str, Parameter(group=RUN)] = "1",
    output: Annotated[Path | None, Parameter(group=COMMON)] = None,
    resume: Annotated[Path | None, Parameter(group=COMMON)] = None,
    data_dir: Annotated[DataDir, Parameter(group=RUN)] = None,
    log: Annotated[Literal["tensorboard"] | None, Parameter(group=RUN)] = None,
    quiet: Annotated[bool, Parameter(group=RUN, negative=())] = False,
) -> int:
    """Train a network from a recipe. Any setting can be changed with its option.

    A setting that the recipe does not set has the default shown below.

    Parameters
    ----------
    recipe
        Name of a recipe that comes with sprat, or path of a .toml file.
    model
        Name of a network, or a class of your own: my_nets.py:MyNet. Discards the recipe's network
        settings. By default the recipe's network, or that of --start-from.
    output
        New folder for the run; by default runs/RECIPE-DATE-TIME, with --seeds runs/RECIPE, with
        --folds runs/RECIPE-folds.
    resume
        Folder of an interrupted run to resume. Only --dataset, --data-dir and --log may be added.
    seeds
        Number of runs with consecutive seeds, starting at --seed, each in OUTPUT/seed-N; 0: one
        run.
    workers
        Number of runs of --seeds or --folds to train at once, each in its own process;
        or ray, the Ray cluster that runs on this machine; or ray://HOST:PORT. Ray needs sprat[ray].
    time
        Train as many epochs as finish in this time, including evaluation: 5m or 1h30m.
    log
        Also write the run's data for this program to RUN/tensorboard.
    quiet
        Print only errors and warnings.
    """
    from sprat import api
    from sprat.api.runs import Unfinished
    from sprat.tensorboard import TensorBoard

    began_as, stop = chosen_recipe.config, Stop()
    changes = departures(config, began_as) | ({"model": model} if model else {})
    # the command that resumes has to name the user's own network too
    code += tuple(filter(is_own, [model or changes.get("network.name", "")]))
    how: dict[str, Any] = {
        "data_dir": data_dir,
        "code": code,
        "quiet": quiet,
        "stopping": stop,
        "observers": [TensorBoard()] if log else [],
    }
    options = how | {"recipe": recipe, "output": output, "time": time}
    moved = changes.get("dataset") if resume else None  # the place of a run's data, if changed
    command = partial(
        _to_resume,
        several=seeds > 0 or config.all_folds,
        moved=moved,
        data_dir=data_dir,
        code=code,
        log=log,
    )
    ended = partial(_print_outcome, code=code, quiet=quiet or not torchrun.is_first())
    try:
        if resume is not None:
            others = output or seeds or time or workers != "1"
            _check_resumed(changes, recipe != DEFAULT_RECIPE or others)
            ended(api.resume(resume, dataset=moved, **how))
        else:
            _train(began_as, changes, seeds, config.all_folds, workers, ended, options)
    except Interrupted as stopped:
        complain(f"Stopped and saved. Resume with\n  {command(stopped.folder)}")
        return 128 + (stop.asked or signal.SIGTERM)  # another process may have been asked
    except Unfinished as error:
        raise SpratError(
            f"{in_words(error.reason)} Then resume with", f"  {command(error.folder)}"
        ) from error
    return 0


def _check_resumed(changes: dict[str, Any], others: object) -> None:
    """Check that a resumed run changes nothing but the location of its data.

    Args:
        others: true if options other than settings are given.
    """
    if others or changes.keys() - {"dataset"}:
        raise SpratError(
            "--resume continues a run with exactly the settings it began with. Leave all others "
            "out (use --dataset and --data-dir only if its data has moved)."
        )


def _train(
    config: Config,
    changes: dict[str, Any],
    seeds: int,
    folds: bool,
    workers: str,
    ended: Callable[["Run"], None],
    options: dict[str, Any],
) -> None:
    """Train one run, several seeds or the folds of a cross-validation."""
    from sprat import api

    several: dict[str, Any] = {"ended": ended, "workers": workers}
    if seeds:
        trained = api.train_seeds(config, changes, seeds=seeds, **several, **options)
        _print_seeds(trained, options["quiet"])
    elif folds:
        _print_folds(api.train_folds(config, changes, **several, **options), options["quiet"])
    elif parse_workers(workers) == 1:
        ended(api.train(config, changes, **options))
    else:
        raise SpratError(
            f"--workers is {workers}, but one run is trained. Give --seeds or --folds for several "
            "runs, or leave it out."
        )


def _to_resume(
    run: Path,
    *,
    several: bool,
    moved: str | None,
    data_dir: Path | None,
    code: tuple[str, ...],
    log: str | None,
) -> str:
    """Return the command that resumes one run or several, or starts what has not begun."""
    from sprat.run_folder import CONFIG_FILE

    if several or not (run / CONFIG_FILE).exists():
        return to_paste(*torchrun.command(), *sys.argv[1:])
    words: list[str | Path] = [*torchrun.command(), "train", "--resume", run]
    words += ["--dataset", moved] if moved else []
    words += ["--data-dir", data_dir] if data_dir else []
    words += ["--log", log] if log else []
    words += code_options(code)
    return to_paste(*words)


def _print_outcome(run: "Run", *, code: tuple[str, ...], quiet: bool) -> None:
    from sprat.api.runs import resumable
    from sprat.display import make_console, print_evaluation
    from sprat.evaluation.records import evaluation_of

    console, results = make_console(quiet=quiet), run.results
    which = "the test set, read once" if results["final"] else "val"
    if "fold" in results:
        which = f"fold {results['fold']} of {results['folds']}, on which it was not trained"
    minutes = results["seconds"] / 60
    with resumable(run.folder):
        console.print(
            f"\n{visible(results['model'])}, {results['parameters']:,} parameters, "
            f"{results['epochs']} epochs in {minutes:.1f} minutes; on "
            f"{visible(results['dataset'])} ({which}):"
        )
        print_evaluation(console, evaluation_of(results)[1])
        if caution := caution_for(results["dataset"]):
            console.print(caution)
        console.print(
            f"\n{visible(run.folder)}/ contains model.safetensors, results.json and curves.png. To "
            "use the model:\n  "
            f"{to_paste('sprat', 'predict', run.folder, 'picture.jpg', *code_options(code))}\n  "
            f"{to_paste('sprat', 'evaluate', run.folder, *code_options(code))}"
        )


def _print_seeds(found: "Seeds", quiet: bool) -> None:
    from sprat.api.runs import resumable
    from sprat.display import make_console

    console, summary = make_console(quiet=quiet), found.summary
    count = len(summary["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    with resumable(found.folder):
        console.print(f"\n{seeds}, on {summary['split']}:")
        console.print(_in_words(summary["top1"], "accuracy"))
        console.print(_in_words(summary["tta_top1"], "averaged over views"))
        console.print(f"All figures are in {visible(found.folder)}/summary.json.")


def _print_folds(found: "Folds", quiet: bool) -> None:
    from sprat.api.runs import resumable
    from sprat.display import make_console, print_evaluation

    console, results = make_console(quiet=quiet), found.results
    with resumable(found.folder):
        console.print(
            f"\n{len(results['folds'])} folds, each evaluated on the images that it held out:"
        )
        console.print(_in_words(results["top1"], "accuracy"))
        console.print(_in_words(results["tta_top1"], "averaged over views"))
        console.print("All out-of-fold predictions together:")
        print_evaluation(console, results["out_of_fold"])
        console.print(
            f"All predictions are in {visible(found.folder)}/: results.json, out-of-fold.csv and, "
            "with the probability of every class, out-of-fold.safetensors."
        )


def _in_words(figure: "Spread", label: str) -> str:
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.2f}"
    return (
        f"  {label:24}  {100 * figure['mean']:.2f}{spread} %  (n = {figure['n']}, "
        f"{100 * figure['min']:.2f} to {100 * figure['max']:.2f})"
    )
