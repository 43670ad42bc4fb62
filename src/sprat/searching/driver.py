"""The search itself: generations of trials, reduced at each rung, and the best network at the end.

    decision = Driver(plan, folder, pool).run()

Every rung is saved when it ends, so a kill loses only the trials in progress; the same call
resumes the search.
"""

import contextlib
import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sprat.checkpoint import load_resume
from sprat.errors import SpratError
from sprat.evaluation.records import read_json, write_json
from sprat.files import write_whole
from sprat.pools import Pool, run_all
from sprat.searching.cost import Counter
from sprat.searching.journal import Journal, ask
from sprat.searching.plan import (
    FINALISTS,
    LONGER,
    Plan,
    generation_seconds,
    survivors,
)
from sprat.searching.space import Space
from sprat.searching.trial import Rung, Task
from sprat.searching.trials import Trial
from sprat.searching.watcher import Watcher
from sprat.shapes import FLAG, POSITIVE, SHARE, Shape, mismatch, whole

JOURNAL_FILE, WORK_FOLDER = "journal.log", "work"
FINALISTS_FILE = "finalists.json"
LONG = "-long"  # appended to a trial's number: the key of its task as a finalist
# a task is given up after so many times its expected time, so that none takes all the time
PATIENCE = 4.0
LEAST_PATIENCE = 30.0  # seconds, up to half of those left: a new process loads torch and images
SLACK = 1.15  # a task is started only if so many times its expected time is left
RUNG: Shape = {
    "val": SHARE,
    "seconds": POSITIVE,
    "elapsed": POSITIVE,
    "diverged": FLAG,
}


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained for longer. epochs: of all training images; 0 if there was no
    time, so that `val` is that of the trial. val: None if there was no time for trials either."""

    trial: Trial
    epochs: int
    val: float | None


@dataclass(frozen=True)
class Decision:
    """Outcome of a search: all trials in the order drawn, and the finalists, best first."""

    trials: list[Trial]
    finalists: list[Finalist]
    seconds: float

    @property
    def winner(self) -> Trial:
        """The trial with the best design."""
        return self.finalists[0].trial


class Driver:
    """Run a search by its plan, in the search's own folder, from the point where it was stopped.

    Args:
        pool: runs the trials.
        watcher: notified of progress.
        clock: returns seconds; only differences matter.
        began: time of the clock when the search began; by default now.

    Raises:
        SpratError: the journal is damaged or another search's, or no network meets the limits.
    """

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        pool: Pool[Task, Rung],
        *,
        watcher: Watcher | None = None,
        clock: Callable[[], float] = time.perf_counter,
        began: float | None = None,
    ) -> None:
        self.plan, self.folder, self.pool = plan, folder, pool
        self.watcher, self.clock = watcher or Watcher(), clock
        self.began = clock() if began is None else began
        self.counter = Counter(plan.config.budget, plan.classes, plan.channels)
        self.space = Space(plan.config, plan.sides)
        self.space.check(self.counter)
        self.work = folder / WORK_FOLDER
        self.journal = Journal(folder / JOURNAL_FILE, plan.digest, self.space, plan.rungs[-1])
        generations = self.journal.read()
        self.trials = [trial for generation in generations for trial in generation]
        # the last generation, if a kill left it incomplete
        self.incomplete: list[Trial] = []
        self.size = self.journal.size() if generations else 0
        if generations and len(generations[-1]) < self.size:
            self.incomplete = generations[-1]
            self.trials = self.trials[: -len(self.incomplete)]
        # ratios of the tasks' times to those measured before the search
        self.slowness: list[float] = []
        if plan.seconds:
            begun = (trial for trial in [*self.trials, *self.incomplete] if trial.rungs)
            self.slowness = [self._slowness_of(trial) for trial in begun]
        self.ask_seconds = plan.ask_seconds
        self.spent = self._spent()  # seconds, before this process

    @property
    def elapsed(self) -> float:
        """Seconds of the search so far, including those before it was stopped."""
        return self.spent + self.clock() - self.began

    @property
    def trained(self) -> list[Trial]:
        """Trials of finished generations that meet the limits."""
        return [trial for trial in self.trials if not trial.refused]

    def run(self) -> Decision:
        """Search until the plan's number of trials or its time is reached; return what is best.

        Raises:
            Stopped: the search was asked to stop; the same call resumes it.
            SpratError: no trial could be trained, a worker died, or a file cannot be written.
        """
        while count := self._kept(f"generation-{self._next}.json", "trials", self._to_ask):
            if not self._generation(count):
                break
        return Decision(self.trials, self._finals(), self.elapsed)

    @property
    def _next(self) -> int:
        """Number of the next generation."""
        return self.trials[-1].generation + 1 if self.trials else 0

    def _kept(self, name: str, key: str, decide: Callable[[], int]) -> int:
        """Return a number that was saved before the search was stopped, or else decide and save it:
        a resumed search has less time left and would decide on another.

        Args:
            name: name of its file.
            key: key of the number in the file.
            decide: returns the number.
        """
        path = self.work / name
        with contextlib.suppress(SpratError):  # missing or damaged
            values = read_json(path)
            if not mismatch(values, {key: whole()}):
                return int(values[key])
        number = decide()
        write_json(path, {key: number})
        return number

    def _to_ask(self) -> int:
        """Return the number of trials of the next generation; 0 if there is none."""
        plan, count = self.plan, self.plan.generation
        if plan.trials:
            count = max(0, min(count, plan.trials - len(self.trained)))
        if plan.seconds and not self.incomplete:
            left, slowness = plan.trials_end - self.elapsed, self._slowness() / self.pool.workers
            least = 0 if self.trained else 1  # it wins untried if there is no time for it

            def needed() -> float:
                cost, task = plan.epoch_seconds, plan.task_seconds
                training = generation_seconds(plan.rungs, count, cost, task)
                return count * self.ask_seconds + slowness * training

            while count > least and needed() > left:
                count -= 1
        return count

    def _generation(self, count: int) -> bool:
        """Draw and train a generation; return whether one of its trials reached a rung."""
        plan = self.plan
        began = self.clock()
        asked = ask(
            self.space, self.counter, self.trials, count, generation=self._next,
            seed=plan.config.seed, last=plan.rungs[-1], random=plan.sampler == "random",
        )  # fmt: skip
        self.ask_seconds = (self.clock() - began) / count
        if self.incomplete:  # fewer may have been drawn, for lack of time
            asked = asked[: self.size]
        if not any(not trial.refused for trial in asked):
            if self.trained:
                return False
            network, side = self.space.smallest()
            nearest = min(asked, key=lambda trial: sum(map(_positive, trial.excess.values())))
            design = nearest.design
            raise SpratError(
                f"None of {len(asked):,} networks of the search space meets the limits: "
                f"{self.counter.in_words(design.network, design.side)} is the nearest "
                f"({design.network} at {design.side} px); the smallest is {network} at {side} px. "
                "Raise the limits."
            )
        known = {trial.number: trial for trial in self.incomplete}
        for trial in asked:
            if trial.number in known:  # saved before a kill
                trial.take(known[trial.number])
        self.watcher.asked(asked, self)
        alive = [trial for trial in asked if not trial.refused]
        for epochs in plan.rungs:
            self._train(
                {str(t.number): t for t in alive}, epochs, plan.trials_end, self._task,
                functools.partial(self._rung_seconds, epochs=epochs),
            )  # fmt: skip
            alive = sorted((t for t in alive if epochs in t.rungs), key=_rank)
            alive = [t for t in alive[: survivors(len(alive))] if not t.diverged]
        for trial in asked:
            if trial.state == "untried":
                trial.elapsed = self.elapsed
        self.journal.add([t for t in asked if t.number not in known], len(asked))
        self.trials, self.incomplete = self.trials + asked, []
        for file in self.work.glob("*"):
            if LONG not in file.name and file.name != FINALISTS_FILE:
                file.unlink(missing_ok=True)
        return any(trial.rungs for trial in asked)

    def _task(self, trial: Trial, epochs: int, state: bytes | None) -> Task:
        config = trial.design.apply(self.plan.trial, own=self.plan.own)
        return Task(str(trial.number), config, epochs, state)

    def _train(
        self,
        trials: dict[str, Trial],
        epochs: int,
        end: float,
        make: Callable[[Trial, int, bytes | None], Task],
        expected: Callable[[Trial], float],
    ) -> None:
        """Train trials, given by the keys of their tasks, up to a rung. If the plan has a time,
        those that are not expected to end by `end` are left out.

        Args:
            end: time in seconds since the search began.
            make: returns the task of a trial up to a rung, from a state.
            expected: returns the seconds that a trial's task will take.
        """
        waiting: list[Task] = []
        for key, trial in trials.items():
            if epochs in trial.rungs:
                continue
            if (rung := self._read(key, epochs)) is not None:
                self._count(trial, rung)
            else:
                waiting.append(make(trial, epochs, self._state(key)))
        in_time = self._in_time(waiting, end, lambda task: expected(trials[task.key]))
        for rung in run_all(self.pool, in_time):
            trial = trials[rung.key]
            self._write(trial, rung)
            self._count(trial, rung)
            self.watcher.rung_ended(trial, rung, self)

    def _in_time(
        self, tasks: Iterable[Task], end: float, expected: Callable[[Task], float]
    ) -> Iterator[Task]:
        """Yield the tasks that are expected to end in time, each with its time limit."""
        for task in tasks:
            if self.plan.seconds:
                left, seconds = end - self.elapsed, expected(task)
                if left <= 0 or SLACK * seconds > left:
                    continue
                most = max(PATIENCE * seconds, min(LEAST_PATIENCE, left / 2))
                task = dataclasses.replace(task, seconds=min(left, most))
            yield task

    def _rung_seconds(self, trial: Trial, epochs: int) -> float:
        """Return the seconds that a trial will take up to a rung, estimated from those so far."""
        slowness = self._slowness_of(trial) if trial.rungs else self._slowness()
        return slowness * self.plan.rung_seconds([epochs], max(trial.rungs, default=0))

    def _slowness(self) -> float:
        """Return the ratio of the tasks' times so far to those measured before the search."""
        return sum(self.slowness) / len(self.slowness) if self.slowness else 1.0

    def _slowness_of(self, trial: Trial) -> float:
        return trial.seconds / self.plan.rung_seconds(trial.rungs)

    def _count(self, trial: Trial, rung: Rung) -> None:
        if self.plan.seconds and not rung.diverged and not rung.key.endswith(LONG):
            before = max(trial.rungs, default=0)
            slowness = rung.seconds / self.plan.rung_seconds([rung.until], before)
            # how slow a task is that was given up is unknown
            self.slowness.append(min(slowness, PATIENCE) if rung.val is None else slowness)
        if rung.val is None:
            return
        trial.rungs[rung.until] = rung.val
        trial.seconds += rung.seconds
        trial.diverged = rung.diverged
        trial.elapsed = self.elapsed

    def _finals(self) -> list[Finalist]:
        """Train the best trials for longer, on all training images; return them, best first."""
        ranked = sorted((t for t in self.trained if not t.diverged), key=_rank)
        if not ranked:
            raise SpratError(
                "No trial could be trained: each diverged. Lower the learning rate of the "
                "--recipe, or give more --trials or --time."
            )
        if not ranked[0].rungs:
            return [Finalist(ranked[0], 0, None)]
        ranked = [trial for trial in ranked if trial.rungs]
        chosen = ranked[:FINALISTS]
        # includes the family's best, so that the result is no worse than the start
        family = self.space.family()
        if not any(trial.point in family for trial in chosen):
            chosen[-1:] = [t for t in ranked if t.point in family][:1] or chosen[-1:]
        decide = functools.partial(self._finalist_epochs, chosen)
        epochs = self._kept(FINALISTS_FILE, "epochs", decide) if len(chosen) > 1 else 0
        self.watcher.finalists(chosen, epochs, self)
        fresh = [dataclasses.replace(trial, rungs={}, seconds=0.0) for trial in chosen]
        longer = {f"{trial.number}{LONG}": trial for trial in fresh}
        if epochs:
            self._train(
                longer, epochs, self.plan.finalists_end, self._long_task,
                lambda trial: self._long_seconds(trial, epochs),
            )  # fmt: skip
        found = [
            Finalist(before, epochs, trial.val)
            for before, trial in zip(chosen, longer.values(), strict=True)
            if trial.rungs and not trial.diverged
        ]
        found = found or [Finalist(trial, 0, trial.val) for trial in chosen]
        return sorted(found, key=lambda each: (-(each.val or 0.0), each.trial.number))

    def _finalist_epochs(self, chosen: Sequence[Trial]) -> int:
        """Return how many epochs of all training images each finalist is trained for: as many as
        there is time for, or a fixed number of images."""
        plan = self.plan
        if plan.seconds:
            rounds = math.ceil(len(chosen) / self.pool.workers)
            slowest = max(map(self._slowness_of, chosen))
            left = (plan.finalists_end - self.elapsed) / (SLACK * rounds * slowest)
            return max(0, math.floor((left - plan.task_seconds) / plan.pass_seconds))
        seen = LONGER * plan.rungs[-1] * plan.trial_images
        return max(1, round(seen / plan.images))

    def _long_seconds(self, trial: Trial, epochs: int) -> float:
        """Return the seconds that so many epochs of all training images take a trial's design."""
        tried = next(t for t in self.trials if t.number == trial.number)
        plan = self.plan
        return self._slowness_of(tried) * (plan.task_seconds + epochs * plan.pass_seconds)

    def _long_task(self, trial: Trial, epochs: int, state: bytes | None) -> Task:
        config = trial.design.apply(self.plan.trial, own=self.plan.own).in_proportion(epochs)
        config = dataclasses.replace(config, train_images=0)
        return Task(f"{trial.number}{LONG}", config, epochs, state)

    # saved rungs

    def _spent(self) -> float:
        """Return the seconds up to the last saved rung."""
        found = [trial.elapsed for trial in [*self.trials, *self.incomplete]]
        for file in self.work.glob("*-*.json"):
            with contextlib.suppress(SpratError):
                values = read_json(file)
                found += [] if mismatch(values, RUNG) else [values["elapsed"]]
        return max(found, default=0.0)

    def _write(self, trial: Trial, rung: Rung) -> None:
        """Save a rung, its state first: without the record, it is only evaluated again."""
        if rung.val is None:
            return
        if rung.state:
            write_whole(self.work / f"{rung.key}.pt", rung.state)
        record = {
            "val": rung.val,
            "seconds": rung.seconds,
            "elapsed": self.elapsed,
            "diverged": rung.diverged,
        }
        write_json(self.work / f"{rung.key}-{rung.until}.json", record)

    def _read(self, key: str, until: int) -> Rung | None:
        """Return a saved rung, or None if its file is missing or damaged, since it can be trained
        again."""
        path = self.work / f"{key}-{until}.json"
        try:
            values = read_json(path)
        except SpratError:
            return None
        if mismatch(values, RUNG):
            return None
        return Rung(key, until, values["val"], values["seconds"], values["diverged"])

    def _state(self, key: str) -> bytes | None:
        path = self.work / f"{key}.pt"
        try:
            load_resume(path)
        except SpratError:  # missing or damaged: the trial starts again
            return None
        return path.read_bytes()


def _rank(trial: Trial) -> tuple[int, float, int]:
    return trial.rank


def _positive(excess: float) -> float:
    return max(0.0, excess)
