"""Output on terminals (progress bars, tables), in notebooks, and as plain lines elsewhere."""

import collections
import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from sprat.data import is_path
from sprat.errors import SpratError
from sprat.searching.watcher import Watcher
from sprat.settings.config import Config, PicturesConfig
from sprat.text import command, visible, visible_lines, warn
from sprat.threads import spinning_advice
from sprat.training.observer import Observer

if TYPE_CHECKING:  # printing a table must not load torch
    from sprat.budget import Summary, Verdict
    from sprat.data import Dataset, found
    from sprat.data.check import DataCheck
    from sprat.deploy.agreement import Contender
    from sprat.deploy.c.compiler import Compiled
    from sprat.evaluation.records import EpochRow, Evaluation
    from sprat.run_list import ListedRun
    from sprat.searching.driver import Driver
    from sprat.searching.trial import Rung
    from sprat.searching.trials import Trial
    from sprat.training.run import Run

HEADER = "epoch     loss   accuracy   EMA accuracy   learning rate   seconds   images/s"
RUNS_HEADER: tuple[str, ...] = (
    *("run", "state", "recipe", "network", "parameters", "epochs", "val", "test", "time"),
)
IMBALANCED = 1.5  # ratio of the largest to the smallest class from which imbalance is reported
FEW_TENSORS = 6  # up to so many are named one by one
SHOWN = 10  # findings of each kind that a check of the data lists
PLAIN_EVERY = 30  # seconds between the lines that replace the bar
WATCH_EVERY = 2  # seconds between two updates of a table of runs
NOTEBOOK_EVERY = 1  # seconds between two updates of a bar in a notebook
NOTEBOOK_WIDTH = 80  # characters of such a bar


class PlainConsole(Console):
    """Console that prints text unchanged: no markup, emoji codes or highlighting, and no control
    sequences. Names in it must go through `visible`, which keeps them in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as rich does, but without wrapping text at the terminal's width."""
        if objects and all(isinstance(each, str) for each in objects):
            options.setdefault("soft_wrap", True)
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(visible_lines(text), **options)


def make_console(*, stderr: bool = False, quiet: bool = False) -> Console:
    """Return a console for a command or a run from Python. It prints plain text in a notebook too,
    since rich would turn every line into a separate output."""
    return PlainConsole(stderr=stderr, quiet=quiet, force_jupyter=False)


