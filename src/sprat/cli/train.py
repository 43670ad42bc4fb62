"""sprat train."""

import contextlib
import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from sprat.cli.app import app
from sprat.cli.errors import complain, in_words
from sprat.cli.options import Code, DataDir, check_names, use_code
from sprat.cli.recipe import DEFAULT_RECIPE
from sprat.errors import SpratError
from sprat.models.code import is_own, source_of
from sprat.settings.config import COMMON, RUN, Config
from sprat.settings.recipes import load_recipe, overrides, parse_time, proportion_note
from sprat.text import command as to_paste
from sprat.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.evaluation.records import RunResult, SeedSummary

MOST_SEEDS = 10_000


@app.command
def train(
    *,
    recipe: Annotated[str, Parameter(group=COMMON)] = DEFAULT_RECIPE,
    model: Annotated[str, Parameter(group=COMMON)] = "",
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
    code: Annotated[Code, Parameter(group=RUN)] = (),
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
    model
        Network by name, or a class of your own as my_nets.py:MyNet; drops the recipe's network
        settings.
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
    use_code(*code, *([source_of(model)] if is_own(model) else []))
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
        from sprat.run_folder import read_config

        config, _, _ = read_config(resume)
    else:
        check_names(config)

    from sprat.display import TrainingDisplay, load_again, load_shown, make_console
    from sprat.figures.png import draw_curves
    from sprat.run_folder import CONFIG_FILE, CURVES_FILE, check_empty, new_run, resume_finished
    from sprat.training import start
    from sprat.training.pace import fit, fit_again, fitted_recipe, keep_recipe
    from sprat.training.prepare import check
    from sprat.training.run import Interrupted
    from sprat.training.seeds import train_seeds

    console = make_console(quiet=quiet)
    if resume is None and (note := proportion_note(config, began_as)):
        console.print(note)

    def ended(run: Path, results: "RunResult") -> None:
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
            complain(f"stopped and saved; go on with\n  {to_paste(*command())}")
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
        raise SpratError(f"{in_words(error)} Then go on with", f"  {going_on}") from error


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


def _print_outcome(console: "Console", results: "RunResult", run: Path) -> None:
    from sprat.display import print_evaluation
    from sprat.evaluation.records import evaluation_of

    which = "the test set, read once" if results["final"] else "val"
    minutes = results["seconds"] / 60
    console.print(
        f"\n{visible(results['model'])}, {results['parameters']:,} parameters, "
        f"{results['epochs']} epochs in {minutes:.1f} minutes; on {visible(results['dataset'])} "
        f"({which}):"
    )
    print_evaluation(console, evaluation_of(results)[1])
    if results["dataset"] == "shapes10":
        console.print("This is shapes10, drawn shapes; it says nothing about CIFAR-10.")
    console.print(
        f"\n{visible(run)}/ holds model.safetensors, results.json, curves.png. Use the model:\n"
        f"  {to_paste('sprat', 'predict', run, 'picture.jpg')}\n"
        f"  {to_paste('sprat', 'evaluate', run)}"
    )


def _print_seeds(console: "Console", summary: "SeedSummary", folder: Path) -> None:
    count = len(summary["seeds"])
    seeds = "1 seed" if count == 1 else f"{count} seeds"
    console.print(f"\n{seeds}, on {summary['split']}:")
    figures = ((summary["top1"], "accuracy"), (summary["tta_top1"], "with test-time views"))
    for figure, label in figures:
        spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.2f}"
        console.print(
            f"  {label:24}  {100 * figure['mean']:.2f}{spread} %  (n = {figure['n']}, "
            f"{100 * figure['min']:.2f} to {100 * figure['max']:.2f})"
        )
    console.print(f"{visible(folder)}/summary.json holds them.")
