"""Tests of a head start: what is taken from a trained model, what is new, what is refused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Here, StopAfter, weights

import sprat
from sprat.checkpoint import load_model
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import read_json, read_results
from sprat.models import NetworkConfig, build_network
from sprat.run_folder import read_config
from sprat.settings.config import Config
from sprat.training.head_start import HeadStart
from sprat.training.run import Interrupted, Run
from sprat.training.seeds import train_seeds
from sprat.training.start import resume, settle_for, train
from sprat.zoo import cards

HEAD = {"classifier.weight", "classifier.bias"}
OTHER = tuple("abcdefghij")


def named(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """Return the same images with other names for the classes."""
    parts = (dataclasses.replace(part, classes=classes) for part in (dataset.train, dataset.test))
    train, test = parts
    return dataclasses.replace(dataset, train=train, test=test)


def started(by: object, **changes: Any) -> Config:
    return dataclasses.replace(SMALL, start_from=str(by), **changes)


def begun(dataset: Dataset, by: Path, folder: Path, **changes: Any) -> Run:
    """Return a run before its first step."""
    config = started(by, **changes)
    return Run(settle_for(config, dataset), dataset, folder, start=HeadStart.load(str(by)))


def test_all_but_the_classifier_starts_from_the_model(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    other = named(tiny, OTHER)
    run, scratch = begun(other, small_run, tmp_path), Run(settle_for(SMALL, other), other, tmp_path)
    given = load_model(small_run).network.state_dict()
    state, from_scratch = run.step.network.state_dict(), scratch.step.network.state_dict()
    for name, tensor in state.items():
        assert torch.equal(tensor, (from_scratch if name in HEAD else given)[name]), name
    assert run.step.ema is not None
    for name, tensor in run.step.ema.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    start = run.origin.start
    assert start is not None
    assert (set(start["new"]), start["classifier"]) == (HEAD, "new")
    assert {*start["taken"], *start["new"]} == state.keys()
    assert start["taken_parameters"] + start["new_parameters"] == 1_693
    assert start["new_parameters"] == 12 * 10 + 10


def test_same_classes_keep_the_classifier_in_any_order(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    """Check that the untrained run answers as the model does, class by class."""
    model, images = load_model(small_run), torch.randn(4, 3, 16, 16)
    for classes, became in ((model.classes, "kept"), (model.classes[::-1], "reordered")):
        run = begun(named(tiny, classes), small_run, tmp_path)
        assert run.origin.start is not None
        assert (run.origin.start["classifier"], run.origin.start["new"]) == (became, [])
        with torch.no_grad():
            given, answers = model.network(images), run.step.network.eval()(images)
        places = [model.classes.index(name) for name in classes]
        torch.testing.assert_close(answers, given[:, places])


def test_another_network_takes_over_the_weights_that_fit(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    wider = NetworkConfig(name="SpratNet", widths=(8, 16), depth=(1,))
    start = begun(tiny, small_run, tmp_path, network=wider).origin.start
    assert start is not None
    given = load_model(small_run).network.state_dict()
    expected = build_network(wider).state_dict()
    fits = {name for name in expected if given[name].shape == expected[name].shape}
    assert {*start["taken"]} == fits
    assert {*start["new"]} == expected.keys() - fits
    assert {"stem.0.weight"} < fits
    assert start["classifier"] == "new"


@pytest.mark.parametrize("name", [card["name"] for card in cards()])
def test_every_shipped_model_starts_its_network_for_other_classes(name: str) -> None:
    start = HeadStart.load(name)
    spec = start.model.network_config
    record = start.give(build_network(spec, 3), spec, ("a", "b", "c"))
    assert ({*record["new"]}, record["classifier"]) == (HEAD, "new")
    assert record["model"] == name


def test_head_start_changes_the_weights_and_is_recorded(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    train(started(small_run, epochs=2), tiny, tmp_path / "run", recipe="small")
    train(dataclasses.replace(SMALL, epochs=2), tiny, tmp_path / "scratch", recipe="small")
    assert weights(tmp_path / "run") != weights(tmp_path / "scratch")
    start = read_results(tmp_path / "run" / "results.json")["start"]
    assert start == read_json(tmp_path / "run" / "config.json")["start"]
    assert start is not None
    assert start["sha256"] == HeadStart.load(str(small_run)).sha256
    assert (start["model"], start["dataset"]) == ("SpratNet", "shapes10")
    assert read_config(tmp_path / "run")[0].start_from == str(small_run)
    assert read_results(tmp_path / "scratch" / "results.json")["start"] is None


def test_resume_needs_the_model_only_before_first_checkpoint(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(small_run, tmp_path / "model"))
    config = started(model)
    train(config, tiny, tmp_path / "whole", recipe="small")
    with pytest.raises(Interrupted):
        train(config, tiny, tmp_path / "run", recipe="small", should_stop=StopAfter(15))
    early = Path(shutil.copytree(tmp_path / "run", tmp_path / "early"))
    (early / "last.pt").unlink()
    shutil.rmtree(model)
    resume(tmp_path / "run", tiny)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    results = [read_results(tmp_path / run / "results.json") for run in ("run", "whole")]
    assert results[0]["start"] == results[1]["start"] is not None

    with pytest.raises(SpratError, match=r"early was stopped before its first.*no model at"):
        resume(early, tiny)
    shutil.copytree(tmp_path / "whole", model)
    with pytest.raises(SpratError, match="early started from another SpratNet"):
        resume(early, tiny)
    shutil.rmtree(model)
    shutil.copytree(small_run, model)
    resume(early, tiny)
    assert weights(early) == weights(tmp_path / "whole")


def test_all_seeds_start_from_the_same_weights(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(small_run, tmp_path / "model"))
    config, folder = started(model, epochs=2), tmp_path / "seeds"
    train_seeds(config, tiny, folder, 2, recipe="small")
    starts = [read_results(folder / f"seed-{seed}/results.json")["start"] for seed in (0, 1)]
    assert starts[0] == starts[1] is not None
    shutil.copy(folder / "seed-0" / "model.safetensors", model)
    with pytest.raises(SpratError, match="seed-0 started from another SpratNet"):
        train_seeds(config, tiny, folder, 3, recipe="small")
    assert not (folder / "seed-2").exists()


class TestNetwork:
    """Tests that the network is the model's, unless it is named."""

    FAST = {"epochs": 1, "train_images": 32, "tta": 1, "device": "cpu"}  # noqa: RUF012

    def run(self, tiny: Dataset, output: Path, changes: dict[str, Any], recipe: str) -> sprat.Run:
        return sprat.train(recipe, self.FAST | changes, dataset=tiny, output=output, quiet=True)

    def test_is_the_models_by_default(self, tiny: Dataset, small_run: Path, tmp_path: Path) -> None:
        run = self.run(tiny, tmp_path / "run", {"start_from": str(small_run)}, "fine-tune")
        assert run.results["network"] == SMALL.network.to_dict()
        recorded = sprat.load_recipe("fine-tune").changed(run.results["overrides"])
        assert recorded.network == SMALL.network

    def test_is_changed_by_its_settings(
        self, tiny: Dataset, small_run: Path, tmp_path: Path
    ) -> None:
        changes = {"start_from": str(small_run), "network.widths": (8, 16), "batch_size": 32}
        run = self.run(tiny, tmp_path / "run", changes, "quick")
        assert run.results["network"] == SMALL.network.to_dict() | {"widths": [8, 16]}

    def test_unrelated_network_is_refused(
        self, tiny: Dataset, small_run: Path, tmp_path: Path
    ) -> None:
        changes = {"start_from": str(small_run), "model": "SpratS"}
        with pytest.raises(SpratError, match="SpratS has no weights in common with SpratNet"):
            self.run(tiny, tmp_path / "run", changes, "fine-tune")

    def test_is_the_recipes_if_named_there(
        self, tiny: Dataset, small_run: Path, tmp_path: Path
    ) -> None:
        recipe = tmp_path / "mine.toml"
        start = f'start_from = "{small_run}"\nbatch_size = 32\n'
        recipe.write_text(start + "[network]\nname = 'SpratNet'\nwidths = [8, 16]\ndepth = [1]\n")
        run = self.run(tiny, tmp_path / "run", {}, str(recipe))
        assert run.results["network"]["widths"] == [8, 16]
        recipe.write_text(start)
        run = self.run(tiny, tmp_path / "other", {}, str(recipe))
        assert run.results["network"] == SMALL.network.to_dict()