class NotebookProgress(Progress):
    """Progress bar in the output of a notebook's cell: text that is replaced in place and keeps its
    last state. rich's own bar needs ipywidgets and is lost when the notebook is saved."""

    def __init__(self, *columns: ProgressColumn, console: Console) -> None:
        still = (column for column in columns if not isinstance(column, SpinnerColumn))
        super().__init__(*still, console=console)
        self._thread: threading.Thread | None = None
        self._stopped = threading.Event()

    def start(self) -> None:
        """Show the bar, once."""
        if self._thread is None and not self.console.quiet:
            from IPython.display import display

            self._shown = display(self._contents(), raw=True, display_id=True)
            self._thread = threading.Thread(target=self._follow, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Leave the bar in its current state."""
        if self._thread is not None and not self._stopped.is_set():
            self._stopped.set()
            self._thread.join()
            self._shown.update(self._contents(), raw=True)

    def _follow(self) -> None:
        while not self._stopped.wait(NOTEBOOK_EVERY):
            self._shown.update(self._contents(), raw=True)

    def _contents(self) -> dict[str, str]:
        text = io.StringIO()
        plain = PlainConsole(
            file=text, width=NOTEBOOK_WIDTH, force_jupyter=False, color_system=None
        )
        plain.print(self.get_renderable())
        return {"text/plain": text.getvalue().rstrip()}


def _make_bar(console: Console, *columns: ProgressColumn, redirect: bool = False) -> Progress:
    """Return a progress bar, which is removed at its end unless it is in a notebook.

    redirect: whether to show what is printed meanwhile above the bar.
    """
    if Console().is_jupyter:
        return NotebookProgress(*columns, console=console)
    return Progress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=redirect,
        redirect_stderr=redirect,
    )


def _description() -> TextColumn:
    return TextColumn("{task.description}", markup=False)


def _can_move(bar: Progress) -> bool:
    """Return whether a bar can be shown; elsewhere rich would print an empty line at its end."""
    return bar.console.is_terminal or isinstance(bar, NotebookProgress)


class _WithBar:
    """Display with a bar; a context manager, since the bar must be removed whatever happens."""

    progress: Progress

    def __enter__(self) -> Self:
        if _can_move(self.progress):
            self.progress.start()
        return self

    def __exit__(self, *error: object) -> None:
        if _can_move(self.progress):
            self.progress.stop()


class TrainingDisplay(_WithBar, Observer):
    """Display of a run: a bar for each epoch and a table of epochs."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = _make_bar(
            console,
            _description(),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[rate]:>6,.0f} images/s"),
            TextColumn("{task.fields[left]}"),
            redirect=True,
        )
        self.task: TaskID | None = None
        self.evaluating_task: TaskID | None = None

    def preparing(self, what: str) -> None:
        self._print(f"{what} …")

    def started(self, run: "Run") -> None:
        from sprat.training.prepare import why_torch

        config = run.config
        count = len(run.images.batches.dataset)
        self._print(
            f"{visible(config.model)} on {visible(run.dataset.name)}: {count:,} training "
            f"images, {config.epochs} epochs of {len(run.images.batches)} steps, on "
            f"{config.device} in {config.precision} with {config.threads} threads, into "
            f"{visible(run.folder)}"
        )
        self._print_imbalance(run)
        if reason := why_torch(config):
            self._print(f"Training with plain PyTorch: {reason}.")
        if config.device == "cpu" and (advice := spinning_advice(config.threads)):
            self._print(advice)
        self._print_start(run)
        if run.steps_taken:
            self._print(f"resumed after step {run.steps_taken:,} of {run.total_steps:,}")
        images = "a fixed sample of training images (the probe)" if config.final else "val"
        if config.fold:
            images = f"fold {config.fold} of {config.folds}, which is not used to choose anything"
        self._print(f"accuracy is measured on {images}\n{HEADER}")
        for row in run.progress.history:
            self._print_row(row)
        for task in self.progress.task_ids:  # of an earlier seed
            self.progress.update(task, visible=False)
        self.began, self.began_step = time.perf_counter(), run.steps_taken
        self.last_line = self.began
        self.task = self.progress.add_task("", total=len(run.images.batches), rate=0, left="")

    def stepped(self, run: "Run") -> None:
        now = time.perf_counter()
        seconds_a_step = (now - self.began) / (run.steps_taken - self.began_step)
        rate = run.config.batch_size / seconds_a_step
        left = f"{_duration((run.total_steps - run.steps_taken) * seconds_a_step)} left"
        # the step that ends an epoch is reported before the epoch is counted
        epoch, done = run.progress.epoch + 1, run.progress.batch
        if _can_move(self.progress):
            assert self.task is not None
            description = f"epoch {epoch}/{run.config.epochs}"
            self.progress.update(
                self.task, completed=done, description=description, rate=rate, left=left
            )
        elif now - self.last_line > PLAIN_EVERY:
            self.last_line = now
            share = 100 * done / len(run.images.batches)
            self._print(f"  epoch {epoch}: {share:.0f} %, {rate:,.0f} images/s, {left}")

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        self._print_row(row)
        if run.finished:
            images = run.final_images
            name = "the test set" if run.images.val is None else "val"
            name = f"fold {run.config.fold}" if run.config.fold else name
            if self.task is not None:
                self.progress.update(self.task, visible=False)
            self.evaluating_task = self.progress.add_task(
                f"evaluating {name}", total=run.config.tta * len(images), rate=0, left=""
            )
            self.evaluating_began, self.evaluated = time.perf_counter(), 0

    def evaluating(self, images: int) -> None:
        if self.evaluating_task is not None:
            self.evaluated += images
            rate = self.evaluated / (time.perf_counter() - self.evaluating_began)
            self.progress.update(self.evaluating_task, advance=images, rate=rate)

    def _print_start(self, run: "Run") -> None:
        """Print which weights come from the model that the run starts from, and which are new."""
        start = run.origin.start
        if start is None or run.steps_taken:
            return
        tensors = len(start["taken"]) + len(start["new"])
        self._print(
            f"Starting from {visible(start['model'])}: {len(start['taken']):,} of {tensors:,} "
            f"tensors copied, with {start['taken_parameters']:,} parameters; "
            f"{start['new_parameters']:,} parameters are new"
        )
        names = {"copied": start["taken"], "new": start["new"]}
        for what, each in names.items():
            self._print(f"  {what + ':':12} {visible(_in_short(each)) or 'none'}")
        if start["classifier"] == "reordered":
            self._print(
                "  The classes have another order, and the classifier was reordered to match"
            )

    def _print_imbalance(self, run: "Run") -> None:
        from sprat.data.imageset import class_counts

        counts = class_counts(run.images.batches.dataset)
        least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
        if counts[most] < IMBALANCED * counts[least]:
            return
        remedy = "--class-weights balanced gives every class the same weight in the loss"
        if run.config.class_weights == "balanced":
            remedy = "every class has the same weight in the loss"
        self._print(
            f"The classes are imbalanced, from {counts[least]:,} training images "
            f"({visible(least)}) to {counts[most]:,} ({visible(most)}); {remedy}"
        )

    def _print_row(self, row: "EpochRow") -> None:
        raw, averaged = (
            "—" if share is None else f"{100 * share:.2f} %"
            for share in (row["top1"], row["ema_top1"])
        )
        self._print(
            f"{row['epoch']:5} {row['loss']:8.4f} {raw:>10} {averaged:>14} "
            f"{row['lr']:15.4g} {row['seconds']:9.1f} {row['images_per_s']:10,.0f}"
        )

    def _print(self, text: str) -> None:
        self.console.print(text)


