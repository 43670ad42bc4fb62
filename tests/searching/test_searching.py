"""Tests of the search: what is trained, refused, halved and kept, and that it resumes exactly."""

import dataclasses
import itertools
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Here as CommandLine
from conftest import weights
from own_pictures import draw
from pretended import NOWHERE, RECIPE, Recorder, decide, plan, pretend, records

import sprat
from sprat import SpratError
from sprat.budget import summarize
from sprat.checkpoint import load_model
from sprat.data import Dataset
from sprat.data.imageset import ImageSet, Normalization
from sprat.errors import Interrupted
from sprat.models import NetworkConfig, build_network
from sprat.models.blocks import blueprint_of
from sprat.pools import Stopped
from sprat.pools.local import Here
from sprat.pools.source import Source
from sprat.run_folder import read_config
from sprat.searching.cost import Counter, quickly
from sprat.searching.driver import Decision
from sprat.searching.plan import (
    epochs_for,
    epochs_within,
    generation_seconds,
    rungs_of,
)
from sprat.searching.space import Space, network_of, sides_of
from sprat.searching.trial import Rung, Task, train_rung, trial_config
from sprat.settings.config import BudgetConfig, Config
from sprat.settings.recipes import load_recipe


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decision, Recorder]:
    """Uninterrupted search: its folder, decision and pool."""
    folder, pool = tmp_path_factory.mktemp("usual"), Recorder()
    return folder, decide(folder, pool), pool


def test_trials_are_halved_at_each_rung(usual: tuple[Path, Decision, Recorder]) -> None:
    _, decision, pool = usual
    for generation in range(2):
        trials = [t for t in decision.trials if t.generation == generation and not t.refused]
        reached = [sum(epochs in trial.rungs for trial in trials) for epochs in (1, 3, 9)]
        assert reached == [4, 1, 1]
        best = max(trials, key=lambda trial: trial.rungs[1])
        assert best.state == "complete"
        assert {trial.state for trial in trials if trial is not best} == {"stopped"}
    assert len(pool.asked) == len(set(pool.asked)), "nothing is trained twice"


def test_the_finalists_are_trained_longer_and_the_best_wins(
    usual: tuple[Path, Decision, Recorder],
) -> None:
    _, decision, pool = usual
    long = [(key, config) for (key, _), config in zip(pool.asked, pool.configs, strict=True)
            if key.endswith("-long")]  # fmt: skip
    assert len(long) == 3
    for _, config in long:
        assert (config.train_images, config.epochs) == (0, 14), "27 epochs of half the images"
    assert decision.winner.number == max(decision.finalists, key=lambda each: each.val).trial.number
    family = Space(plan().config, (16,)).family()
    assert any(each.trial.point in family for each in decision.finalists)


def test_number_of_workers_does_not_change_the_search(
    usual: tuple[Path, Decision, Recorder], tmp_path: Path
) -> None:
    _, decision, pool = usual
    three = Recorder(workers=3)
    found = decide(tmp_path, three)
    assert records(found) == records(decision)
    assert [each.trial.number for each in found.finalists] == [
        each.trial.number for each in decision.finalists
    ]
    assert sorted(three.asked) == sorted(pool.asked)


@pytest.mark.parametrize("most", [0, 1, 5, 7, 12])
def test_stopped_search_resumes_exactly(
    usual: tuple[Path, Decision, Recorder], tmp_path: Path, most: int
) -> None:
    _, decision, whole = usual
    stopped, resumed = Recorder(workers=2, most=most), Recorder()
    with pytest.raises(Stopped):
        decide(tmp_path, stopped)
    assert records(decide(tmp_path, resumed)) == records(decision)
    assert most + len(resumed.asked) == len(whole.asked), "what was finished is not trained again"


def test_a_kill_while_the_journal_is_written_loses_nothing(
    usual: tuple[Path, Decision, Recorder], tmp_path: Path
) -> None:
    folder, decision, _ = usual
    lines = (folder / "journal.log").read_bytes().splitlines(keepends=True)
    for kept, torn in itertools.product((1, 3, 5, len(lines) - 1), (b"", b'{"op_co')):
        place = tmp_path / f"{kept}{bool(torn)}"
        place.mkdir()
        (place / "journal.log").write_bytes(b"".join(lines[:kept]) + torn)
        assert records(decide(place, Recorder())) == records(decision)


