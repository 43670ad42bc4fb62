"""Tests of the pages: links work, and generated parts and pictures are up to date."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from pages import PAGES, ROOT, commands
from PIL import Image

from sprat.zoo import cards


def test_readme_and_how_to_pages_contain_commands() -> None:
    for page in PAGES:
        if page.parent.name != "explanation":
            assert any("sprat " in command for command in commands(page)), page


def test_links_point_to_existing_files() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, pages = set(), [ROOT / "README.md"]
    while pages:
        page = pages.pop()
        if page not in reached:
            reached.add(page)
            links = re.findall(r"\]\(([\w/.-]+\.md)", page.read_text())
            pages += [(page.parent / link).resolve() for link in links]
    assert {*(ROOT / "docs").rglob("*.md")} <= reached


def test_pictures_are_small_and_listed_in_the_script() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.parent / link).resolve().relative_to(ROOT)
        for page in pages
        for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    }
    drawn = set(map(Path, runpy.run_path(str(ROOT / "docs" / "pictures.py"))["PICTURES"]))
    assert {path for path in shown if path.name != "curves.png"} == drawn
    assert {*(ROOT / "docs" / "images").iterdir()} <= {ROOT / path for path in drawn}
    for path in shown:
        assert (ROOT / path).stat().st_size < 200_000, path


def test_pictures_agree_with_cards_and_pages() -> None:
    def text(name: str) -> str:
        with Image.open(ROOT / name) as image:
            return image.text["Description"]

    shipped = {card["name"]: f"{100 * card['test']['top1']:.2f} %" for card in cards()}
    for name in ("serve", "serve-phone", "report"):
        words = text(f"docs/images/{name}.png")
        models = [model for model in shipped if model in words.split()]
        assert models, f"run python docs/pictures.py: {name}.png shows no shipped model"
        assert shipped[models[0]] in words, (
            f"run python docs/pictures.py: {name}.png is out of date"
        )
    assert text("docs/images/explain.png").split(":")[0] in shipped
    page = (ROOT / "docs" / "explanation" / "receptive-field.md").read_text()
    assert f"the effective field is {text('results/effective-field.png')}" in page


def test_reference_pages_are_up_to_date(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = str(ROOT / "docs" / "generate.py")
    monkeypatch.setattr(sys, "argv", [script, str(tmp_path)])
    runpy.run_path(script, run_name="__main__")
    written = ROOT / "docs" / "reference"
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in written.iterdir()}
    for page in tmp_path.iterdir():
        said = (written / page.name).read_text()
        assert said == page.read_text(), f"run python docs/generate.py: {page.name} is out of date"


def test_microcontroller_page_omits_figures_of_changed_models(tmp_path: Path) -> None:
    first, second, *_ = cards()
    found = {
        "images": 10_000, "other_scores": 0, "top1_fp32": 0.92345, "top1_int8": 0.92,
        "worst_class": "cat", "worst_class_drop": 0.011,
    }  # fmt: skip
    models = {
        first["name"]: found | {"sha256": first["sha256"]},
        second["name"]: found | {"sha256": "of another file"},
    }
    exact = {"compiler": "gcc 1", "flags": "-O2", "models": models}
    (tmp_path / "microcontroller.json").write_text(json.dumps(exact))
    ways = {"c-1": {"ms_for_one_image": 1.234}, "onnx-int8-1": {"ms_for_one_image": 2}}
    fast = {
        "model": "ResNet8", "measured": ways, "others": {"ResNet20": {"onnx-1": {}}},
        "machine": {"cpu": "abacus"},
    }  # fmt: skip
    (tmp_path / "inference.json").write_text(json.dumps(fast))
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["microcontroller"](tmp_path)
    assert f"| {first['name']} | 10,000 | 0 | 92.34 % | 92.00 % | cat, 1.10 |" in page
    assert f"| {second['name']} | — | — | — | — | — |" in page
    assert "gcc 1 with `-O2`" in page
    assert "one thread of an abacus" in page
    assert page.endswith("| ResNet8 | 1.23 | 2.00 |\n")


def test_generator_writes_the_head_start_figures(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "own-pictures.md").read_text()
    head_start = runpy.run_path(str(ROOT / "docs" / "generate.py"))["head_start"]
    assert head_start(page) == page, "run python docs/generate.py: own-pictures.md is out of date"
    assert "Not measured yet" in head_start(page, tmp_path)

    def size(images: int, ahead: float) -> dict[str, object]:
        spread = {"mean": 0.5, "std": 0.01, "seconds": 9.6}
        arms = ("from scratch", "from scratch, longer")
        return {
            "images_a_class": images, "steps": 360,
            "measured": dict.fromkeys(("head start", *arms), spread),
            "head_start_ahead_of": {
                arm: {"mean": ahead, "standard_error": 0.01} for arm in arms
            },
        }  # fmt: skip

    figures = {
        "model": "SpratT", "recipe": "fine-tune", "seeds": 3, "longer": 2, "test_images": 5_000,
        "given_classes": ["bird"], "held_out_classes": ["cat"], "scratch": {"high rates": {}},
        "sizes": [size(20, 0.1), size(100, 0.04), size(500, -0.1)],
    }  # fmt: skip
    (tmp_path / "head_start.json").write_text(json.dumps(figures))
    written = " ".join(head_start(page, tmp_path).split())
    assert "| 20 | 360 | 10 and 10 | 50.00 ± 1.00 % | 50.00 ± 1.00 % (+10.00 ± 1.00) |" in written
    assert (
        "the head start is clearly ahead with 20 images per class; not clearly ahead or " in written
    )
    assert "behind with 100 images per class; clearly behind with 500 images per class." in written


def test_generator_writes_the_search_figures(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "how-to" / "search.md").read_text()
    search = runpy.run_path(str(ROOT / "docs" / "generate.py"))["search"]
    assert search(page) == page, "run python docs/generate.py: search.md is out of date"
    assert "Not measured yet" in search(page, tmp_path)
    about = {
        "minutes": 90.0, "limits": {"max_parameters": 40_726, "max_macs": 17_280_776},
        "machine": {"cpu": "abacus", "threads": 2}, "recipe": "sprat-cpu",
    }  # fmt: skip
    network = {"parameters": 40_000, "macs": 17_000_000, "epochs": 24, "test_top1": 0.9}
    found = about | {
        "trained": 60, "refused": 3, "trial_images": 10_000, "difference": 0.01,
        "standard_error": 0.004, "standard_errors": 2.5,
        "trained_networks": {"found": network, "SpratS": network | {"test_top1": 0.89}},
    }  # fmt: skip
    ways = {
        way: [{"seed": seed, "val_top1": val + seed / 100, "trained": 20} for seed in range(3)]
        for way, val in (("halving", 0.8), ("random", 0.78))
    }
    halving = about | {"epochs": 8, "ways": ways}

    def written(**parts: object) -> str:
        (tmp_path / "search.json").write_text(json.dumps(parts))
        return " ".join(search(page, tmp_path).split())

    both = written(find=found, halving=halving)
    assert "| found | 40,000 | 17,000,000 | 90.00 % | | SpratS | 40,000 |" in both
    assert "+1.00 ± 0.40 points" in both
    assert "the network found is more accurate." in both
    assert "| 1 | 81.00 % | 20 | 79.00 % | 20 |" in both
    assert "halving is +2.00 ± 0.00 points" in both
    assert "paired by seed): it is clearly ahead." in both
    alone = written(find=found | {"difference": -0.004, "standard_errors": -1.0})
    assert "-0.40 ± 0.40 points" in alone
    assert "on these images, neither network is clearly more accurate." in alone
    assert "halving with TPE" not in alone


def test_generator_writes_the_scaling_figures(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "explanation" / "scale.md").read_text()
    scale = runpy.run_path(str(ROOT / "docs" / "generate.py"))["scale"]
    assert scale(page) == page, "run python docs/generate.py: scale.md is out of date"
    assert "Not measured yet" in scale(page, tmp_path)
    way = {
        "trials_per_hour": 1234.5, "start_seconds": 2.25, "task_ms": 7.0, "training_seconds": 42.0,
    }  # fmt: skip
    figures = {
        "measured": {"this process": way, "Ray, 1 core": way}, "images": 1_000, "rungs": [2, 6, 18],
        "generation": 9, "cores": 2, "machine": {"cpu": "abacus"},
        "asking": [{"trials": 9, "seconds_a_trial": 0.01}, {"trials": 90, "seconds_a_trial": 0.05}],
    }  # fmt: skip
    (tmp_path / "scale.json").write_text(json.dumps(figures))
    written = scale(page, tmp_path)
    assert "| Ray, 1 core | 1,234 | 2.2 s | 7.0 ms |" in written
    assert "10 ms after 9 trials and 50 ms after 90" in written
    # 18 + 12 + 12 epochs of 1,000 images in 42 s, so 10 s for an epoch of a trial's 10,000
    assert "One core trained at 1,000 images/s" in written
    seconds = 9 * 0.05 + 5 * 20.007 + 2 * 40.007 + 120.007
    assert (
        f"| two cores | 2 | 9 | {3600 * 9 / seconds:.0f} | {100 * 420 / 2 / seconds:.0f} % |"
        in written
    )