class SearchDisplay(_WithBar, Watcher):
    """Display of a search: a bar of trials or of time, and a line for each generation."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = _make_bar(
            console,
            _description(),
            BarColumn(),
            TextColumn("{task.fields[best]}"),
            TextColumn("{task.fields[left]}"),
            redirect=True,
        )
        self.task: TaskID | None = None
        self.best: Trial | None = None
        self.done = 0  # trials that have reached a rung

    def started(self, driver: "Driver", folder: Path) -> None:
        """Print the plan, before the first trial of a new or resumed search."""
        plan = driver.plan
        workers = driver.pool.workers
        self._print(
            f"searching on {visible(plan.config.dataset)}: trials of {plan.trial_images:,} "
            f"training images, compared after {', '.join(map(str, plan.rungs))} epochs, "
            f"{workers} at once with {plan.trial.threads} threads each, into {visible(folder)}"
        )
        tried = [trial for trial in driver.trained if trial.rungs]
        for trial in tried:
            self._take(trial)
        self.done = len(tried)
        if driver.trials:
            self._print(f"resumed after {self.done:,} trials")
        self.last_line = time.perf_counter()
        self.task = self.progress.add_task("", total=1, best="", left="")
        self._show(driver)

    def asked(self, trials: "Sequence[Trial]", driver: "Driver") -> None:
        refused = sum(trial.refused for trial in [*driver.trials, *trials])
        number = trials[0].generation + 1
        count = sum(not trial.refused for trial in trials)
        self._print(
            f"generation {number}: {count} trials; {refused:,} refused by the limits so far"
            f"{self._best()}"
        )
        self._show(driver)

    def rung_ended(self, trial: "Trial", rung: "Rung", driver: "Driver") -> None:
        if rung.val is not None and not rung.key.endswith("-long"):
            self._take(trial)
            self.done += len(trial.rungs) == 1
        self._show(driver)

    def finalists(self, trials: "Sequence[Trial]", epochs: int, driver: "Driver") -> None:
        if epochs:
            self._print(
                f"the best {len(trials)} are trained for {epochs} epochs of all training images"
            )

    def _take(self, trial: "Trial") -> None:
        if self.best is None or trial.rank < self.best.rank:
            self.best = trial

    def _best(self) -> str:
        if self.best is None or not self.best.rungs:
            return ""
        return f"; best {100 * self.best.val:.2f} % after {max(self.best.rungs)} epochs"

    def _show(self, driver: "Driver") -> None:
        plan, elapsed, left = driver.plan, driver.elapsed, 0.0
        if plan.seconds:
            share, left = elapsed / plan.seconds, max(0.0, plan.seconds - elapsed)
        else:
            share = self.done / plan.trials
            left = elapsed * max(0.0, 1 / share - 1) if share else 0.0
        said = f"{self.done} trials"
        remaining = f"{_duration(left)} left" if left else ""
        if _can_move(self.progress):
            assert self.task is not None
            best = self._best().removeprefix("; ")
            self.progress.update(
                self.task, completed=min(share, 1), description=said, best=best, left=remaining
            )
        elif time.perf_counter() - self.last_line > PLAIN_EVERY:
            self.last_line = time.perf_counter()
            self._print(f"  {said}{self._best()}{', ' if remaining else ''}{remaining}")

    def _print(self, text: str) -> None:
        self.console.print(text)


class FoldsDisplay(_WithBar, Observer):
    """Display of folds trained for another purpose: one bar, and a line for each finished fold."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = _make_bar(
            console,
            _description(),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeRemainingColumn(),
        )
        self.task: TaskID | None = None

    def preparing(self, what: str) -> None:
        self.console.print(f"{what} …")

    def started(self, run: "Run") -> None:
        total = run.config.folds * run.total_steps
        if self.task is None:
            self.task = self.progress.add_task("", total=total)
        self.stepped(run)

    def stepped(self, run: "Run") -> None:
        assert self.task is not None
        fold, folds = run.config.fold, run.config.folds
        done = (fold - 1) * run.total_steps + run.steps_taken
        self.progress.update(self.task, completed=done, description=f"fold {fold} of {folds}")

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        if run.finished and row["top1"] is not None:
            self.console.print(
                f"fold {run.config.fold} of {run.config.folds}: the model predicts "
                f"{100 * row['top1']:.2f} % of its labels; {run.progress.seconds:.0f} seconds"
            )


