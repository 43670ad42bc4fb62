"""Tests of the package as a house: imports only go down its floors, without exception."""

import ast
import itertools
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import sprat

SOURCE = Path(sprat.__file__).parent
ROOT = SOURCE.parents[1]

# One storey per line, from the roof down; a room imports only from storeys below its own.
HOUSE = (
    # what a person types and sees
    {"cli"},
    {"api", "ship"},
    {"serve", "display", "reporting", "tensorboard"},
    # activities, each made of the parts below
    {"deploy", "searching"},
    {"training", "classifier", "figures", "foreign", "run_list"},
    # parts: trained models, their measurements, images, kernels
    {"checkpoint", "run_folder", "zoo"},
    {"evaluation", "model_file"},
    {"settings", "pools"},  # all tables of settings, each declared in its own room
    {"data", "inference"},
    {"kernels", "augment"},
    # plain numbers and tensors
    {"models", "budget", "optim", "distributed"},
    # foundations
    {"runtime", "files", "names", "settings.field", "readers"},
    {"shapes", "threads", "deferred"},
    {"errors"},
    {"text", "option"},
    {"torchrun"},
)
FLOORS = {room: -storey for storey, rooms in enumerate(HOUSE) for room in rooms}
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem[:2] != "__")


def _room(path: Path) -> str:
    return _room_of([part.removesuffix(".py") for part in path.relative_to(SOURCE).parts])


def _room_of(parts: list[str]) -> str:
    """Return a module's room, which may be a room within another."""
    within = ".".join(parts[:2])
    return within if within in FLOORS else parts[0]


def _imports(path: Path) -> set[str]:
    """Return the rooms of sprat that a file imports, also inside functions."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    rooms = {_room_of(name.split(".")[1:]) for name in names if name.startswith("sprat.")}
    return rooms - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    room = _room(path)
    for other in _imports(path) - {room}:
        assert FLOORS[other] < FLOORS[room], f"{room} imports {other}"


def test_networks_augmentation_and_budgets_do_not_import_settings() -> None:
    for path in MODULES:
        if _room(path) in ("models", "augment", "budget"):
            assert "settings" not in _imports(path), path


def test_pins_satisfy_requirements_and_are_listed() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
        *itertools.chain(*settings["dependency-groups"].values()),
    ]
    by_name = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in map(Requirement, wanted):
        if requirement.name != "sprat":
            assert by_name[canonicalize_name(requirement.name)] in requirement.specifier, (
                requirement
            )
    rows = re.findall(
        r"^\| ([\w.-]+) \| (\d[\w.]*) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M
    )
    assert dict(rows) == pins


def test_all_includes_every_extra_without_development_tools() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.extras == extras.keys() - {"all"}
    published = itertools.chain(project["dependencies"], *extras.values())
    assert not {"pytest", "ruff", "mypy"} & {Requirement(each).name for each in published}


def test_unwanted_packages_are_not_imported() -> None:
    for path in MODULES:
        text = path.read_text()
        for name in ("torchvision", "timm", "lightning"):
            assert f"import {name}" not in text
            assert f"from {name}" not in text


def test_albumentations_is_imported_in_one_file() -> None:
    found = [p.name for p in MODULES if "import albumentations" in p.read_text()]
    assert found == ["reference.py"]


def test_training_code_stays_short() -> None:
    """Check that files and functions are short and that a run has few attributes."""
    functions, attributes = {}, {}
    for path in (SOURCE / "training").glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions[node.name] = (node.end_lineno or 0) - node.lineno + 1
            if isinstance(node, ast.ClassDef):
                attributes[node.name] = {
                    place.attr
                    for place in ast.walk(node)
                    if isinstance(place, ast.Attribute)
                    and isinstance(place.ctx, ast.Store)
                    and isinstance(place.value, ast.Name)
                    and place.value.id == "self"
                }
    too_long = {name: lines for name, lines in functions.items() if lines > 60}
    assert too_long.keys() <= {"finish"}  # mostly the entries of results.json
    assert len(attributes["Run"]) <= 12
    assert len(attributes["Step"]) > 5  # attributes are found at all
