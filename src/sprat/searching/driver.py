"""The search itself: generations of trials, halved at each rung, and what is best at the end.

    decision = Driver(plan, folder, pool).run()

Every rung is written down as it ends, so a kill loses the trials under way and nothing else; the
same call goes on.
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
FINALISTS_FILE = "finalists.json"  # in it
LONG = "-long"  # after a trial's number: the key of its task as a finalist
# a task is given up after so many times as long as expected, so that one does not take all the time
PATIENCE = 4.0
LEAST_PATIENCE = 30.0  # seconds, up to half of what is left: a new process loads torch and images
SLACK = 1.15  # times as long as expected a task may take, or it is not begun for lack of time
RUNG: Shape = {
    "val": SHARE,
    "seconds": POSITIVE,
    "elapsed": POSITIVE,
    "diverged": FLAG,
}


@dataclass(frozen=True)
class Finalist:
    """One of the best trials, trained for longer; epochs: over all training images, 0 if there was
    no time for it, so that `val` is that of its trial, or None if there was none for trials."""

    trial: Trial
    epochs: int
    val: float | None


@dataclass(frozen=True)
class Decision:
    """Outcome of a search: every trial in the order asked, and the finalists, best first."""

    trials: list[Trial]
    finalists: list[Finalist]
    seconds: float

    @property
    def winner(self) -> Trial:
        """The trial whose design is best."""
        return self.finalists[0].trial


class Driver:
    """Searches by a plan, in a folder of the search's own, from wherever it was stopped.

    Args:
        pool: what runs the trials.
        watcher: hears how it goes.
        clock: seconds, of which only differences count.
        began: when the search began by that clock; by default now.

    Raises:
        SpratError: the journal is damaged or of another search, or no network keeps the limits.
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
        # a generation that a kill left not all of
        self.under_way: list[Trial] = []
        self.size = self.journal.size() if generations else 0
        if generations and len(generations[-1]) < self.size:
            self.under_way = generations[-1]
            self.trials = self.trials[: -len(self.under_way)]
        # times as long as measured that tasks take
        self.slowness: list[float] = []
        if plan.seconds:
            begun = (trial for trial in [*self.trials, *self.under_way] if trial.rungs)
            self.slowness = [self._slowness_of(trial) for trial in begun]
        self.ask_seconds = plan.ask_seconds
        self.spent = self._spent()  # before this process

    @property
    def elapsed(self) -> float:
        """Seconds of the search so far, those before it was stopped included."""
        return self.spent + self.clock() - self.began

    @property
    def trained(self) -> list[Trial]:
        """The trials that keep the limits, of finished generations."""
        return [trial for trial in self.trials if not trial.refused]

    def run(self) -> Decision:
        """Search until the plan's number of trials or its time is reached; return what is best.

        Raises:
            Stopped: the search is to stop; the same call goes on.
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
        """Return a number that was decided before the search was stopped; else decide it, and write
        it down, since a search that goes on has less time left and would decide otherwise.

        Args:
            name: of its file. key: of the number in it.
        """
        path = self.work / name
        with contextlib.suppress(SpratError):  # there is none, or it is damaged
            values = read_json(path)
            if not mismatch(values, {key: whole()}):
                return int(values[key])
        number = decide()
        write_json(path, {key: number})
        return number

    def _to_ask(self) -> int:
        """Return how many trials the next generation has; 0 if there is none."""
        plan, count = self.plan, self.plan.generation
        if plan.trials:
            count = max(0, min(count, plan.trials - len(self.trained)))
        if plan.seconds and not self.under_way:
            left, slowness = plan.trials_end - self.elapsed, self._slowness() / self.pool.workers
            least = 0 if self.trained else 1  # which wins untried if there is no time for it

            def needed() -> float:
                cost, task = plan.epoch_seconds, plan.task_seconds
                training = generation_seconds(plan.rungs, count, cost, task)
                return count * self.ask_seconds + slowness * training

            while count > least and needed() > left:
                count -= 1
        return count

    def _generation(self, count: int) -> bool:
        """Ask and train a generation; return whether a trial of it came to a rung."""
        plan = self.plan
        began = self.clock()
        asked = ask(
            self.space, self.counter, self.trials, count, generation=self._next,
            seed=plan.config.seed, last=plan.rungs[-1], random=plan.sampler == "random",
        )  # fmt: skip
        self.ask_seconds = (self.clock() - began) / count
        if self.under_way:  # in less time, fewer may have been asked
            asked = asked[: self.size]
        if not any(not trial.refused for trial in asked):
            if self.trained:
                return False
            network, side = self.space.smallest()
            nearest = min(asked, key=lambda trial: sum(map(_positive, trial.excess.values())))
            design = nearest.design
            raise SpratError(
                f"None of {len(asked):,} networks of the search space keeps the limits: "
                f"{self.counter.in_words(design.network, design.side)} is the nearest "
                f"({design.network} at {design.side} px); the smallest is {network} at {side} px. "
                "Raise the limits."
            )
        known = {trial.number: trial for trial in self.under_way}
        for trial in asked:
            if trial.number in known:  # told before a kill
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
        self.trials, self.under_way = self.trials + asked, []
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
        """Bring trials, by the keys of their tasks, to a rung. With a plan that has a time, those
        whose rung is not expected to end by then are left out.

        Args:
            end: seconds of the search.
            make: returns the task of a trial up to a rung, from a state.
            expected: returns the seconds that it will take.
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
        """Yield those of the tasks that are expected to end in time, each with the time it gets."""
        for task in tasks:
            if self.plan.seconds:
                left, seconds = end - self.elapsed, expected(task)
                if left <= 0 or SLACK * seconds > left:
                    continue
                most = max(PATIENCE * seconds, min(LEAST_PATIENCE, left / 2))
                task = dataclasses.replace(task, seconds=min(left, most))
            yield task

    def _rung_seconds(self, trial: Trial, epochs: int) -> float:
        """Return what it will take to bring a trial to a rung, by what it took so far."""
        slowness = self._slowness_of(trial) if trial.rungs else self._slowness()
        return slowness * self.plan.rung_seconds([epochs], max(trial.rungs, default=0))

    def _slowness(self) -> float:
        """Return how many times as long as measured tasks take, by those so far."""
        return sum(self.slowness) / len(self.slowness) if self.slowness else 1.0

    def _slowness_of(self, trial: Trial) -> float:
        return trial.seconds / self.plan.rung_seconds(trial.rungs)

    def _count(self, trial: Trial, rung: Rung) -> None:
        if self.plan.seconds and not rung.diverged and not rung.key.endswith(LONG):
            before = max(trial.rungs, default=0)
            slowness = rung.seconds / self.plan.rung_seconds([rung.until], before)
            # of what was given up nobody knows more than that it is slow
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
        # the family's best is among them, so that the end is no worse than the beginning
        family = self.space.family()
        if not any(trial.point in family for trial in chosen):
            chosen[-1:] = [t for t in ranked if t.point in family][:1] or chosen[-1:]
        decide = functools.partial(self._finalist_epochs, chosen)
        epochs = self._kept(FINALISTS_FILE, "epochs", decide) if len(chosen) > 1 else 0
        self.watcher.finalists(chosen, epochs, self)
        anew = [dataclasses.replace(trial, rungs={}, seconds=0.0) for trial in chosen]
        longer = {f"{trial.number}{LONG}": trial for trial in anew}
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
        """Return how long each finalist is trained, in epochs of all training images: as long as
        there is time, or for so many images."""
        plan = self.plan
        if plan.seconds:
            rounds = math.ceil(len(chosen) / self.pool.workers)
            slowest = max(map(self._slowness_of, chosen))
            left = (plan.finalists_end - self.elapsed) / (SLACK * rounds * slowest)
            return max(0, math.floor((left - plan.task_seconds) / plan.pass_seconds))
        seen = LONGER * plan.rungs[-1] * plan.trial_images
        return max(1, round(seen / plan.images))

    def _long_seconds(self, trial: Trial, epochs: int) -> float:
        """Return what so many epochs of all training images will take a trial's design."""
        tried = next(t for t in self.trials if t.number == trial.number)
        plan = self.plan
        return self._slowness_of(tried) * (plan.task_seconds + epochs * plan.pass_seconds)

    def _long_task(self, trial: Trial, epochs: int, state: bytes | None) -> Task:
        config = trial.design.apply(self.plan.trial, own=self.plan.own).in_proportion(epochs)
        config = dataclasses.replace(config, train_images=0)
        return Task(f"{trial.number}{LONG}", config, epochs, state)

    # what is written down of rungs

    def _spent(self) -> float:
        """Return the seconds up to the last rung that was written down."""
        found = [trial.elapsed for trial in [*self.trials, *self.under_way]]
        for file in self.work.glob("*-*.json"):
            with contextlib.suppress(SpratError):
                values = read_json(file)
                found += [] if mismatch(values, RUNG) else [values["elapsed"]]
        return max(found, default=0.0)

    def _write(self, trial: Trial, rung: Rung) -> None:
        """The state first: with it, and without its record, the rung is only evaluated again."""
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
        """Return the rung that was written down, or None; of a damaged file too, since it can be
        had again."""
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
        except SpratError:  # there is none, or it is damaged: the trial begins anew
            return None
        return path.read_bytes()


def _rank(trial: Trial) -> tuple[int, float, int]:
    return trial.rank


def _positive(excess: float) -> float:
    return max(0.0, excess)
