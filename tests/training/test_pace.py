"""Tests of `--time`: as many epochs as fit, and the recipe as it was run."""

import dataclasses
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Here

import sprat.training.pace
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.settings.config import RUN_FIELDS, Config
from sprat.settings.recipes import load_recipe, parse_time, recipe_names, to_toml
from sprat.training.pace import (
    Pace,
    fit,
    fit_again,
    fitted_recipe,
    keep_recipe,
    measure,
)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("2h0m1s", 7201), ("007s", 7)]
)
def test_valid_times_are_parsed(text: str, seconds: int) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["5", "m", "5 m", "-5m", "0s", "5m1h", "1.5h", "5M", "101000h", "9" * 5_000 + "s", "\n5m", 300],
)
def test_invalid_time_is_refused(text: Any) -> None:
    with pytest.raises(SpratError, match=r"time is .*90s, 5m or 1h30m"):
        parse_time(text)


@pytest.mark.parametrize("evaluate_every", [1, 7])
def test_fit_chooses_as_many_epochs_as_possible(
    monkeypatch: pytest.MonkeyPatch, tiny: Dataset, evaluate_every: int
) -> None:
    pace = Pace(epoch=2.0, checkpoint=0.5, evaluation=1.0, final=3.0)
    monkeypatch.setattr(sprat.training.pace, "measure", lambda *given: pace)
    config = dataclasses.replace(SMALL, evaluate_every=evaluate_every)
    for seconds in (30.0, 31.0, 100.0, 1_000.0):
        epochs = fit(config, tiny, seconds, time.perf_counter()).epochs
        assert pace.seconds(config, epochs) <= seconds < pace.seconds(config, epochs + 1) + 0.1
    with pytest.raises(SpratError, match=r"too short: one epoch takes 2 seconds.*--time \d+s"):
        fit(config, tiny, 7.0, time.perf_counter())


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("epochs", [1, 2, 5, 1_000])
def test_every_recipe_scales_to_other_epochs(recipe: str, epochs: int) -> None:
    config = load_recipe(recipe)
    other = config.in_proportion(epochs)
    assert other.epochs == epochs
    for of in (lambda c: c.optim.warmup_epochs, lambda c: c.mixing.off_epochs):
        assert of(other) / other.epochs == pytest.approx(of(config) / config.epochs)
    assert config.in_proportion(config.epochs) == config


def test_sides_grow_at_the_same_shares_of_the_run() -> None:
    augment = dataclasses.replace(SMALL.augment, sides=(16, 16, 24, 24, 32))
    config = dataclasses.replace(SMALL, epochs=10, augment=augment)
    assert config.in_proportion(5).augment.sides == (16, 24, 32, 32, 32)
    longer = config.in_proportion(20).augment.sides
    assert [longer.count(side) for side in (16, 24, 32)] == [4, 4, 12]


@pytest.mark.parametrize("recipe", recipe_names())
def test_written_recipe_loads_unchanged(recipe: str) -> None:
    config = dataclasses.replace(load_recipe(recipe), seed=7, final=True)
    config = config.changed({"distill.teacher": ['a "b"\\', "c\x7f\x01é"]})
    values = tomllib.loads(to_toml(config))
    assert not values.keys() & RUN_FIELDS
    kept = {key: value for key, value in config.to_dict().items() if key in RUN_FIELDS}
    assert Config.from_dict(values | kept) == config


def test_fitted_recipe_is_reused_only_with_same_settings(tmp_path: Path) -> None:
    whole = load_recipe("accurate")
    recipe = fitted_recipe(tmp_path, "accurate", "5m")
    keep_recipe(whole.in_proportion(7), recipe)
    assert fit_again(dataclasses.replace(whole, seed=3), recipe).epochs == 7
    with pytest.raises(SpratError, match="give another --output"):
        fit_again(dataclasses.replace(whole, batch_size=32), recipe)


def test_every_part_of_a_run_is_timed(tiny: Dataset) -> None:
    augment = dataclasses.replace(SMALL.augment, sides=(16, 32))
    pace = measure(dataclasses.replace(SMALL, augment=augment), tiny, 1.0)
    assert all(seconds > 0 for seconds in dataclasses.astuple(pace))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--time", "5"), "90s, 5m or 1h30m"),
        (("--time", "5m", "--epochs", "5"), "Leave one of them out"),
        (("--time", "5m", "--resume", "run"), "--resume continues a run with exactly"),
    ],
)
def test_invalid_time_options_are_refused(
    here: Here,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("train", *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert list(tmp_path.rglob("*.json")) == []


def test_an_existing_run_is_refused_and_nothing_is_added(here: Here, small_run: Path) -> None:
    before = {path.name for path in small_run.iterdir()}
    words = ("--dataset", "shapes10", "--device", "cpu", "--time", "5m", "--output", small_run)
    done = here("train", *words)
    assert done.returncode == 2
    assert "is not overwritten" in done.stderr
    assert {path.name for path in small_run.iterdir()} == before