class TestRefused:
    def test_model_that_has_seen_val_is_refused(self, tiny: Dataset, tmp_path: Path) -> None:
        final = dataclasses.replace(SMALL, final=True, epochs=2)
        train(final, tiny, tmp_path / "final", recipe="small")
        with pytest.raises(SpratError, match=r"including those of val.*Add --final"):
            train(started(tmp_path / "final"), tiny, tmp_path / "run", recipe="small")
        assert not (tmp_path / "run").exists()
        HeadStart.load(str(tmp_path / "final")).check(tiny, final=True)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--start-from", "SprattT"], "did you mean 'SpratT'?"),
            (["--start-from", "none/model.safetensors"], "There is no model at none/model"),
            (["--start-from", "text.safetensors"], "not a safetensors file"),
            (["--start-from", "empty"], "There is no model at empty/model.safetensors"),
            (
                ["--start-from", "SpratT", "--model", "SpratM"],
                "SpratM has no weights in common with SpratT",
            ),
            (
                ["--start-from", "SpratT", "--resume", "empty"],
                "--resume continues a run with exactly",
            ),
        ],
    )
    def test_invalid_options_are_refused(
        self,
        here: Here,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        words: list[str],
        said: str,
    ) -> None:
        monkeypatch.chdir(tmp_path)
        Path("text.safetensors").write_text("no model")
        Path("empty").mkdir()
        output = [] if "--resume" in words else ["--output", "run"]
        done = here("train", "--dataset", "shapes10", *words, *output)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert not Path("run").exists()


def test_the_command_prints_what_is_taken_over(here: Here, tmp_path: Path, small_run: Path) -> None:
    done = here(
        "train", "--recipe", "fine-tune", "--start-from", small_run, "--dataset", "shapes10",
        "--train-images", "64", "--epochs", "1", "--optim.warmup-epochs", "0", "--device", "cpu",
        "--val-fraction", "0.01", "--output", tmp_path / "run",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Starting from SpratNet: " in done.stdout
    assert "copied:      stem (" in done.stdout
    assert "new:         none" in done.stdout
