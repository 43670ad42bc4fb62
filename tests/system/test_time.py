"""Tests of the real command `sprat train --time`."""

import dataclasses
from pathlib import Path

import pytest
from conftest import Here

from sprat.run_folder import read_config
from sprat.settings.config import RUN_FIELDS
from sprat.settings.recipes import load_recipe


def test_command_saves_the_fitted_recipe(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("--dataset", "shapes10", "--device", "cpu", "--final", "--tta", "1")
    words += ("--train-images", "64", "--batch-size", "32")
    done = here("train", *words, "--time", "20s", "--output", "run")
    assert done.returncode == 0, done.stderr
    config, recipe, changed = read_config(Path("run"))
    assert (recipe, changed) == (str(Path("run") / "quick-20s.toml"), {})
    again = load_recipe(recipe)
    kept = {name: getattr(config, name) for name in RUN_FIELDS}
    auto = {"precision": config.precision, "pictures": config.pictures}
    assert dataclasses.replace(again, **kept, **auto) == config
    assert config.batch_size == 32


def test_too_short_time_is_refused_with_the_minimum(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("train", "--dataset", "shapes10", "--device", "cpu", "--time", "1s")
    assert done.returncode == 2
    assert "Give at least --time" in done.stderr
    assert list(tmp_path.rglob("*.json")) == []
