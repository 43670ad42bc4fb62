"""Measure how a search scales with more workers, and what a trial costs besides its training.

    python benchmarks/scale.py [--rounds 3] [--output results/scale.json] [--json]

The contenders are pools of workers: this process, two processes, and a Ray cluster on this machine
with one or two cores. Each trains the same generation of real trials, on noise and with one thread
per trial. Each also runs tasks that do nothing; their time is the overhead of a trial: sending it,
calling it and returning a checkpoint. Separately, one process chooses trials that are never
trained, which measures the driver's own time; it grows with the number of earlier trials.

Two workers occupy both cores of a small machine, so measure trials per hour on a machine that does
nothing else.
"""

import argparse
import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from side_by_side import Figures, noise, parser_for, report, take_turns

from sprat.data import Dataset
from sprat.pools import Stopped, Workers, open_workers
from sprat.pools.source import Source
from sprat.runtime import describe_machine, keep_freed_memory, versions
from sprat.searching.driver import Driver
from sprat.searching.plan import Plan, rungs_of
from sprat.searching.trial import Rung, Task, train_rung, trial_config
from sprat.searching.trials import Trial
from sprat.searching.watcher import Watcher
from sprat.settings.config import BudgetConfig
from sprat.settings.recipes import load_recipe
from sprat.threads import usable_cores
from sprat.training.start import settle_for

RECIPE = "sprat-cpu"
LIMITS = BudgetConfig(max_parameters=40_726, max_macs=17_280_776)  # SpratS's
WAYS = {"this process": "1", "2 processes": "2", "Ray, 1 core": "ray", "Ray, 2 cores": "ray"}
CHECKPOINT = 1 << 20  # bytes that a task which does nothing returns


def plan_of(arguments: argparse.Namespace, dataset: Dataset, **changes: Any) -> Plan:
    """Return the plan of a search on noise, each of whose trials has one thread."""
    config = load_recipe(RECIPE).changed({"threads": 1, "device": "cpu"})
    config = dataclasses.replace(config, budget=LIMITS)
    trial = settle_for(trial_config(config, arguments.epochs, 0), dataset)
    settings: dict[str, Any] = {
        "config": config, "recipe": RECIPE, "trial": trial, "rungs": rungs_of(arguments.epochs),
        "generation": arguments.generation, "trials": arguments.generation, "seconds": 0.0,
        "data": {32: dataset.md5}, "classes": 10, "images": len(dataset.train), "own": False,
    }  # fmt: skip
    return Plan(**settings | changes)


class Clock(Watcher):
    """Watcher that records when generations start and stops the search before the finalists."""

    def __init__(self) -> None:
        self.moments: list[tuple[int, float]] = []

    def asked(self, trials: Sequence[Trial], driver: Driver) -> None:
        self.moments.append((len(driver.trained), time.perf_counter()))

    def finalists(self, trials: Sequence[Trial], epochs: int, driver: Driver) -> None:
        raise Stopped


def nothing(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
    return Rung(task.key, task.until, 0.5, 1.0, state=bytes(CHECKPOINT))


def at_once(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
    """Return the result of a trial that is not trained, with an accuracy set by its number."""
    return Rung(task.key, task.until, 0.5 + int(task.key) * 37 % 100 / 1000, 1.0)


@contextlib.contextmanager
def workers_of(way: str) -> Iterator[Workers]:
    """Yield a contender's workers; for Ray, start a cluster first."""
    if way.startswith("Ray"):
        os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
        import ray

        cores = 1 if "1" in way else 2
        ray.init(
            "local", num_cpus=cores, include_dashboard=False, log_to_driver=False,
            logging_level="ERROR",
        )  # fmt: skip
    with open_workers(WAYS[way]) as workers:
        yield workers


def measure(arguments: argparse.Namespace, *, way: str) -> Figures:
    """Return the seconds until a pool's first task has ended, those of a task that does nothing,
    and trials per hour."""
    keep_freed_memory()
    dataset = noise(arguments.images)
    plan = plan_of(arguments, dataset)
    source = Source("noise", None, plan.config.pictures, plan.data, False, dataset, named=False)
    with workers_of(way) as workers, tempfile.TemporaryDirectory() as folder:
        pool = workers.pool(nothing, source, lambda: False, threads=1)
        state = bytes(CHECKPOINT)
        began = time.perf_counter()
        moments = [began]
        for number in range(arguments.tasks + 1):
            pool.start(Task(str(number), plan.trial, 1, state))
            pool.next()
            moments.append(time.perf_counter())
        pool.close()
        ready, done = moments[1] - began, moments[-1] - moments[1]

        pool = workers.pool(train_rung, source, lambda: False, threads=1)
        warm = Task("warm", plan.trial, 1)
        count = min(pool.workers, 2)
        for _ in range(count):
            pool.start(warm)
        for _ in range(count):
            pool.next()
        driver = Driver(plan, Path(folder), pool, watcher=Clock())
        began = time.perf_counter()
        with contextlib.suppress(Stopped):
            driver.run()
        seconds = time.perf_counter() - began
        trained = [trial.seconds for trial in driver.trained]
        pool.close()
    return {
        "start_seconds": ready,
        "task_ms": 1000 * done / arguments.tasks,
        "trials_per_hour": 3600 * len(trained) / seconds,
        "training_seconds": sum(trained),
    }


def asking(arguments: argparse.Namespace) -> list[dict[str, float]]:
    """Return the driver's seconds per trial, records included, by the number of trials chosen."""
    dataset, clock = noise(64), Clock()
    plan = plan_of(arguments, dataset, trials=arguments.asked)
    source = Source("noise", None, plan.config.pictures, plan.data, False, dataset, named=False)
    with open_workers(1) as workers, tempfile.TemporaryDirectory() as folder:
        pool = workers.pool(at_once, source, lambda: False, threads=1)
        with contextlib.suppress(Stopped):
            Driver(plan, Path(folder), pool, watcher=clock).run()
    pairs = zip(clock.moments, clock.moments[1:], strict=False)
    return [
        {"trials": after, "seconds_a_trial": (later - earlier) / (after - before)}
        for (before, earlier), (after, later) in pairs
    ]


def main() -> None:
    parser = parser_for(__doc__, rounds=3)
    parser.add_argument("--images", type=int, default=2_000, help="training images per trial")
    parser.add_argument(
        "--epochs", type=int, default=9, help="epochs of a trial up to the last rung"
    )
    parser.add_argument("--generation", type=int, default=9, help="trials chosen together")
    parser.add_argument("--tasks", type=int, default=50, help="number of tasks that do nothing")
    parser.add_argument(
        "--asked", type=int, default=360, help="trials that are chosen but not trained"
    )
    arguments = parser.parse_args()
    contenders = {way: partial(measure, way=way) for way in WAYS}
    measured = take_turns(contenders, arguments)
    figures = {
        "measured": measured,
        "asking": asking(arguments),
        "images": arguments.images,
        "rungs": list(rungs_of(arguments.epochs)),
        "generation": arguments.generation,
        "checkpoint_bytes": CHECKPOINT,
        "cores": usable_cores(),
        "machine": describe_machine(torch.device("cpu"), "auto", 1),
        "versions": versions(),
    }
    report(figures, arguments)


if __name__ == "__main__":
    main()