def test_a_kill_while_a_smaller_generation_is_written_adds_no_trial(tmp_path: Path) -> None:
    whole = decide(tmp_path, Recorder(), trials=5, generation=3)
    lines = (tmp_path / "journal.log").read_bytes().splitlines(keepends=True)
    for kept in range(len(lines) - 2, len(lines)):
        (tmp_path / "journal.log").write_bytes(b"".join(lines[:kept]))
        found = decide(tmp_path, Recorder(), trials=5, generation=3)
        assert records(found) == records(whole)


def test_networks_over_a_limit_are_never_trained(tmp_path: Path) -> None:
    tight = BudgetConfig(max_parameters=4_000, max_macs=60_000, max_ram=8_000)
    pool = Recorder()
    decision = decide(tmp_path, pool, budget=tight, trials=1, generation=1)
    refused = [trial for trial in decision.trials if trial.refused]
    assert refused
    counter = Counter(tight, 3)
    for config in pool.configs:
        assert counter.count(config.network, 16).kept
    assert not {str(trial.number) for trial in refused} & {key for key, _ in pool.asked}
    for trial in decision.trials:
        assert trial.refused == any(
            trial.cost[cost] > limit  # type: ignore[literal-required]
            for cost, limit in (("parameters", 4_000), ("macs", 60_000), ("ram", 8_000))
        )


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"max_parameters": 50}, "parameters (limit 50)"),
        ({"max_macs": 10}, "MACs (limit 10)"),
        ({"max_ram": 16}, "bytes of RAM (limit 16)"),
        ({"max_flash": 16, "max_parameters": 16}, "parameters (limit 16) and"),
        ({"max_macs": 9_500, "min_receptive_field": 60}, "the nearest"),
    ],
)
def test_unsatisfiable_limits_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limits: dict[str, int], said: str
) -> None:
    monkeypatch.setattr("sprat.searching.journal.MOST_DRAWS", 2)
    pool = Recorder()
    with pytest.raises(SpratError) as error:
        decide(tmp_path, pool, budget=BudgetConfig(**limits), trials=1, generation=1)
    assert said in str(error.value)
    assert "the smallest" in str(error.value)
    assert not pool.asked


def diverging(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
    if task.key in ("0", "1"):
        return Rung(task.key, task.until, 0.0, 1.0, diverged=True)
    return pretend(task, source, should_stop)


def test_diverged_trials_are_not_continued(tmp_path: Path) -> None:
    pool = Recorder(train=diverging)
    decision = decide(tmp_path, pool, trials=4)
    assert [trial.state for trial in decision.trials[:2]] == ["diverged", "diverged"]
    assert {until for key, until in pool.asked if key in ("0", "1")} == {1}
    assert decision.winner.number not in (0, 1)


def test_search_without_a_trainable_trial_is_reported(tmp_path: Path) -> None:
    def train(task: Task, source: Source, should_stop: Callable[[], bool]) -> Rung:
        return Rung(task.key, task.until, 0.0, 1.0, diverged=True)

    with pytest.raises(SpratError, match="No trial could be trained"):
        decide(tmp_path, Recorder(train=train), trials=2, generation=2)


def test_space_contains_the_shipped_sprat_s() -> None:
    counter = Counter(BudgetConfig(max_parameters=40_726, max_macs=17_280_776), 10)
    space = Space(RECIPE, (32,))
    first, counted = space.design(space.family()[0], counter)
    assert counted.kept
    torch.manual_seed(0)
    shipped = build_network("SpratS").state_dict()
    found = build_network(first.network).state_dict()
    assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in shipped.items()}


def test_smallest_network_has_minimal_cost() -> None:
    space = Space(RECIPE, (16,))
    (smallest, side), choices = space.smallest(), space.choices()
    parameters, macs = quickly(smallest, 3, side)
    names = ("stem", "kernels", "shortcut", "stride2", "depth3")
    values = [getattr(choices[name], "choices", (0, 1)) for name in names]
    for chosen in itertools.product(*values):
        point = dict(zip(names, chosen, strict=True))
        point |= {"stem_stride": 2, "depth1": 0, "depth2": 1, "widening": 1.0}
        point |= {"ratio2": 1.0, "ratio3": 1.0, "stride3": 2}
        counted = quickly(network_of(point, 1), 3, side)
        assert counted[0] >= parameters
        assert counted[1] >= macs


def test_every_point_is_a_network_the_compiled_kernels_support() -> None:
    from sprat.kernels.support import supported

    space, draw = Space(RECIPE, (64, 48, 32)), random.Random(0)
    for _ in range(12):
        point = {}
        for name, choice in space.choices().items():
            values = getattr(choice, "choices", None)
            point[name] = draw.choice(values) if values else draw.choice([choice.low, choice.high])
        spec = network_of(point, draw.randint(1, 64))
        network = build_network(spec, 3)
        supported(network)
        counted = summarize(network, 32)
        assert quickly(spec, 3, 32) == (counted.parameters, counted.macs)
        with torch.inference_mode():
            assert network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)


