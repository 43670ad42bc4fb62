"""Observers, which a run notifies while it trains. Separate from training, which imports torch."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sprat.errors import SpratError, shown
from sprat.text import warn

if TYPE_CHECKING:
    from sprat.evaluation.records import EpochRow, RunResult
    from sprat.training.run import Run


class Observer:
    """Base class for objects that are notified of a run's progress. Override the methods you need.

    An observer must not change anything, neither weights nor settings. It may draw random numbers
    without affecting the run.

    It may read `folder`, `config` (`config.to_dict()` has every setting), `dataset`, `steps_taken`,
    `total_steps`, `progress.epoch` (number of finished epochs), `progress.history` (a row of
    metrics.jsonl for each epoch) and `step.network`, whose weights the next step changes.
    """

    def preparing(self, what: str) -> None:
        """Called before something that takes seconds, usually only once on a machine."""

    def started(self, run: "Run") -> None:
        """Called before the first step of a new or resumed run."""

    def stepped(self, run: "Run") -> None:
        """Called after every step."""

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        """Called after an epoch is evaluated and saved; `row` is its line of metrics.jsonl."""

    def evaluating(self, images: int) -> None:
        """Called during the final evaluation, when `images` more are done."""

    def finished(self, run: "Run", results: "RunResult") -> None:
        """Called after everything is written; `results` is the content of results.json."""

    def closed(self, run: "Run") -> None:
        """Called at the end, whether the run has finished, was interrupted or failed."""


class Observers(Observer):
    """Several observers as one: a display, and others that can neither end a run nor change it.

    If one of the others fails, it is warned about once and not called again.

    Raises:
        SpratError: one of the others is not an Observer.
    """

    def __init__(self, display: Observer, others: Sequence[Observer]) -> None:
        check_observers(others)
        self.display, self.others = display, list(others)

    def preparing(self, what: str) -> None:
        self.display.preparing(what)
        self._report("preparing", what)

    def started(self, run: "Run") -> None:
        self.display.started(run)
        self._report("started", run)

    def stepped(self, run: "Run") -> None:
        self.display.stepped(run)
        self._report("stepped", run)

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        self.display.epoch_ended(run, row)
        self._report("epoch_ended", run, row)

    def evaluating(self, images: int) -> None:
        self.display.evaluating(images)
        self._report("evaluating", images)

    def finished(self, run: "Run", results: "RunResult") -> None:
        self.display.finished(run, results)
        self._report("finished", run, results)

    def closed(self, run: "Run") -> None:
        self.display.closed(run)
        self._report("closed", run)

    def _report(self, event: str, *what: object) -> None:
        for observer in tuple(self.others):
            try:
                with _apart(what[0]):
                    getattr(observer, event)(*what)
            except (Exception, SystemExit) as error:
                self.others.remove(observer)
                with contextlib.suppress(OSError):
                    warn(
                        f"The observer {type(observer).__name__} failed in {event} "
                        f"({type(error).__name__}: {error}). The run continues without it."
                    )


def check_observers(observers: object) -> None:
    """Check the value of an `observers` argument.

    Raises:
        SpratError: it is not a list or tuple of observers.
    """
    wrong = [observers]
    if isinstance(observers, list | tuple):
        wrong = [each for each in observers if not isinstance(each, Observer)]
    if wrong:
        raise SpratError(
            f"observers contains {shown(wrong[0])}, expected a list of instances of "
            "sprat.Observer. Derive a class from it, and pass instances of that class."
        )


@contextlib.contextmanager
def _apart(run: object) -> Iterator[None]:
    """Restore torch's random state, gradient mode and the network's mode after an observer ran."""
    import torch

    network = run.step.network if hasattr(run, "step") else None
    training = network is not None and network.training
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            yield
        finally:
            if network is not None and network.training != training:
                network.train(training)
