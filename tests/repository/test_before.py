"""Tests that runs and recipes from before the package was rearranged work as they did."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import Here

from sprat.checkpoint import load_model
from sprat.data import Dataset
from sprat.evaluation.evaluate import predict_probabilities
from sprat.evaluation.records import read_json
from sprat.run_folder import read_config
from sprat.settings.recipes import load_recipe

BEFORE = Path(__file__).parents[1] / "before"


def _answers(run: Path, shapes10: Dataset) -> torch.Tensor:
    model = load_model(run)
    return predict_probabilities(model.network, shapes10.test.images[:8], model.normalization)


@pytest.fixture
def expected() -> torch.Tensor:
    return torch.tensor(json.loads((BEFORE / "finished-answers.json").read_text()))


def test_old_model_predicts_the_same(expected: torch.Tensor, shapes10: Dataset) -> None:
    answers = _answers(BEFORE / "finished", shapes10)
    torch.testing.assert_close(answers, expected, rtol=0, atol=1e-4)


def test_old_run_evaluates_the_same(here: Here) -> None:
    done = here("evaluate", BEFORE / "finished", "--dataset", "shapes10", "--json")
    assert done.returncode == 0, done.stderr
    before = read_json(BEFORE / "finished" / "results.json")["val"]
    now = json.loads(done.stdout)
    assert now["n"] == before["n"]
    assert now["top1"] == pytest.approx(before["top1"], abs=1e-4)


def test_old_interrupted_run_resumes_correctly(
    here: Here, tmp_path: Path, expected: torch.Tensor, shapes10: Dataset
) -> None:
    run = shutil.copytree(BEFORE / "interrupted", tmp_path / "run")
    done = here("train", "--resume", run)
    assert done.returncode == 0, done.stderr
    assert read_json(run / "results.json")["epochs"] == 2
    # sums are rounded differently on other processors
    torch.testing.assert_close(_answers(run, shapes10), expected, rtol=0, atol=0.01)


def test_old_recipe_gives_the_same_config() -> None:
    config = load_recipe(str(BEFORE / "my-recipe.toml")).to_dict()
    began_as = read_config(BEFORE / "finished")[0].to_dict()
    for name in ("dataset", "device", "precision", "kernels", "threads", "pictures"):
        began_as[name] = config[name]  # these depend on machine and data
    assert config == began_as
