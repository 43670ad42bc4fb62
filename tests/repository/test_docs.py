"""The pages: they point to what is there, and the reference is what the code says."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, commands


def test_the_readme_and_every_how_to_tell_what_to_type() -> None:
    for page in PAGES:
        if page.parent.name != "explanation":
            assert any(command.startswith("sprat ") for command in commands(page)), page


def test_pages_point_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    readme = PAGES[0].read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f"({page.relative_to(ROOT)})" in readme, page


def test_the_reference_is_what_the_code_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(ROOT / "docs" / "generate.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    written = ROOT / "docs" / "reference"
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in written.iterdir()}
    for page in tmp_path.iterdir():
        said = (written / page.name).read_text()
        assert said == page.read_text(), f"run python docs/generate.py: {page.name} is out of date"