def _in_short(names: list[str]) -> str:
    """Return names of tensors as a line; if there are many, their number in each part."""
    if len(names) <= FEW_TENSORS:
        return ", ".join(names)
    parts = collections.Counter(name.partition(".")[0] for name in names)
    return ", ".join(f"{part} ({count})" for part, count in parts.items())


def print_summary(console: Console, summary: "Summary") -> None:
    """Print a network's layers as a table, and its totals."""
    rows = [("layer", "type", "output", "parameters", "MACs", "field", "jump")]
    rows += [
        (
            layer.name or "—",
            layer.kind,
            " x ".join(map(str, layer.output)),
            f"{layer.parameters:,}",
            f"{layer.macs:,}",
            "—" if layer.receptive_field is None else str(layer.receptive_field),
            "—" if layer.jump is None else str(layer.jump),
        )
        for layer in summary.layers
    ]
    print_table(console, rows, left=2)
    field = summary.receptive_field
    seen = "the whole image" if field is None else f"{field} x {field} px"
    flash, ram, peak = (
        ", ".join(f"{size / 1024:,.1f} KiB in {name}" for name, size in sizes.items())
        for sizes in (summary.flash_bytes, summary.ram_bytes or {}, summary.peak_bytes)
    )
    if plan := summary.plan:
        memory = (
            f"  arena              {ram}, in {visible(plan.layer)}\n"
            f"  image              {plan.image / 1024:,.1f} KiB, not in the arena"
        )
    else:
        memory = (
            f"  arena              not planned: {visible(summary.unplanned)}\n  peak activations   "
            f"{peak}, in {visible(summary.peak_layer)}, if no layer overwrites its input"
        )
    console.print(
        f"\n{visible(summary.model)} on {summary.channels} x {summary.side} x {summary.side}\n"
        f"  parameters         {summary.parameters:,}\n"
        f"  MACs               {summary.macs:,}  (of convolutions and linear layers)\n"
        f"  receptive field    {seen}, before global pooling\n"
        f"  weights            {flash}\n{memory}"
    )


def print_verdicts(console: Console, model: str, verdicts: "Sequence[Verdict]") -> None:
    """Print limits next to the achieved values."""
    rows = [(model, "target", "achieved", "margin", "status")]
    rows += [
        (v.metric, v.target, v.achieved, f"{v.margin:+.1%}", "kept" if v.kept else "BROKEN")
        for v in verdicts
    ]
    print_table(console, rows, left=1)


