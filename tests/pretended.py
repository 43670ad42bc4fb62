"""Search with simulated trials: nothing is trained, and the results are known."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sprat.pools import Stopped
from sprat.pools.source import Source
from sprat.searching.driver import Decision, Driver
from sprat.searching.plan import Plan
from sprat.searching.trial import Rung, Task, trial_config
from sprat.settings.config import BudgetConfig, Config
from sprat.settings.recipes import load_recipe

RECIPE = load_recipe("sprat-cpu")
LIMITS = BudgetConfig(max_parameters=4_000, max_macs=400_000)
NOWHERE = Source("nowhere", None, RECIPE.pictures, {16: "md5"}, own=False)


def plan(**changes: Any) -> Plan:
    """Return the plan of a search with simulated trials on images of 16 px."""
    config = dataclasses.replace(RECIPE, budget=changes.pop("budget", LIMITS))
    settings: dict[str, Any] = {
        "config": config, "recipe": "sprat-cpu", "trial": trial_config(config, 9, 1_000),
        "rungs": (1, 3, 9), "generation": 4, "trials": 8, "seconds": 0.0, "data": {16: "md5"},
        "classes": 3, "images": 2_000, "own": False,
    }  # fmt: skip
    return Plan(**settings | changes)


def pretend(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
    """Simulate a trial: accuracy depends only on its settings and grows from rung to rung."""
    optim, network = task.config.optim, task.config.network
    luck = random.Random(repr((optim.lr, network.widths))).random()
    val = 0.5 + 0.02 * task.until + 0.1 * luck
    return Rung(task.key, task.until, val, 1.0)


class Recorder:
    """Pool of simulated trials that ends tasks out of order and may stop the search.

    asked: keys and epochs of the tasks, in the order they were started.
    """

    def __init__(self, workers: int = 1, most: int = 10**9, train: Any = pretend) -> None:
        self.workers, self.left, self.train = workers, most, train
        self.asked: list[tuple[str, int]] = []
        self.configs: list[Config] = []
        self.running: list[Task] = []

    def start(self, task: Task) -> None:
        assert len(self.running) < self.workers
        self.asked.append((task.key, task.until))
        self.configs.append(task.config)
        self.running.append(task)

    def next(self) -> Rung:
        if not self.left:
            raise Stopped
        self.left -= 1
        return self.train(self.running.pop(), NOWHERE, lambda: False)

    def close(self) -> None:
        pass


def decide(folder: Path, pool: Any, **changes: Any) -> Decision:
    return Driver(plan(**changes), folder, pool).run()


def records(decision: Decision) -> list[dict[str, Any]]:
    """Return the records of all trials without their times."""
    clocks = {"seconds", "elapsed"}
    found = [trial.to_record() for trial in decision.trials]
    return [{key: value for key, value in each.items() if key not in clocks} for each in found]
