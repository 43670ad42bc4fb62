"""The house: imports go down its floors, and sideways only where the table says so."""

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

FLOORS = {
    "cli": 4, "api": 3, "display": 3, "serve": 3,
    "training": 2, "classifier": 2, "ship": 2,
    "reporting": 2, "deploy": 2,
    # within floor 1 to the left only: records <- data, ... <- evaluation <- figures
    "evaluation.records": 0.5, "checkpoint": 1, "run_folder": 1, "zoo": 1,
    "evaluation": 1.5, "figures": 1.6,
    "settings": 0.2, "data": 0.1, "runtime": 0, "models": 0, "augment": 0, "budget": 0,
    "optim": 0, "kernels": 0, "inference": 0,
    "names": -1, "threads": -1, "files": -1, "readers": -1, "shapes": -1,
    "settings.field": -1, "deferred": -2, "errors": -2, "text": -3, "option": -3,
}  # fmt: skip
SIDEWAYS = {
    ("api", "display"),
    ("ship", "deploy"),
    ("ship", "training"),
    ("inference", "kernels"),
    ("kernels", "models"),
    ("kernels", "runtime"),
    ("optim", "runtime"),
    ("augment", "optim"),  # whose ramps it chooses from
}
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.parent != SOURCE or p.stem[:2] != "__")


def _room(path: Path) -> str:
    return _room_of([part.removesuffix(".py") for part in path.relative_to(SOURCE).parts])


def _room_of(parts: list[str]) -> str:
    """A room of its own within another has its own floor."""
    within = ".".join(parts[:2])
    return within if within in FLOORS else parts[0]


def _imports(path: Path) -> set[str]:
    """Rooms of sprat that a file imports anywhere, inside functions too."""
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
        down = FLOORS[other] < FLOORS[room]
        assert down or (room, other) in SIDEWAYS, f"{room} imports {other}"


def test_networks_augmentation_and_budgets_take_numbers_not_the_config() -> None:
    for path in MODULES:
        if _room(path) in ("models", "augment", "budget"):
            assert "settings" not in _imports(path), path


def test_pins_meet_the_floors_and_each_is_in_the_list_of_what_was_checked() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if not line.startswith("#")
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *itertools.chain(*project["optional-dependencies"].values()),
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


def test_nothing_imports_what_sprat_does_without() -> None:
    for path in MODULES:
        text = path.read_text()
        for name in ("torchvision", "timm", "lightning"):
            assert f"import {name}" not in text
            assert f"from {name}" not in text


def test_albumentations_is_imported_in_one_place_alone() -> None:
    found = [p.name for p in MODULES if "import albumentations" in p.read_text()]
    assert found == ["reference.py"]