def print_contenders(console: Console, contenders: "Sequence[Contender]") -> None:
    """Print size, time and accuracy of a model in several formats."""
    rows = [("", "bytes", "one image, ms", "accuracy")]
    rows += [
        (
            "torch fp32" if contender.name == "torch" else contender.name,
            f"{contender.bytes:,}",
            "—" if contender.ms_for_one_image is None else f"{contender.ms_for_one_image:.2f}",
            "—" if contender.top1 is None else f"{100 * contender.top1:.2f} %",
        )
        for contender in contenders
    ]
    print_table(console, rows, left=1)


def print_compiled(console: Console, compiled: "Compiled") -> None:
    """Print the memory of a model compiled from C."""
    ram, flash = compiled.arena + compiled.stack, compiled.constants + compiled.code
    calls, library = " > ".join(compiled.chain), ", ".join(compiled.library)
    console.print(
        f"Compiled by {visible(compiled.compiler)} with {visible(compiled.flags)}:\n"
        f"  RAM    {ram:,} bytes: arena {compiled.arena:,}, stack {compiled.stack:,} (frames of "
        f"the deepest calls: {visible(calls)})\n"
        f"  flash  {flash:,} bytes: constants {compiled.constants:,}, code {compiled.code:,}"
        + (f"\n  not counted: {visible(library)} from the compiler's library" if library else "")
    )


def print_evaluation(console: Console, evaluation: "Evaluation") -> None:
    """Print an evaluation: accuracy with its interval, calibration, accuracy by class."""
    tta = evaluation.get("tta_views", 2)  # older runs recorded neither views nor p-value
    p = evaluation.get("tta_p")
    by_chance = "" if p is None else f"  (McNemar's test: p = {p:.2g})"
    views = "with the mirrored view" if tta == 2 else f"mean of {tta} views"
    low, high = (100 * share for share in evaluation["top1_ci95"])
    console.print(
        f"  accuracy                  {100 * evaluation['top1']:.2f} %  "
        f"(95 % interval {low:.2f} to {high:.2f}, {evaluation['n']:,} images)\n"
        f"  {views:24}  {100 * evaluation['tta_top1']:.2f} %{by_chance}\n"
        f"  calibration error (ECE)   {100 * evaluation['ece']:.2f} %"
    )
    shares = [(visible(name), share) for name, share in evaluation["per_class"].items()]
    width = max(len(name) for name, _ in shares)
    for name, share in shares:
        shown = "no image" if share is None else f"{100 * share:6.2f} %  {'█' * round(30 * share)}"
        console.print(f"    {name:{width}}  {shown}")


def print_check(console: Console, found: "DataCheck") -> None:
    """Print a dataset's problems, some of each kind by name, and its number of pictures by
    class."""
    console.print(f"{visible(found.dataset)}: {len(found.names):,} pictures")
    rows = [["class", *found.per_class]]
    for name in found.images.classes:
        rows.append([name, *(f"{counts[name]:,}" for counts in found.per_class.values())])
    print_table(console, rows, left=1)

    def named(place: int) -> str:
        return visible(found.short(found.names[place]))

    kinds: list[tuple[str, list[str]]] = []
    for title, pairs in (
        ("leaks, the same picture in two parts", found.leaks),
        ("conflicts, the same picture with two labels", found.conflicts),
        ("duplicates within a part", found.duplicates),
    ):
        kinds.append((title, []))
        for pair in pairs:
            ends = [f"{named(n)} ({visible(found.label(n))})" for n in (pair.first, pair.second)]
            kinds[-1][1].append(f"{' and '.join(ends)}{'' if pair.exact else ', nearly the same'}")
    kinds.append(("unreadable files", [visible(error) for _, error in found.unreadable]))
    for title, places in (
        ("tiny pictures", found.tiny),
        ("blank pictures", found.blank),
        ("nearly constant pictures", found.nearly_constant),
    ):
        kinds.append((title, [named(place) for place in places]))
    if labels := found.labels:
        console.print(
            f"labels: models trained without the picture predict {100 * labels.top1:.2f} % of them "
            f"({labels.folds} folds, recipe {visible(labels.recipe)}, {labels.epochs} epochs); "
            f"{labels.confident:,} are probably wrong, by confident learning"
        )
        kinds.append(("labels that differ from the prediction, the worst first", []))
        for each in labels.suspects:
            names = (visible(found.images.classes[n]) for n in (each.label, each.suggested))
            shares = (each.label_probability, each.suggested_probability)
            label, suggested = (
                f"{n} ({100 * s:.0f} %)" for n, s in zip(names, shares, strict=True)
            )
            kinds[-1][1].append(f"{named(each.place)}: labelled {label}, probably {suggested}")
    for title, lines in kinds:
        console.print(f"{title}: {len(lines):,}" if lines else f"{title}: none")
        for line in lines[:SHOWN]:
            console.print(f"  {line}")
        if len(lines) > SHOWN:
            console.print(f"  and {len(lines) - SHOWN:,} more, listed by --json")


