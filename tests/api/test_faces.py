"""Tests that every verb does the same as a command and as a Python function."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import json
import pkgutil
import shutil
import tomllib
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Here, weights
from PIL import Image

import sprat
from sprat import SpratError

SOURCE = Path(sprat.__file__).parent
ROOT = SOURCE.parents[1]
VERBS = (
    *("check_data", "compare", "evaluate", "export", "import_model", "list_runs", "load"),
    *("predict", "report", "resume", "resume_search", "search", "train", "train_folds"),
    "train_seeds",
)
MOST_STATEMENTS = 25
# results that differ from run to run
MEASURED = {"seconds", "images_per_s", "peak_memory_bytes", "original_claims"}


def test_functions_stay_callable_after_importing_all_modules() -> None:
    found = [module.name for module in pkgutil.walk_packages(sprat.__path__, "sprat.")]
    for name in found:
        with contextlib.suppress(ModuleNotFoundError):  # of an optional package
            if not name.endswith("__main__"):
                importlib.import_module(name)
    assert len(found) > 50
    for verb in VERBS:
        assert callable(getattr(sprat, verb)), verb
        assert f"sprat.{verb}" not in found


@pytest.mark.parametrize("path", sorted(SOURCE.glob("cli/*.py")), ids=lambda path: path.name)
def test_commands_are_thin(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            count = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1
            assert count <= MOST_STATEMENTS, f"{node.name} has {count} statements"


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_has_a_type_and_is_documented(verb: str) -> None:
    function = getattr(sprat, verb)
    types, documented = typing.get_type_hints(function), function.__doc__.split("Args:")[1]
    for argument in inspect.signature(function).parameters:
        assert argument in types
        assert argument in documented or "The others are as for `train`" in documented


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Folder of three pictures, the second of which cannot be read."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("RGB", (50, 30), "red").save(folder / "a.png")
    (folder / "b.png").write_bytes(b"not a picture")
    Image.linear_gradient("L").rotate(90).save(folder / "c.png")
    return folder


def test_evaluate_agrees_with_the_cli(here: Here, small_run: Path) -> None:
    done = here("evaluate", small_run, "--tta", 1, "--json")
    assert done.returncode == 0, done.stderr
    found = sprat.evaluate(small_run, tta=1, quiet=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(found))
    assert (found["split"], found["tta_views"]) == ("val", 1)


def test_predict_agrees_with_the_cli(here: Here, small_run: Path, pictures: Path) -> None:
    done = here("predict", small_run, pictures, "--top", 2, "--tta", 2, "--json")
    assert done.returncode == 2
    heard: list[Any] = []
    found = sprat.predict(pictures, model=small_run, top=2, tta=2, quiet=True, each=heard.append)
    assert heard == found
    assert [Path(prediction["file"]).name for prediction in found] == ["a.png", "b.png", "c.png"]
    assert json.loads(done.stdout) == [found[0], found[2]]
    assert found[1]["predictions"] == []
    assert found[1]["error"] in done.stderr
    named_first = sprat.predict(small_run, [pictures], top=2, tta=2, quiet=True)
    assert named_first == found
    assert sprat.predict(pictures, model=small_run, top=2, quiet=True) != found, (
        "views are averaged"
    )


def test_predict_agrees_with_the_classifier(small_run: Path, pictures: Path) -> None:
    labels, probabilities = sprat.load(small_run)(pictures / "c.png", tta=6)
    (found,) = sprat.predict(pictures / "c.png", model=small_run, top=99, tta=6, quiet=True)
    assert [guess["class"] for guess in found["predictions"]][:1] == labels
    assert list(sprat.load(small_run).predict(pictures / "c.png", top=99, tta=6)) == [found]
    top = [guess["probability"] for guess in found["predictions"]]
    assert top == pytest.approx(sorted(probabilities[0].tolist(), reverse=True), abs=1e-6)


def test_compare_agrees_with_the_cli(here: Here, small_run: Path, tmp_path: Path) -> None:
    done = here("compare", small_run, "--no-published", "--json")
    (entry,) = sprat.compare(small_run, published=False)
    (shown,) = json.loads(done.stdout)
    assert shown.pop("front") is False, "measured on val, not test"
    assert shown == json.loads(json.dumps(entry.to_dict()))


def test_report_agrees_with_the_cli(here: Here, small_run: Path, tmp_path: Path) -> None:
    done = here("report", small_run, "--output", tmp_path / "command.html")
    assert done.returncode == 0, done.stderr
    page = sprat.report(small_run, output=tmp_path / "python.html", quiet=True)
    assert page == tmp_path / "python.html"
    assert page.read_bytes() == (tmp_path / "command.html").read_bytes()


def test_export_agrees_with_the_cli(here: Here, small_run: Path, tmp_path: Path) -> None:
    words = ("--format", "pth", "--output", tmp_path / "command.pth", "--json")
    done = here("export", small_run, *words)
    assert done.returncode == 0, done.stderr
    exported = sprat.export(small_run, format="pth", output=tmp_path / "python.pth", quiet=True)
    assert exported.path == tmp_path / "python.pth"
    assert exported.path.read_bytes() == (tmp_path / "command.pth").read_bytes()
    shown, values = json.loads(done.stdout), json.loads(json.dumps(_plain(exported)))
    for said in (shown, values):
        del said["path"]
        for contender in said["contenders"]:
            del contender["ms_for_one_image"]
    assert shown == values
    assert (exported.split, exported.dataset) == ("val", "shapes10")


def _plain(exported: Any) -> dict[str, Any]:
    return dataclasses.asdict(exported) | {"path": str(exported.path)}


def test_documented_script_runs(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(small_run, tmp_path / "runs" / "my-run")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "picture.jpg")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how-to" / "read-a-run.md").read_text()
    names: dict[str, Any] = {}
    exec(page.split("```python\n")[1].split("```")[0], names)
    assert names["page"].read_text().startswith("<!doctype html>")
    assert names["evaluation"]["split"] == "val"
    assert [entry.split for entry in names["entries"]] == ["val"]
    assert len(names["predictions"][0]["predictions"]) == 3


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of own pictures in two classes that differ in brightness, next to a recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index in range(48):
        picture = tmp_path / "own" / ("dark", "light")[index % 2] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (16, 16), 40 + index + 100 * (index % 2)).save(picture)
    (tmp_path / "mine.toml").write_text(
        "epochs = 4\nbatch_size = 16\ntta = 1\nmodel = 'SpratT'\n[pictures]\nside = 16\n"
        "[optim]\nwarmup_epochs = 2.0\n"
    )
    return tmp_path / "own"


CHANGES = {"epochs": 2, "optim.lr": 0.1, "device": "cpu", "threads": 1, "kernels": "torch"}
WORDS = [
    *("--epochs", 2, "--optim.lr", 0.1, "--device", "cpu"),
    *("--threads", 1, "--kernels", "torch", "--quiet"),
]


def test_train_and_resume_agree_with_the_cli(here: Here, own: Path) -> None:
    words = ["--recipe", "mine.toml", "--dataset", own, *WORDS]
    done = here("train", *words, "--output", "command")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    run = sprat.train("mine.toml", CHANGES, dataset=own, output="python", quiet=True)
    assert weights(run.folder) == weights(Path("command"))
    assert _settled(run.results) == _settled(_read("command/results.json"))
    assert run.results["overrides"] == {"epochs": 2, "optim.lr": 0.1}
    assert _read("command/config.json") == _read("python/config.json")
    assert here("train", "--resume", "python").returncode == 0
    assert sprat.resume("command", quiet=True).results["val"] == run.results["val"]

    done = here("train", *words, "--seeds", 2, "--seed", 5, "--output", "seeds-command")
    assert done.returncode == 0, done.stderr
    heard: list[sprat.Run] = []
    found = sprat.train_seeds(
        "mine.toml", CHANGES | {"seed": 5}, seeds=2, dataset=own, output="seeds", quiet=True,
        ended=heard.append,
    )  # fmt: skip
    assert [each.folder.name for each in heard] == ["seed-5", "seed-6"]
    assert found.summary["top1"] == _read("seeds-command/summary.json")["top1"]
    assert found.summary == _read("seeds/summary.json")
    for seed in ("seed-5", "seed-6"):
        assert weights(found.folder / seed) == weights(Path("seeds-command") / seed)


def _read(path: str) -> Any:
    return json.loads(Path(path).read_text())


def _settled(results: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in results.items() if key not in MEASURED}


def test_a_recipe_is_parsed_once(here: Here, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    loads = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: parsed.append(text) or loads(text))
    here("train", "--recipe", "mine.toml", "--dataset", own, *WORDS, "--output", "once")
    assert parsed.count(Path("mine.toml").read_text()) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sprat.load("nosuch"), "There is no model at nosuch"),
        (lambda: sprat.load("SpratS", device="gpu"), "device 'gpu' is not available"),
        (lambda: sprat.evaluate("nosuch"), "There is no model at nosuch"),
        (
            lambda: sprat.evaluate("SpratS", split="tset"),
            "split is 'tset', expected auto, val, test",
        ),  # type: ignore[arg-type]
        (lambda: sprat.evaluate("SpratS", split="val"), "SpratS has no val"),
        (lambda: sprat.evaluate("SpratS", tta=3), "tta is 3, expected"),
        (lambda: sprat.evaluate("SpratS", dataset="nosuch"), "nosuch"),
        (lambda: sprat.evaluate("SpratS", threads=-1), "threads is -1"),
        (lambda: sprat.predict(), "No picture is given"),
        (lambda: sprat.predict([]), "No picture is given"),
        (lambda: sprat.predict("SpratS"), "No picture is given"),
        (lambda: sprat.predict("nosuch.png"), "There is no file or folder nosuch.png"),
        (lambda: sprat.predict("Sprat-X"), "did you mean 'Sprat"),
        (lambda: sprat.predict("nosuch.png", model="SpratS"), "There is no file or folder nosuch"),
        (lambda: sprat.predict("nosuch.png", top=0), "top is 0"),
        (lambda: sprat.predict("nosuch.png", tta=4), "tta is 4"),
        (lambda: sprat.export("SpratS", format="tflite"), "tflite"),  # type: ignore[arg-type]
        (lambda: sprat.export("SpratS", format="pth", output="x.onnx"), "ends in .pth"),
        (lambda: sprat.report("nosuch"), "no folder nosuch"),
        (lambda: sprat.check_data("nosuch"), "Unknown dataset 'nosuch'"),
        (lambda: sprat.check_data("shapes10", output="x.png"), "ends in .html"),
        (lambda: sprat.compare(published=False), "nothing to compare"),
        (lambda: sprat.compare("nosuch"), "nosuch"),
        (lambda: sprat.compare(output="x.jpg"), "ends in .png"),
        (lambda: sprat.train("nosuch"), "Unknown recipe 'nosuch'"),
        (lambda: sprat.train(dataset="nosuch"), "nosuch"),
        (lambda: sprat.train(time="5"), "time is '5'"),
        (
            lambda: sprat.train(changes={"epochs": 2}, time="5m"),
            "--time determines the number of epochs",
        ),
        (lambda: sprat.train_seeds(seeds=0), "seeds is 0, expected 1 to"),
        (lambda: sprat.resume("nosuch"), "no nosuch/config.json"),
    ],
)
def test_mistake_raises_and_leaves_no_files(
    call: Callable[[], object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpratError, match=message):
        call()
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"
