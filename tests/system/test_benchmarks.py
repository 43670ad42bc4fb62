"""Tests that every benchmark runs and prints one line of JSON last; no time is asserted.

Most run in this process, since importing torch takes most of the time of a turn that measures next
to nothing.
"""

import contextlib
import io
import json
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch

from sprat.augment.views import VIEWS
from sprat.checkpoint import load_model
from sprat.data import Dataset, load_dataset
from sprat.evaluation.evaluate import evaluate
from sprat.evaluation.records import read_json, write_json
from sprat.models import NETWORKS
from sprat.run_folder import read_config
from sprat.training.images import split_off_val

ROOT = Path(__file__).parents[2]
BENCHMARKS = ROOT / "benchmarks"


pytestmark = pytest.mark.filterwarnings("default")  # as when run by hand


def _process(script: str, *options: str) -> dict[str, Any]:
    """Run a benchmark in a new process; return the JSON object that it prints last."""
    command = [sys.executable, str(BENCHMARKS / script), "--json", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


class Here(Protocol):
    def __call__(self, script: str, *options: str) -> dict[str, Any]: ...


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, threads: None) -> Here:
    """Function like `_process` that runs a benchmark and its turns in this process."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sprat.models.NETWORKS", dict(NETWORKS))  # some add their own
    import side_by_side

    def turn(words: tuple[str, ...], name: str, environment: dict[str, str]) -> dict[str, Any]:
        assert environment == {}, "a turn with its own environment needs its own process"
        return run(*words, "--contender", name)

    def run(*words: str) -> dict[str, Any]:
        shown = io.StringIO()
        with monkeypatch.context() as typed, contextlib.redirect_stdout(shown):
            typed.setattr(sys, "argv", [str(BENCHMARKS / words[0]), *words[1:]])
            typed.setattr(side_by_side, "_one_turn", partial(turn, words))
            try:
                runpy.run_path(sys.argv[0], run_name="__main__")
            except SystemExit as ended:
                if ended.code:
                    raise
        figures: dict[str, Any] = json.loads(shown.getvalue().splitlines()[-1])
        return figures

    return lambda script, *options: run(script, "--json", *options)


def test_training_step(tmp_path: Path) -> None:
    options = ["--rounds", "1", "--steps", "1", "--warmup", "1", "--batch-size", "32"]
    options += ["--ceiling-side", "64"]  # a large bf16 product takes minutes on many CPUs
    output = tmp_path / "figures.json"
    figures = _process("training_step.py", *options, "--without-brief", "--output", str(output))
    assert {"ratio_to_eager_bf16", "ratio_to_brief", "images_per_s"} <= figures.keys()
    measured = figures["measured"]
    ratio = measured["sprat"]["images_per_s"] / measured["eager-bf16"]["images_per_s"]
    assert figures["ratio_to_eager_bf16"] == pytest.approx(ratio)
    assert json.loads(output.read_text()) == figures


def test_under_load() -> None:
    options = ("--rounds", "1", "--seconds", "0", "--warmup", "0", "--batch-size", "16")
    figures = _process("under_load.py", *options, "--spin-counts", "0", "--kernels", "torch")
    measured, ratios = figures["measured"], figures["ratios_to_alone"]
    assert isinstance(measured, dict)
    assert isinstance(ratios, dict)
    assert measured.keys() == {"sprat", "sprat-default", "eager", "sprat-0"}
    for name, of in measured.items():
        assert ratios[name]["beside_two"] == pytest.approx(of["beside_two"] / of["alone"])
    alone = measured["sprat"]["alone"] / measured["sprat-default"]["alone"]
    assert figures["alone_to_default"] == pytest.approx(alone)


def test_commands() -> None:
    figures = _process("commands.py", "--rounds", "1", "--warmup", "0")
    seconds, ratios = figures["seconds"], figures["ratios_to_torch"]
    assert isinstance(seconds, dict)
    assert isinstance(ratios, dict)
    assert ratios["import torch"] == 1
    ratio = seconds["summary SpratM"] / seconds["import torch"]
    assert ratios["summary SpratM"] == pytest.approx(ratio)


def test_original_loop_trains_or_names_missing_package() -> None:
    command = [
        sys.executable, str(ROOT / "benchmarks" / "training_step.py"), "--contender", "brief",
        "--steps", "1", "--warmup", "1", "--batch-size", "32",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        assert "pip install 'sprat[albumentations]'" in done.stderr
    else:
        assert json.loads(done.stdout.splitlines()[-1])["images_per_s"] > 0


def test_inference(here: Here) -> None:
    pytest.importorskip("onnxruntime", reason="needs sprat[export]")
    options = ("--rounds", "1", "--calls", "20", "--batch-size", "4")
    some = ("--models", "ResNet8", "--ways", "onnx-int8", "c")
    figures = here("inference.py", *options, *some)
    measured = figures["measured"]
    assert measured.keys() == {"onnx-int8-1", "onnx-int8-2", "c-1"}
    assert all(ways["ms_for_one_image"] > 0 for ways in measured.values())
    assert (figures["model"], figures["others"]) == ("ResNet8", {})


def test_microcontroller_measures_only_changed_models(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from side_by_side import noise

    monkeypatch.setattr("sprat.data.load_dataset", lambda *_: noise(40))
    output = tmp_path / "figures.json"
    options = ("--images", "20", "--output", str(output), "--models")
    figures = here("microcontroller.py", *options, "SpratS")
    found = figures["models"]["SpratS"]
    assert (found["images"], found["other_scores"]) == (20, 0)
    assert found["arena_bytes"] < 114_688  # planned by ExecuTorch
    kept = figures["models"]["SpratS"] | {"top1_int8": 0.5}
    other = dict.fromkeys(found, 0)
    models = {"SpratS": kept, "OptimizedCIFAR10Net200K": other, "no longer shipped": other}
    output.write_text(json.dumps(figures | {"models": models}))
    figures = here("microcontroller.py", *options, "SpratS", "OptimizedCIFAR10Net200K")
    assert read_json(output) == figures
    assert set(figures["models"]) == {"SpratS", "OptimizedCIFAR10Net200K"}
    assert figures["models"]["SpratS"] == kept
    assert figures["models"]["OptimizedCIFAR10Net200K"]["images"] == 20


def test_cost(here: Here, tmp_path: Path) -> None:
    picture = tmp_path / "cost.png"
    options = ("--rounds", "1", "--images", "64", "--lines", "images", "--ends")
    figures = here("cost.py", *options, "--picture", str(picture))
    measured = figures["measured"]
    seconds = [point["seconds_an_epoch"] for point in measured["images"].values()]
    assert len(seconds) == 2
    assert min(seconds) > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_mapped(here: Here) -> None:
    options = ("--gigabytes", "0.02", "--side", "16", "--steps", "2", "--kernels", "torch")
    measured = here("mapped.py", *options)["measured"]
    assert measured["large"]["set_bytes"] == pytest.approx(2e7, rel=0.01)
    assert all(turn["peak_rss_bytes"] > 0 for turn in measured.values())


def test_gpu_benchmark_runs_on_a_cpu() -> None:
    options = ("--device", "cpu", "--batch-sizes", "32", "--steps", "1", "--rounds", "1")
    figures = _process("gpu.py", *options)
    agreement = figures["agreement_with_cpu"]
    assert agreement["torch"]["loss"] == 0
    assert agreement["kernels"]["loss"] < 1e-2
    assert figures["speed"].keys() == {"torch-32", "kernels-32"}


def test_train_for_runs_with_few_packages(tmp_path: Path) -> None:
    """Train two jobs, the second taught by the first, and unpack both runs from small parts."""
    shared = (
        'model = "ResNet8"\ntrain_images = 128\nbatch_size = 64\nepochs = 2\ntta = 1\nthreads = 1\n'
    )
    shared += 'kernels = "torch"\n[optim]\nwarmup_epochs = 1\n'
    recipes, out, work = (tmp_path / name for name in ("recipes", "out", "work"))
    recipes.mkdir()
    (recipes / "first.toml").write_text(shared)
    (recipes / "second.toml").write_text(shared + '[distill]\nteacher = ["runs/first"]\n')
    words = ["first=40", "second=40", "--recipes", recipes, "--dataset", "shapes10", "--device"]
    words += ["cpu", "--work", work, "--output", out, "--part-size", "0.25", "--limit", "1000"]
    script = str(BENCHMARKS / "train_for.py")
    bare = (
        "import runpy, sys\n"
        "for name in ('cyclopts', 'rich', 'jinja2', 'scipy', 'pyarrow', 'onnx', 'starlette'):\n"
        "    sys.modules[name] = None\n"
        f"sys.argv[0] = {script!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')"
    )

    def train(*more: str) -> tuple[int, dict[str, Any]]:
        command = [sys.executable, "-c", bare, *map(str, words), "--json", *more]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout, done.stderr
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return done.returncode, figures

    assert train("--limit", "0") == (1, {"runs": {}, "parts": [], "stopped": ["first", "second"]})
    code, figures = train()
    assert code == 0
    assert {run["epochs"] for run in figures["runs"].values()} == {2}
    parts = [(out / name).read_bytes() for name in figures["parts"]]
    assert len(parts) > 1
    assert max(map(len, parts)) <= 2**18
    with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
        tar.extractall(tmp_path / "back", filter="data")
    for name in ("first", "second"):
        back, run = tmp_path / "back" / name, work / "runs" / name
        kept = {file.name for file in run.iterdir()} - {"last.pt"}
        assert {file.name: file.read_bytes() for file in back.iterdir()} == {
            file: (run / file).read_bytes() for file in kept
        }
        assert {"config.json", "curves.png", f"{name}-40s.toml"} <= kept
        results = read_json(back / "results.json")
        assert results["test"]["top1"] == figures["runs"][name]["top1"]
        assert results["overrides"] == {}
        load_model(back)


def test_time_to_accuracy_reads_finished_runs(here: Here, cifar10_place: Path) -> None:
    runs = ROOT / "results" / "sprint"
    options = ["--runs", str(runs), "--data-dir", str(cifar10_place.parent), "--rounds", "2"]
    figures = here("time_to_accuracy.py", *options, "--steps", "1", "--batch-size", "16")
    tops = [
        json.loads((runs / f"seed-{seed}" / "results.json").read_text())["test"]["top1"]
        for seed in range(2)
    ]
    assert figures["top1"] == pytest.approx(sum(tops) / 2)
    assert {"ratio", "seconds"} <= figures.keys()


def test_augmentation(here: Here) -> None:
    pytest.importorskip("albumentations", reason="needs sprat[albumentations]")
    figures = here("augmentation.py", "--rounds", "1", "--repeats", "1", "--batch-size", "32")
    measured = figures["measured"]
    ratio = measured["batched"]["whole"] / measured["albumentations"]["whole"]
    assert figures["ratio_to_albumentations"] == pytest.approx(ratio)
    share = measured["step"]["augmentation"] / measured["step"]["step"]
    assert figures["augmentation_share_of_step"] == pytest.approx(share)


def test_tta_agrees_with_evaluate(
    here: Here, small_run: Path, shapes10: Dataset, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(small_run, tmp_path / "run"))
    written = read_json(run / "config.json")
    written["config"]["val_fraction"] = 0.02  # fewer images to evaluate
    write_json(run / "config.json", written)
    figures = here("tta.py", str(run))
    (model,) = figures["models"]
    assert model["judged_on"] == "val"
    assert model["sets"].keys() == set(map(str, VIEWS))
    config, trained = read_config(run)[0], load_model(run)
    val = shapes10.train.subset(split_off_val(shapes10, config)[1])
    evaluation = evaluate(trained.network, val, trained.normalization, tta=6)
    for views, key in (("1", "top1"), ("6", "tta_top1")):
        # the kernels round differently, which may change a prediction or two
        assert model["sets"][views]["top1"] == pytest.approx(evaluation[key], abs=2.5 / len(val))


def test_head_start_pairs_seeds_and_reuses_finished_runs(
    here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from side_by_side import noise

    monkeypatch.setattr("sprat.data.load_dataset", lambda *_: noise(140, 16))
    options = ("--work", str(tmp_path), "--sizes", "8=1", "--epochs", "1", "--val", "2")
    figures = here("head_start.py", *options, "--seeds", "2", "--threads", "1")
    (size,) = figures["sizes"]
    assert (size["images_a_class"], size["steps"]) == (8, 1)
    assert size["scratch_on_val"][size["chosen"]] == max(size["scratch_on_val"].values())
    measured = size["measured"]
    for other in ("from scratch", "from scratch, longer"):
        ahead = [
            one - another
            for one, another in zip(
                measured["head start"]["of_seeds"], measured[other]["of_seeds"], strict=True
            )
        ]
        assert size["head_start_ahead_of"][other]["of_seeds"] == ahead
    runs = {name: read_json(tmp_path / name / "seed-1" / "results.json")
            for name in ("8-head-start-1", "8-from-scratch-1")}  # fmt: skip
    start = runs["8-head-start-1"]["start"]
    assert start["new"] == ["classifier.weight", "classifier.bias"]
    assert runs["8-from-scratch-1"]["start"] is None
    of_data = {(run["dataset_md5"], run["epochs"]) for run in runs.values()}
    assert len(of_data) == 1
    written = (tmp_path / "8-head-start-1/seed-1/model.safetensors").stat()
    assert here("head_start.py", *options, "--seeds", "2", "--threads", "1")["sizes"] == [size]
    assert (tmp_path / "8-head-start-1/seed-1/model.safetensors").stat() == written


def test_search_compares_networks_and_reuses_finished_runs(here: Here, tmp_path: Path) -> None:
    short = ("--dataset", "shapes10", "--images", "128", "--epochs", "1", "--seeds", "1")
    minutes = ("--minutes", "0.4", "--halving-minutes", "0.3", "--workers", "1")
    options = ("--work", str(tmp_path), *short, *minutes)
    figures = here("search.py", *options)
    found, ways = figures["find"], figures["halving"]["ways"]
    limits = found["limits"]
    for name, trained in found["trained_networks"].items():
        assert trained["parameters"] <= limits["max_parameters"], name
        assert trained["macs"] <= limits["max_macs"], name
        assert trained["epochs"] == 1
    alone = found["right_alone"]
    test = load_dataset("shapes10", None).test
    assert found["difference"] == pytest.approx((alone["found"] - alone["SpratS"]) / len(test))
    assert figures["halving"]["limits"] == {"max_parameters": 20_000, "max_macs": 5_000_000}
    (halved,), (random,) = ways["halving"], ways["random"]
    assert found["trained"] == sum(t["state"] != "refused" for t in found["trials"])
    assert len(random["rungs"]) == 1
    assert 0 <= halved["val_top1"] <= 1
    assert here("search.py", *options) == figures


@pytest.mark.cluster
def test_scale() -> None:
    pytest.importorskip("ray")
    options = ("--rounds", "1", "--images", "80", "--epochs", "1", "--generation", "2")
    figures = _process("scale.py", *options, "--tasks", "1", "--asked", "6")
    measured = figures["measured"]
    assert measured.keys() == {"this process", "2 processes", "Ray, 1 core", "Ray, 2 cores"}
    assert all(way["trials_per_hour"] > 0 for way in measured.values())
    assert [row["trials"] for row in figures["asking"]] == [2, 4]


def test_serve(here: Here) -> None:
    options = ("--rounds", "1", "--requests", "4", "--clients", "1", "2", "--threads", "1")
    figures = here("serve.py", *options, "--memory-requests", "10", "--bare-seconds", "0.01")
    measured, memory = figures["measured"], figures["memory"]
    assert isinstance(measured, dict)
    assert measured.keys() == {"1", "2"}
    assert all(0 < turn["p50_ms"] <= turn["p99_ms"] for turn in measured.values())
    assert [seen["requests"] for seen in memory] == list(range(11))
