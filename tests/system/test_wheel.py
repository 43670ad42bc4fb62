"""The wheel, built and installed into an environment of its own, is the whole package."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sprat"


def _run(*words: object, cwd: Path = ROOT) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT)
    (built,) = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment that holds the wheel; torch and the like are borrowed."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", place)
    scripts = place / "bin"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]))
    return scripts


def test_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("sprat/")}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert held == {path.relative_to(PACKAGE.parent).as_posix() for path in files}


def test_trains_and_predicts_by_itself(installed: Path, tmp_path: Path) -> None:
    where = "import sprat; print(sprat.__file__)"
    assert str(installed.parent) in _run(installed / "python", "-c", where, cwd=tmp_path)
    sprat = installed / "sprat"
    assert "train" in _run(sprat, "--help", cwd=tmp_path)
    assert "SpratM" in _run(sprat, "models", cwd=tmp_path)
    Image.new("RGB", (40, 50), "skyblue").save(tmp_path / "sky.png")
    assert _run(sprat, "predict", "sky.png", cwd=tmp_path).count("%") == 3
    few = ("--train-images", "128", "--epochs", "1", "--optim.warmup-epochs", "0")
    words = ("--recipe", "quick", "--dataset", "shapes10", "--device", "cpu", "--output", "run")
    _run(sprat, "train", *words, *few, cwd=tmp_path)
    assert _run(sprat, "report", "run", cwd=tmp_path) == "run/report.html\n"
    assert (tmp_path / "run" / "curves.png").exists()