def test_blueprint_marks_blocks_without_a_shortcut() -> None:
    network = build_network(NetworkConfig(name="SpratNet", widths=(8, 8), shortcut=(0, 1)))
    blueprint = blueprint_of(network)
    assert blueprint is not None
    halving = 1
    assert [block.shortcut is None for block in blueprint.blocks] == [
        *[True] * 3, *[True] * halving, *[False] * 3
    ]  # fmt: skip


def test_only_own_pictures_get_smaller_sides() -> None:
    assert sides_of(32, own=False) == (32,)
    assert sides_of(64, own=True) == (64, 48, 32)
    assert sides_of(16, own=True) == (16,)
    assert sides_of(64, own=True, crop=32) == (64, 48)


def test_trial_epochs_depend_on_images_and_time() -> None:
    assert epochs_for(10_000) == 18
    assert epochs_for(500) == 90
    assert rungs_of(18) == (2, 6, 18)
    assert rungs_of(1) == (1,)
    assert generation_seconds((2, 6, 18), 9, 10.0) == 10 * (9 * 2 + 3 * 4 + 12)
    for seconds in (1, 100, 1_000, 10_000):
        epochs = epochs_within(18, 9, 10.0, seconds)
        assert epochs == 1 or 4 * generation_seconds(rungs_of(epochs), 9, 10.0) <= seconds


# tests with real trials


@pytest.fixture(scope="module")
def short() -> Config:
    return RECIPE.changed({
        "epochs": 2, "batch_size": 16, "optim.warmup_epochs": 0.5, "augment.crop": 2, "threads": 1,
        "device": "cpu", "tta": 1, "evaluate_every": 1,
    })  # fmt: skip