def print_table(
    console: Console, rows: Sequence[Sequence[str]], left: int, left_again: int = 1000
) -> None:
    """Print a table; the first `left` columns, and all from `left_again` on, are left-aligned."""
    for line in table_lines(rows, left, left_again):
        console.print(line)


def table_lines(rows: Sequence[Sequence[str]], left: int, left_again: int = 1000) -> list[str]:
    """Return the lines of `print_table`."""
    shown = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = []
    for row in shown:
        cells = [
            f"{cell:{'>' if left <= column < left_again else '<'}{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("   ".join(cells).rstrip())
    return lines


def print_runs(console: Console, runs: "Sequence[ListedRun]") -> None:
    """Print a table of runs, those that share a folder below a line with their mean; then the
    problems of damaged ones."""
    for line in _runs_lines(runs):
        console.print(line)


def watch_runs(console: Console, read: "Callable[[], list[ListedRun]]") -> None:
    """Print a table of runs and update it while one of them is training. Where it cannot be updated
    in place, print it once no run is training."""

    def training() -> bool:
        return any(run.state == "training" for run in runs)

    runs = read()
    if console.is_terminal and training():
        with Live(console=console, auto_refresh=False) as live:
            while True:
                text = Text("\n".join(_runs_lines(runs)), no_wrap=True, overflow="ellipsis")
                live.update(text, refresh=True)
                if not training():
                    return
                time.sleep(WATCH_EVERY)
                runs = read()
    while training():
        time.sleep(WATCH_EVERY)
        runs = read()
    print_runs(console, runs)


def _runs_lines(runs: "Sequence[ListedRun]") -> list[str]:
    from sprat.run_list import groups

    if not runs:
        return ["There is no such run."]
    rows = [RUNS_HEADER]
    for group in groups(runs):
        if len(group) == 1:
            rows.append(_run_row(group[0].name, group[0]))
            continue
        folder = f"{group[0].group}/"
        rows.append(_group_row(folder, group))
        rows += [_run_row(f"  {run.name.removeprefix(folder)}", run) for run in group]
    lines = table_lines(rows, left=4)
    for run in runs:
        if run.error:
            lines.append(f"{visible(run.name)} is damaged: {visible(run.error)}")
    return lines


def _run_row(name: str, run: "ListedRun") -> tuple[str, ...]:
    state: str = run.state
    if run.seconds_left is not None:
        state += f", {_duration(run.seconds_left)} left"
    epochs = "—" if run.epochs is None else f"{run.epochs}/{run.epochs_in_all}"
    return (
        name,
        state,
        run.recipe or "—",
        run.network or "—",
        "—" if run.parameters is None else f"{run.parameters:,}",
        epochs,
        _percent(run.val),
        _percent(run.test),
        "—" if run.seconds is None else _duration(run.seconds),
    )


def _group_row(name: str, runs: "Sequence[ListedRun]") -> tuple[str, ...]:
    """Return the row of several runs: shared values, the mean accuracy of finished runs, and the
    total time."""

    def shared(values: Iterable[str]) -> str:
        found = set(values)
        return found.pop() if len(found) == 1 else "—"

    def mean(values: Iterable[float | None]) -> str:
        found = [value for value in values if value is not None]
        return f"mean {_percent(fmean(found))}" if found else "—"

    rows = [_run_row("", run) for run in runs]
    finished = [run for run in runs if run.state == "finished"]
    return (
        name,
        f"{len(runs)} runs",
        *(shared(row[column] for row in rows) for column in (2, 3, 4)),
        "—",
        mean(run.val for run in finished),
        mean(run.test for run in finished),
        _duration(sum(run.seconds or 0 for run in runs)),
    )


def _percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.2f} %"


