"""Tests of the package, built, checked and installed into an environment of its own."""

import os
import re
import subprocess
import sys
import tomllib
import urllib.request
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "sprat"
MOST_BYTES = 1_600_000  # largest size of the wheel


def _run(*words: object, cwd: Path = ROOT) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [*map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a source distribution and the wheel built from it."""
    folder = tmp_path_factory.mktemp("built")
    _run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of programs of an environment with the wheel; dependencies are borrowed from here."""
    place = tmp_path_factory.mktemp("environment") / "venv"
    _run(sys.executable, "-m", "venv", "--without-pip", place)
    scripts = place / "bin"
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    _run(*pip, "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel)
    (site,) = place.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text(str(Path(torch.__file__).parents[1]))
    return scripts


def test_wheel_contains_all_package_files_but_curves(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("sprat/")}
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    wanted = {path.relative_to(PACKAGE.parent).as_posix() for path in files}
    assert held == {name for name in wanted if not name.endswith("/curves.png")}
    assert held < wanted
    assert wheel.stat().st_size < MOST_BYTES


def test_package_metadata_is_valid(built: Path, wheel: Path) -> None:
    packages = sorted(built.iterdir())
    assert len(packages) == 2
    _run(sys.executable, "-m", "twine", "check", "--strict", *packages)
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = message_from_bytes(archive.read(path))
    assert "Project-URL" not in metadata, "nothing is published anywhere"
    assert "Home-page" not in metadata
    assert "Programming Language :: Python :: 3.11" in metadata.get_all("Classifier", [])
    assert "dev" not in metadata.get_all("Provides-Extra", [])
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {metadata['Version']}\n" in citation
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [each["name"] for each in project["authors"]] == ["The sprat developers"]
    assert "  - name: The sprat developers\n" in citation


def test_installed_wheel_trains_predicts_exports_and_serves(
    installed: Path, tmp_path: Path
) -> None:
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
    assert _run(sprat, "predict", "run", "sky.png", cwd=tmp_path).count("%") == 3
    # barely trained, so int8 may lose accuracy
    any_drop = ("--max-drop", "100", "--max-class-drop", "100")
    _run(sprat, "export", "run", "--format", "c", "--output", "in_c", *any_drop, cwd=tmp_path)
    assert {path.suffix for path in (tmp_path / "in_c").iterdir()} >= {".c", ".h"}
    _answers(sprat, tmp_path)


def _answers(sprat: Path, folder: Path) -> None:
    """Serve the run in a folder, request health and page, and stop the server."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    server = subprocess.Popen(
        [str(sprat), "serve", "run", "--port", "0"],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with server:
        try:
            assert server.stderr is not None
            said = server.stderr.readline()
            found = re.search(r"http://127.0.0.1:\d+/", said)
            assert found, said
            directly = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            for page in ("healthz", ""):
                with directly.open(found[0] + page, timeout=60) as answer:
                    assert answer.status == 200
            server.terminate()
            assert server.wait(timeout=60) == 0
        finally:
            server.kill()
