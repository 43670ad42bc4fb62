"""Tests of sprat's Python interface."""

import json
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL
from PIL import Image

import sprat
from sprat import SpratError
from sprat.data import Dataset

ROOT = Path(__file__).parents[2]


def test_script_trains_and_uses_a_model(small: Dataset, tmp_path: Path) -> None:
    run = sprat.train(
        SMALL, {"epochs": 2, "optim.lr": 0.05}, dataset=small, output=tmp_path / "run", quiet=True
    )
    assert run.folder == tmp_path / "run"
    assert run.results == json.loads((run.folder / "results.json").read_text())
    assert run.results["overrides"] == {"epochs": 2, "optim.lr": 0.05}
    assert run.results["recipe"] == "custom"
    assert (run.folder / "curves.png").exists()
    labels, _ = sprat.load(run.folder)(small.test.images[:])
    right = torch.tensor([small.test.classes.index(label) for label in labels])
    assert (right == small.test.targets).float().mean() > 0.1
    assert sprat.resume(run.folder, dataset=small, quiet=True) == run


def test_train_accepts_recipe_and_dataset_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    changes = {"epochs": 1, "train_images": 200, "optim.warmup_epochs": 0.5}
    run = sprat.train("quick", changes, dataset="shapes10")
    assert run.folder.parent == Path("runs")
    assert run.folder.name.startswith("quick-seed0-")
    assert run.results["recipe"] == "quick"
    assert run.results["overrides"] == changes
    assert "1 epochs of" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["as a change", "as code"])
def test_own_code_file_is_reloaded_in_each_call(tiny: Dataset, tmp_path: Path, named: str) -> None:
    """Check that edits between calls take effect, as in a notebook."""
    file = tmp_path / "mine.py"
    network = {"model": f"{file}:Net"}
    config = SMALL.changed(network) if named == "as code" else SMALL
    how = {"code": file} if named == "as code" else {"changes": network}
    sizes = []
    for width in (3, 5):
        file.write_text(
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    def __init__(self, num_classes):\n"
            f"        super().__init__(nn.Conv2d(3, {width}, 3), nn.AdaptiveAvgPool2d(1),\n"
            f"                         nn.Flatten(), nn.Linear({width}, num_classes))\n"
        )
        output = tmp_path / str(width)
        run = sprat.train(config, dataset=tiny, output=output, quiet=True, **how)  # type: ignore[arg-type]
        sizes.append(run.results["parameters"])
    assert sizes == [3 * 28 + 4 * 10, 5 * 28 + 6 * 10]


def test_interrupted_run_resumes_with_same_results(small: Dataset, tmp_path: Path) -> None:
    whole = sprat.train(SMALL, dataset=small, output=tmp_path / "whole", quiet=True)
    stopping = tmp_path / "stopping"
    from sprat.training.run import Interrupted
    from sprat.training.start import train

    asked = iter([False] * 15 + [True])
    with pytest.raises(Interrupted):
        train(SMALL, small, stopping, recipe="custom", should_stop=lambda: next(asked))
    run = sprat.resume(stopping, dataset=small, quiet=True)
    assert run.results["val"] == whole.results["val"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epocks": 2}, "Unknown setting 'epocks'; did you mean 'epochs'"),
        ({"optim.rl": 2.0}, "Unknown setting 'optim.rl'; did you mean 'optim.lr'"),
        ({"optim": 2.0}, "Unknown setting 'optim'"),
        ({"epochs": "two"}, "epochs is 'two', expected a whole number"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_wrong_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(SpratError, match=message):
        sprat.train("quick", changes, dataset="shapes10")


def test_import_does_not_load_heavy_packages() -> None:
    code = "import sys, sprat; assert not {'torch', 'rich', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_exists_and_is_documented() -> None:
    for name in sprat.__all__:
        assert getattr(sprat, name).__doc__
        assert name in dir(sprat)
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        sprat.lode  # type: ignore[attr-defined]  # noqa: B018


def test_the_readmes_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Run it as it stands, except for the length of the run and the data."""
    section = (ROOT / "README.md").read_text().split("## From Python")[1]
    script = section.split("```python\n")[1].split("```")[0]
    for name in ("cat.jpg", "dog.png"):
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    shorter = '{"epochs": 1, "train_images": 100, "optim.warmup_epochs": 0.5, "optim.lr": 0.2}'
    for written, meant in (
        ('{"epochs": 12, "optim.lr": 0.2}', shorter),
        ("cifar10", "shapes10"),
    ):
        assert written in script
        script = script.replace(written, meant)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(script, names)
    assert str(names["run"].results["val"]["top1"]) in capsys.readouterr().out
    assert len(names["labels"]) == 1


def test_package_includes_py_typed() -> None:
    assert resources.files("sprat").joinpath("py.typed").is_file()