@contextmanager
def progress_bar(console: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for work on images; yield the function to call with how many more are done."""
    bar = _make_bar(
        console,
        _description(),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    task = bar.add_task(what, total=total)
    with _shown(bar):
        yield lambda images: bar.advance(task, images)


def load_shown(
    console: Console,
    name: str,
    data_dir: Path | None,
    pictures: PicturesConfig,
    *,
    whole: bool = False,
    table: bool = True,
) -> "Dataset":
    """Call `load_dataset` with a progress bar and with warnings on stderr; then, if `table` is
    true, print a table of own pictures."""
    from sprat.data import load_dataset

    said: list[str] = []  # printed after the spinner, which would break it up
    try:
        counted = "pictures" if is_path(name) else "bytes"
        with loading(console, f"loading the dataset ({visible(name)})", counted) as progress:
            note = noting(console)
            loaded = load_dataset(
                name, data_dir, said.append, progress, note, pictures, whole=whole
            )
    finally:
        for text in said:
            warn(text)
    if loaded.found is not None and table:
        print_found(console, loaded.name, loaded.found)
    return loaded


def print_found(console: Console, place: str, summary: "found.Summary") -> None:
    """Print a table of the parts of own pictures."""
    console.print(f"{visible(place)}: {visible(summary.layout)}")
    print_table(console, summary.rows(), left=1, left_again=3)


def load_again(
    console: Console,
    run: Path,
    config: Config,
    moved: str | None,
    data_dir: Path | None,
    verb: str = "train",
) -> "Dataset":
    """Load the data of a run to resume, with `load_shown`.

    moved: its new location, if it has moved since the run began.
    verb: the sprat command that resumes it.

    Raises:
        SpratError: it is not available.
    """
    name = moved or config.dataset
    if not moved and is_path(name) and not Path(name).exists():
        raise SpratError(
            f"{run} was trained on {name}, which is no longer there. If the data has moved, give "
            f"its new place: {command('sprat', verb, '--resume', run)} --dataset NEW_PLACE"
        )
    return load_shown(console, name, data_dir, config.pictures)


def noting(console: Console) -> Callable[[str], None]:
    """Return a function that prints lines, above the bar if one is shown."""
    return lambda text: console.print(text)


@contextmanager
def loading(
    console: Console, what: str, counted: str = "bytes"
) -> Iterator[Callable[[int, int], None]]:
    """Show a spinner while data loads; yield the function to call with the number of bytes
    downloaded or pictures read, so far and in all, which turns the spinner into a bar."""
    doing, done_so_far = ("fetching", "fetched") if counted == "bytes" else ("reading", "read")
    columns = (
        (DownloadColumn(), TransferSpeedColumn()) if counted == "bytes" else (MofNCompleteColumn(),)
    )
    spinner = _make_bar(console, SpinnerColumn(), _description())
    spinner.add_task(what, total=None)
    bar = _make_bar(console, _description(), BarColumn(), *columns, TimeRemainingColumn())
    task = bar.add_task(doing, total=None)
    last_line, started = time.perf_counter(), False

    def show(done: int, total: int) -> None:
        nonlocal last_line, started
        bar.update(task, completed=done, total=total or None)
        if _can_move(bar):
            spinner.stop()
            bar.start()
            started = True
        elif time.perf_counter() - last_line > PLAIN_EVERY:
            last_line = time.perf_counter()
            speed, left = bar.tasks[task].speed, bar.tasks[task].time_remaining
            rate = f", {speed:,.0f} {counted}/s" if speed else ""
            rate += f", {_duration(left)} left" if left is not None else ""
            console.print(f"  {done_so_far} {done:,} of {total:,} {counted}{rate}")

    with _shown(spinner):
        try:
            yield show
        finally:
            if started:
                bar.stop()


@contextmanager
def doing(console: Console, what: str) -> Iterator[Callable[[str], None]]:
    """Show a spinner for work in several parts; yield the function to call with the current
    part."""
    spinner = _make_bar(console, SpinnerColumn(), _description())
    task = spinner.add_task(what, total=None)
    with _shown(spinner):
        yield lambda what: spinner.update(task, description=what)


@contextmanager
def _shown(bar: Progress) -> Iterator[None]:
    """Start and stop a bar, if it can be shown."""
    if not _can_move(bar):
        yield
        return
    with bar:
        yield


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
