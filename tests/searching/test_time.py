"""Tests that a search decides in time, even with slow trials and trials that never end."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from pretended import NOWHERE, Recorder, plan, pretend

from sprat.pools import Stopped
from sprat.pools.source import Source
from sprat.searching.driver import Decision, Driver
from sprat.searching.outcome import outcome_of, read_trials, write_trials
from sprat.searching.plan import Plan
from sprat.searching.trial import Rung, Task

TIMED = plan(
    trials=0, seconds=60.0, epoch_seconds=0.2, task_seconds=1.0, prepared=20.0, sampler="random"
)


class Clock:
    """Clock that pretended trials advance.

    slower: how many times longer than planned they take. hanging: numbers of trials that never end
    by themselves.
    """

    def __init__(self, plan: Plan, slower: float = 1.0, hanging: tuple[str, ...] = ()) -> None:
        self.plan, self.slower, self.hanging = plan, slower, hanging
        self.now = plan.prepared
        self.reached: dict[str, int] = {}

    def __call__(self) -> float:
        return self.now

    def train(self, task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
        long = task.key.endswith("-long")
        epochs = task.until - self.reached.get(task.key, 0)
        cost = self.plan.pass_seconds if long else self.plan.epoch_seconds
        seconds = self.slower * (self.plan.task_seconds + epochs * cost)
        if task.key in self.hanging:
            seconds = math.inf
        rung = pretend(task, source, should_stop)
        if 0 < task.seconds < seconds:
            seconds, rung = task.seconds, dataclasses.replace(rung, val=None)
        else:
            self.reached[task.key] = task.until
        self.now += seconds
        return dataclasses.replace(rung, seconds=seconds)


def search(folder: Path, clock: Clock, plan: Plan = TIMED) -> tuple[Driver, Decision]:
    driver = Driver(plan, folder, Recorder(train=clock.train), clock=clock, began=0.0)
    return driver, driver.run()


@pytest.mark.parametrize("slower", [0.5, 1, 3, 8])
@pytest.mark.parametrize("hanging", [(), ("0",), ("1", "2")])
def test_a_search_decides_in_time(tmp_path: Path, slower: float, hanging: tuple[str, ...]) -> None:
    _, decision = search(tmp_path, Clock(TIMED, slower, hanging))
    tried = [trial for trial in decision.trials if trial.rungs]
    assert tried
    assert max(trial.elapsed for trial in decision.trials) <= TIMED.trials_end
    assert decision.seconds <= TIMED.finalists_end
    assert decision.winner in tried
    assert not [trial for trial in tried if str(trial.number) in hanging]
    numbers = [trial.number for trial in decision.trials]
    assert numbers == list(range(len(numbers)))
    if slower <= 1 and not hanging:
        assert decision.seconds > TIMED.trials_end, "the best are trained for longer"
        assert max(trial.elapsed for trial in tried) > 0.7 * TIMED.trials_end


def test_family_network_wins_without_time_for_trials(tmp_path: Path) -> None:
    driver, decision = search(tmp_path, Clock(TIMED, slower=1_000))
    assert decision.winner.point in driver.space.family()
    assert [(each.epochs, each.val) for each in decision.finalists] == [(0, None)]
    assert decision.seconds <= TIMED.trials_end
    outcome = outcome_of(decision, driver)
    assert (outcome["trained"], outcome["winner"]) == (0, decision.winner.number)
    write_trials(tmp_path, decision)
    assert read_trials(tmp_path, outcome)[outcome["winner"]]["state"] == "untried"


def test_time_shares_exclude_the_preparation() -> None:
    assert TIMED.finalists_end == pytest.approx(20 + 0.65 * 40)
    assert TIMED.trials_end == pytest.approx(20 + 0.65 * 0.75 * 40)


def test_resumed_search_counts_time_already_spent(tmp_path: Path) -> None:
    clock = Clock(TIMED)
    with pytest.raises(Stopped):
        Driver(TIMED, tmp_path, Recorder(most=6, train=clock.train), clock=clock, began=0.0).run()
    spent, clock.now = clock.now, 1_000.0  # as in another process
    driver = Driver(TIMED, tmp_path, Recorder(train=clock.train), clock=clock)
    assert driver.elapsed == pytest.approx(spent)
    assert driver.run().seconds <= TIMED.finalists_end


def test_lost_time_does_not_mix_up_trials(tmp_path: Path) -> None:
    clock = Clock(TIMED)
    with pytest.raises(Stopped):
        Driver(TIMED, tmp_path, Recorder(most=4, train=clock.train), clock=clock, began=0.0).run()
    # too little time is left for all trials in progress, but enough for some of the next generation
    lost, clock.slower = TIMED.trials_end - 8.3 - clock.now, 0.5
    driver = Driver(
        TIMED, tmp_path, Recorder(train=clock.train), clock=clock, began=clock.now - lost
    )
    trials = driver.run().trials
    assert trials[-1].generation == 1
    for trial in trials:
        for epochs, val in trial.rungs.items():
            task = driver._task(trial, epochs, None)
            assert pretend(task, NOWHERE, lambda: False).val == val