def test_trial_resumes_exactly_from_its_rung(tiny: Dataset, short: Config) -> None:
    source = Source("tiny", None, short.pictures, {16: tiny.md5}, own=False, held=tiny, named=False)
    network = NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,), kernels=(3,))
    from sprat.training.start import settle_for

    config = dataclasses.replace(trial_config(short, 2, 64), network=network)
    config = settle_for(config, tiny)
    at_once = train_rung(Task("0", config, 2), source)
    first = train_rung(Task("0", config, 1), source)
    then = train_rung(Task("0", config, 2, first.state), source)
    assert (then.val, first.until, then.until) == (at_once.val, 1, 2)
    with pytest.raises(Interrupted):
        train_rung(Task("0", config, 2), source, lambda: True)
    assert train_rung(Task("0", config, 2, seconds=1e-9), source).val is None
    rate = dataclasses.replace(config.optim, lr=1e30, muon_lr=1e30, weight_decay=0.0)
    wild = dataclasses.replace(config, optim=rate)
    assert train_rung(Task("0", wild, 2), source).diverged


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("CUDA out of memory. Tried …")])
def test_a_trial_that_lacks_memory_is_given_up(
    tiny: Dataset, short: Config, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def train(*_: Any) -> None:
        raise error

    monkeypatch.setattr("sprat.training.run.Run.train", train)
    source = Source("tiny", None, short.pictures, {16: tiny.md5}, own=False, held=tiny, named=False)
    found = train_rung(Task("0", trial_config(short, 2, 64), 1), source)
    assert (found.val, found.diverged) == (None, False)


@pytest.fixture(scope="module")
def searched(tiny: Dataset, short: Config, tmp_path_factory: pytest.TempPathFactory) -> Any:
    def search(name: str, **how: Any) -> sprat.Search:
        folder = tmp_path_factory.getbasetemp() / name
        return sprat.search(
            short, max_parameters="4k", max_macs=400_000, dataset=tiny, trials=3, trial_epochs=1,
            generation=3, trial_images=64, cpus_per_trial=1, output=folder, quiet=True, **how,
        )  # fmt: skip

    return search("searched", changes={"final": True})


def test_a_search_ends_as_an_ordinary_run(searched: sprat.Search, tiny: Dataset) -> None:
    folder, inner = searched.folder, searched.folder / "search"
    results, outcome = searched.results, searched.outcome
    assert results["test"] is not None
    assert results["parameters"] <= 4_000
    assert (outcome["trained"], outcome["rungs"], outcome["trial_images"]) == (3, [1], 64)
    trials = json.loads((inner / "trials.json").read_text())
    winner = trials[outcome["winner"]]
    assert winner["cost"]["parameters"] == results["parameters"]
    assert winner["network"] == results["network"]
    assert load_model(folder).spec == NetworkConfig.from_dict(winner["network"])
    recipe = load_recipe(str(inner / "winner.toml"))
    config, name, overrides = read_config(folder)
    assert (name, overrides) == (str(inner / "winner.toml"), {})
    assert (recipe.network, recipe.optim) == (config.network, config.optim)
    assert recipe.budget.max_parameters == 4_000
    assert not (inner / "work").exists()
    assert (inner / "pareto.png").read_bytes().startswith(b"\x89PNG")
    page = (inner / "report.html").read_text()
    assert f"{100 * results['test']['top1']:.2f}" in page
    assert "http" not in page.split("<body>")[1]
    again = sprat.resume_search(folder, dataset=tiny, quiet=True)
    assert again.results["test"] == results["test"]


def test_resuming_a_killed_search_draws_missing_reports(
    searched: sprat.Search, tiny: Dataset, tmp_path: Path
) -> None:
    folder = shutil.copytree(searched.folder, tmp_path / "run")
    page, work = folder / "search" / "report.html", folder / "search" / "work"
    drawn = page.read_text().replace(str(searched.folder), str(folder))
    page.write_text("of before the winner was trained")
    os.utime(page, (0, 0))
    (folder / "curves.png").unlink()
    sprat.resume_search(folder, dataset=tiny, quiet=True)
    assert page.read_text() == drawn
    assert (folder / "curves.png").exists()
    (folder / "results.json").unlink()  # as if killed before the trials' states were removed
    work.mkdir()
    (work / "1.pt").touch()
    sprat.resume_search(folder, dataset=tiny, quiet=True)
    assert not work.exists()


def test_interrupted_search_resumes_to_identical_weights(
    searched: sprat.Search, tiny: Dataset, short: Config, tmp_path: Path
) -> None:
    class Stop:
        """Request to stop after a number of steps."""

        left = 0

        def __init__(self, steps: int) -> None:
            self.left = steps

        def __enter__(self) -> Callable[[], bool]:
            return self

        def __call__(self) -> bool:
            self.left -= 1
            return self.left <= 0

        def __exit__(self, *error: object) -> None:
            pass

    folder = tmp_path / "again"
    with pytest.raises(Interrupted):
        sprat.search(
            short, {"final": True}, max_parameters=4_000, max_macs="400k", dataset=tiny, trials=3,
            trial_epochs=1, generation=3, trial_images=64, cpus_per_trial=1, output=folder,
            quiet=True, stopping=Stop(8),
        )  # fmt: skip
    with pytest.raises(SpratError, match="contains a search"):
        sprat.search(short, dataset=tiny, trials=1, output=folder, quiet=True)
    other = dataclasses.replace(tiny, md5="another")
    with pytest.raises(SpratError, match="other images"):
        sprat.resume_search(folder, dataset=other, quiet=True)
    found = sprat.resume_search(folder, dataset=tiny, quiet=True)
    assert weights(found.folder) == weights(searched.folder)
    assert found.results["test"] == searched.results["test"]


def test_search_supports_grey_pictures(tiny: Dataset, short: Config, tmp_path: Path) -> None:
    def grey(images: ImageSet) -> ImageSet:
        return dataclasses.replace(images, images=images.images[:][:, :1].contiguous())

    train = grey(tiny.train)
    one = dataclasses.replace(
        tiny, train=train, test=grey(tiny.test), normalization=Normalization.of(train.images)
    )
    found = sprat.search(
        short, {"epochs": 1}, max_parameters="2k", max_macs="100k", dataset=one, trials=1,
        generation=1, trial_epochs=1, trial_images=32, cpus_per_trial=1, output=tmp_path / "run",
        quiet=True,
    )  # fmt: skip
    model = load_model(found.folder)
    assert model.channels == 1
    trials = json.loads((found.folder / "search" / "trials.json").read_text())
    trial = trials[found.outcome["winner"]]
    parameters, macs = quickly(model.spec, 10, 16, channels=1)
    assert (trial["cost"]["parameters"], trial["cost"]["macs"]) == (parameters, macs)


def test_a_time_too_short_for_a_trial_is_refused_at_the_beginning(
    tiny: Dataset, short: Config, tmp_path: Path
) -> None:
    with pytest.raises(SpratError, match=r"--time is too short.* Give at least --time \d+s\.$"):
        sprat.search(
            short, max_parameters="2k", dataset=tiny, time="1s", trial_images=32,
            cpus_per_trial=1, output=tmp_path / "run", quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_other_images_is_refused_at_the_beginning(
    tiny: Dataset, short: Config, tmp_path: Path
) -> None:
    with pytest.raises(SpratError, match="The teacher SpratS was trained on other images"):
        sprat.search(
            short, {"distill.teacher": ["SpratS"]}, dataset=tiny, trials=1, trial_images=32,
            output=tmp_path / "run", quiet=True,
        )  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("number", [2.5, "3", True, -1, 10**9])
def test_invalid_number_of_trials_is_refused(number: Any) -> None:
    with pytest.raises(SpratError, match=r"^--trials is .*, expected 0 to 100,000\. Give"):
        sprat.search(trials=number)


def test_pictures_that_changed_since_the_search_began_are_refused(tmp_path: Path) -> None:
    folder = draw(tmp_path / "pictures", red=12, blue=12)
    pictures = dataclasses.replace(RECIPE.pictures, side=16)
    source = Source(str(folder), None, pictures, {16: "of before"}, own=True)
    with pytest.raises(SpratError, match="has changed since the search began"):
        source.load(16)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "The search has no end. Give --time"),
        (["--trials", "-1"], "--trials is -1, expected 0 to"),
        (["--trials", "1", "--workers", "0"], "--workers is 0, expected 1 to"),
        (["--time", "5"], "time is '5'"),
        (["--trials", "1", "--max-parameters", "x"], "max_parameters is 'x'"),
        (["--trials", "1", "--recipe", "nosuch"], "Unknown recipe 'nosuch'"),
        (["--trials", "1", "--dataset", "nosuch"], "nosuch"),
        (
            ["--trials", "1", "--dataset", "shapes10", "--trial-images", "8"],
            "batch_size is 64, but there are only 8 training images",
        ),
        (["--resume", "nosuch"], "There is no search in nosuch"),
        (["--resume", "nosuch", "--trials", "3"], "exactly as it began"),
        (["--trials", "1", "--output", "taken"], "taken exists already and is not overwritten"),
        (
            ["--trials", "1", "--recipe", "taken/started.toml"],
            "start_from is 'SpratS', but a search",
        ),
        (["--trials", "1", "--recipe", "taken/folded.toml"], "folds is 5, but a search trains one"),
    ],
)
def test_invalid_search_options_are_reported(
    here: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    files = {"file.txt": "", "folded.toml": "folds = 5", "started.toml": 'start_from = "SpratS"'}
    for name, content in files.items():
        (tmp_path / "taken" / name).write_text(content)
    done = here("search", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert {path.name for path in tmp_path.rglob("*")} == {*files, "taken"}


@pytest.mark.parametrize(
    "words",
    [
        ["--max-ram", "1K"], ["--pictures.side", "16"], ["--time", "1h"], ["--trials", "1"],
        ["--recipe", "quick"], ["--final"], ["--output", "x"], ["--seed", "1"],
        ["--cpus-per-trial", "1"], ["--trial-images", "9"], ["--trial-epochs", "9"],
        ["--generation", "3"], ["--device", "cpu"],
    ],
)  # fmt: skip
def test_resume_refuses_other_options(here: CommandLine, tmp_path: Path, words: list[str]) -> None:
    done = here("search", "--resume", tmp_path, *words)
    assert done.returncode == 2
    assert "--resume continues a search exactly as it began" in done.stderr


def test_resume_command_names_dataset_and_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sprat.cli.search import _to_resume

    run = tmp_path / "run"
    how: dict[str, Any] = {"moved": "my data", "data_dir": None, "workers": "2", "gpus": 0.0}
    monkeypatch.setattr("sys.argv", ["sprat", "search", "--trials", "1"])
    assert _to_resume(run, **how) == "sprat search --trials 1", "there is nothing to resume"
    (run / "search").mkdir(parents=True)
    (run / "search" / "settings.json").touch()
    resumed = f"sprat search --resume {run} --dataset 'my data' --workers 2"
    assert _to_resume(run, **how) == resumed


def test_without_optuna_it_says_what_to_install(
    here: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    done = here("search", "--trials", 1)
    assert done.returncode == 2
    assert "pip install 'sprat[search]'" in done.stderr


def test_pool_of_one_trains_in_this_process() -> None:
    pool = Here(pretend, NOWHERE, lambda: False)
    pool.start(Task("7", plan().trial, 3))
    assert pool.next().key == "7"
    pool.should_stop = lambda: True
    pool.start(Task("8", plan().trial, 3))
    with pytest.raises(Stopped):
        pool.next()
