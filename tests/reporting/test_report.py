"""Tests of a run's page: self-contained, well formed, and in agreement with the run's files."""

import base64
import dataclasses
import html
import io
import itertools
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Here
from markup import Page
from PIL import Image

import sprat
from sprat.budget import memory_plan, summarize
from sprat.cli import app
from sprat.data import Dataset
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError
from sprat.evaluation.explain import in_words
from sprat.evaluation.records import read_json, write_json
from sprat.figures.overlay import overlay
from sprat.models import NetworkConfig, draft_network
from sprat.reporting import MISTAKES, Answers, read_run, write_report
from sprat.run_folder import write_config
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides
from sprat.training.start import train

ATTACK = "<script>alert(1)</script>"


@pytest.fixture
def run(small_run: Path, tmp_path: Path) -> Path:
    """Copy of a finished run that was evaluated on val, to write into."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.fixture(scope="module")
def final_run(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished run that read the test set of a dataset that no longer exists."""
    gone = dataclasses.replace(small, md5="gone")
    config = dataclasses.replace(SMALL, final=True, epochs=2)
    folder = tmp_path_factory.mktemp("final") / "run"
    train(config, gone, folder, recipe="small")
    return folder


def _random_answers(classes: list[str], n: int = 60, side: int = 32) -> Answers:
    """Return answers made of noise: pictures, predictions and maps."""
    generator = torch.Generator().manual_seed(0)
    shape = (n, 3, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    targets = torch.randint(len(classes), (n,), generator=generator)
    logits = torch.randn(n, len(classes), generator=generator)

    def maps(pictures: torch.Tensor, labels: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        brightness = pictures[:, 0, ::8, ::8].float()
        return torch.tensor(labels), brightness * torch.tensor(labels)[:, None, None]

    return Answers(ImageSet(images, targets, tuple(classes)), logits.softmax(1), maps)


def _with_classes(run: Path, names: list[str]) -> None:
    """Change a run's results to other classes, with all images but one classified correctly."""
    results = read_json(run / "results.json")
    split = "test" if results["final"] else "val"
    confusion = np.eye(len(names), dtype=int) * 10
    confusion[0, 1] = 1
    shares = confusion.diagonal() / confusion.sum(1)
    results[split] |= {
        "per_class": dict(zip(names, shares.tolist(), strict=True)),
        "confusion": confusion.tolist(),
        "n": int(confusion.sum()),
    }
    write_json(run / "results.json", results)


@pytest.fixture(params=["val", "test"])
def page(request: pytest.FixtureRequest, tmp_path: Path, small_run: Path, final_run: Path) -> Page:
    """Page of a run that was evaluated on val or on test, with answers."""
    finished = read_run({"val": small_run, "test": final_run}[request.param])
    assert finished.split == request.param
    classes = list(finished.evaluation["per_class"])
    write_report(finished, tmp_path / "page.html", _random_answers(classes))
    return Page(tmp_path / "page.html")


class TestEveryPage:
    def test_has_no_external_resources_or_scripts(self, page: Page) -> None:
        tags = {tag for tag, _, _ in page.elements}
        assert not tags & {"script", "link", "iframe", "object", "embed", "base", "form", "a"}
        for tag, values, _ in page.elements:
            assert not any(name.startswith("on") for name in values), tag
            assert values.keys().isdisjoint({"href", "xlink:href", "srcset", "action"})
            assert values.get("src", "data:").startswith("data:")
        words = re.sub(r"base64,[\w+/=]*", "", page.source)
        assert not re.search(r"https?:|url\(|@import|//[a-z]", words)
        (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
        assert policy[0]["content"].startswith("default-src 'none'")

    def test_has_ordered_headings_and_accessible_labels(self, page: Page) -> None:
        levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(below - above <= 1 for above, below in itertools.pairwise(levels))
        assert all(values.get("scope") in ("row", "col") for values, _ in page.all("th"))
        pictures = [values for values, _ in page.all("img")]
        assert len(pictures) == 2 * MISTAKES
        assert all(len(values["alt"]) > 10 for values in pictures)
        charts = [values for values, _ in page.all("svg")]
        assert charts
        assert all(values.get("aria-label") or values.get("aria-hidden") for values in charts)
        assert next(page.all("html"))[0]["lang"] == "en"
        ids = [values["id"] for _, values, _ in page.elements if "id" in values]
        named = [values["aria-labelledby"] for _, values, _ in page.elements if
                 "aria-labelledby" in values]  # fmt: skip
        assert len(ids) == len(set(ids))
        assert named
        assert set(named) <= set(ids)

    def test_supports_dark_mode_narrow_screens_and_print(self, page: Page) -> None:
        for asked in ("prefers-color-scheme: dark", "max-width", "print"):
            assert f"@media ({asked}" in page.source or f"@media {asked}" in page.source
        assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in [
            values for values, _ in page.all("meta")
        ]

    def test_is_the_same_when_written_again(self, run: Path, tmp_path: Path) -> None:
        texts = []
        for name in ("one.html", "two.html"):
            write_report(read_run(run), tmp_path / name, "no answers")
            texts.append((tmp_path / name).read_text())
        assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["val", "test"])
def test_figures_match_the_runs_files(
    small_run: Path, final_run: Path, tmp_path: Path, kind: str
) -> None:
    run = {"val": small_run, "test": final_run}[kind]
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    page, results = Page(tmp_path / "page.html"), read_json(run / "results.json")
    evaluation = results[kind]
    assert next(page.all("p", **{"class": "figure"}))[1] == f"{100 * evaluation['top1']:.2f} %"
    low, high = (100 * share for share in evaluation["top1_ci95"])
    assert f"95 % interval {low:.2f} to {high:.2f} %, n = {evaluation['n']}" in page.text
    assert f"{100 * evaluation['tta_top1']:.2f} % as the mean of 2 views" in page.text
    assert f"calibration error is {100 * evaluation['ece']:.2f} %" in page.text
    assert ("read once" in page.text) is (kind == "test")
    assert ("held-out training images (val)" in page.text) is (kind == "val")
    assert "it says nothing about CIFAR-10" in page.text

    by_class, matrix, *_ = page.tables()
    names = list(evaluation["per_class"])
    assert [row[0] for row in by_class[1:]] == names
    for row, share, counts in zip(
        by_class[1:], evaluation["per_class"].values(), evaluation["confusion"], strict=True
    ):
        assert row[2] == f"{100 * share:.2f} %"
        assert row[4] == str(sum(counts))
    assert matrix[0] == ["", *names]
    assert [row[0] for row in matrix[1:]] == names
    assert [list(map(int, row[1:])) for row in matrix[1:]] == evaluation["confusion"]

    facts = dict(zip((t for _, t in page.all("dt")), (t for _, t in page.all("dd")), strict=True))
    assert facts["Parameters"] == f"{results['parameters']:,}"
    assert facts["Receptive field"] == f"{results['original_claims']['receptive_field']} px"
    (costs,) = [rows for rows in page.tables() if rows[0][0] == "stored as"]
    plan = memory_plan(draft_network(SMALL.network), 32)
    for row, sizes in (
        (costs[1], [4 * results["parameters"], 2 * results["parameters"], plan.weights]),
        (costs[2], [4 * plan.arena, 2 * plan.arena, plan.arena]),
    ):
        assert row[1:] == [f"{size / 1024:.1f} KiB" for size in sizes]
    assert facts["Arena in int8"] == costs[2][-1]
    for said in (
        results["dataset_md5"], results["machine"]["cpu"], results["versions"]["torch"]
    ):  # fmt: skip
        assert said in page.text


def test_the_worst_mistakes_are_the_most_confident_ones(run: Path, tmp_path: Path) -> None:
    finished = read_run(run)
    answers = _random_answers(list(finished.evaluation["per_class"]))
    write_report(finished, tmp_path / "page.html", answers)
    shown = [values for values, _ in Page(tmp_path / "page.html").all("img")]
    pictures, maps = shown[::2], shown[1::2]
    images, probabilities = answers.images, answers.probabilities
    wrong = [
        (max(row), place)
        for place, row in enumerate(probabilities.tolist())
        if row.index(max(row)) != images.targets[place]
    ]
    expected = [place for _, place in sorted(wrong, reverse=True)][:MISTAKES]
    assert callable(answers.maps)
    for values, map_values, place in zip(pictures, maps, expected, strict=True):
        assert torch.equal(_pixels(values), images.images[place])
        label = int(probabilities[place].argmax())
        (activation,) = answers.maps(images.images[place, None], [label])[1]
        assert torch.equal(_pixels(map_values), overlay(images.images[place], activation))
        assert map_values["alt"] == (
            f"Evidence for {images.classes[label]}: {in_words(activation)}"
        )
        truth = images.classes[images.targets[place]]
        answer = images.classes[probabilities[place].argmax()]
        assert values["alt"] == f"Image {place} of val: {truth}, predicted {answer}"


def _pixels(image: dict[str, str]) -> torch.Tensor:
    """Return the pixels of an image in the page: uint8, 3 x H x W."""
    data = base64.b64decode(image["src"].removeprefix("data:image/png;base64,"))
    return torch.tensor(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1)


def test_without_maps_it_says_why_and_shows_the_mistakes(run: Path, tmp_path: Path) -> None:
    finished = read_run(run)
    answers = _random_answers(list(finished.evaluation["per_class"]))
    without = dataclasses.replace(answers, maps="Flat has no <map>. Change its code.")
    write_report(finished, tmp_path / "page.html", without)
    page = Page(tmp_path / "page.html")
    assert len(list(page.all("img"))) == MISTAKES
    assert not any("Evidence" in values["alt"] for values, _ in page.all("img"))
    assert "evidence for each prediction: Flat has no <map>. Change its code." in page.text


def test_maps_of_large_pictures_are_small(run: Path, tmp_path: Path) -> None:
    finished = read_run(run)
    answers = _random_answers(list(finished.evaluation["per_class"]), side=96)
    write_report(finished, tmp_path / "page.html", answers)
    shown = [values for values, _ in Page(tmp_path / "page.html").all("img")]
    assert {_pixels(each).shape[-1] for each in shown[::2]} == {96}
    assert {_pixels(each).shape[-1] for each in shown[1::2]} == {64}


def test_without_a_mistake_it_says_so(run: Path, tmp_path: Path) -> None:
    finished = read_run(run)
    answers = _random_answers(list(finished.evaluation["per_class"]))
    targets = answers.probabilities.argmax(1)
    images = dataclasses.replace(answers.images, targets=targets)
    write_report(finished, tmp_path / "page.html", dataclasses.replace(answers, images=images))
    page = Page(tmp_path / "page.html")
    assert "every image was classified correctly" in page.text
    assert list(page.all("img")) == []


def test_the_table_of_confidence_counts_every_image(run: Path, tmp_path: Path) -> None:
    finished = read_run(run)
    answers = _random_answers(list(finished.evaluation["per_class"]), n=200)
    write_report(finished, tmp_path / "page.html", answers)
    page = Page(tmp_path / "page.html")
    (rows,) = [rows for rows in page.tables() if rows[0][0] == "confidence"]
    counts = [int(row[1]) for row in rows[1:]]
    hits = sum(n * float(row[3]) / 100 for n, row in zip(counts, rows[1:], strict=True))
    right = (answers.probabilities.argmax(1) == answers.images.targets).sum().item()
    assert sum(counts) == 200
    assert round(hits) == right
    assert f"one view: accuracy {right / 2:.2f} %" in page.text


def _rewrite_config(run: Path, config: Config, recipe: str, changes: dict[str, Any]) -> None:
    """Change a run as if it had begun with another config."""
    (run / "config.json").unlink()
    write_config(run, config, recipe, changes, {"md5": "0" * 32, "classes": []}, 1)


def test_text_from_data_is_escaped(run: Path, tmp_path: Path) -> None:
    names = [ATTACK, '" onload="alert(1)', "'><img src=x>", "{{ 7 * 7 }}", "&lt;", *"abcde"]
    _with_classes(run, names)
    config = read_run(run).config
    _rewrite_config(run, config, ATTACK, {"optim.lr": 0.1})
    results = read_json(run / "results.json")
    for key in ("cpu", "system"):
        results["machine"][key] = ATTACK
    results["dataset"] = ATTACK
    write_json(run / "results.json", results)
    for name, answers in (("seen", _random_answers(names)), ("unseen", f"no {ATTACK}")):
        path = tmp_path / f"{name}.html"
        write_report(read_run(run), path, answers)
        page = Page(path)
        assert list(page.all("script")) == []
        assert "<script" not in page.source
        assert not any("onload" in values for _, values, _ in page.elements)
        assert all("alt" in values for values, _ in page.all("img"))
        shown = [text for _, text in page.all("th", scope="row")]
        assert shown[: len(names)] == names


def test_page_stays_small_with_many_classes(run: Path, tmp_path: Path) -> None:
    """Try 100 classes and the largest pictures, made of noise, which does not compress."""
    names = [f"class number {n}" for n in range(100)]
    _with_classes(run, names)
    answers = _random_answers(names, side=128)
    path = tmp_path / "page.html"
    write_report(read_run(run), path, answers)
    assert path.stat().st_size < 1_000_000
    page = Page(path)
    assert 2 < len(list(page.all("img"))) < 2 * MISTAKES
    assert list(page.all("table", **{"class": "matrix"})) == []
    assert "a matrix of 100 classes would be too large" in page.text


def test_cost_follows_the_network_settings(run: Path, tmp_path: Path) -> None:
    network = NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,))
    config = dataclasses.replace(read_run(run).config, network=network)
    _rewrite_config(run, config, "quick", {})
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    page = Page(tmp_path / "page.html")
    facts = dict(zip((t for _, t in page.all("dt")), (t for _, t in page.all("dd")), strict=True))
    assert facts["MACs per image"] == f"{summarize(draft_network(network)).macs:,}"


def test_a_class_without_an_image_has_no_accuracy(run: Path, tmp_path: Path) -> None:
    results = read_json(run / "results.json")
    name = next(iter(results["val"]["per_class"]))
    results["val"]["per_class"][name] = None
    results["val"]["confusion"][0] = [0] * 10
    write_json(run / "results.json", results)
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    rows = next(Page(tmp_path / "page.html").tables())
    assert rows[1] == [name, "", "no image", "", "0"]


def test_command_of_an_old_run_keeps_its_warm_up(run: Path, tmp_path: Path) -> None:
    """Check a run from when --epochs changed no other setting and was recorded alone."""
    config = dataclasses.replace(load_recipe("quick"), epochs=12, dataset="shapes10")
    _rewrite_config(run, config, "quick", {"epochs": 12})
    write_json(run / "results.json", read_json(run / "results.json") | {"git": None})
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    *_, (_, command) = Page(tmp_path / "page.html").all("pre")
    _, bound, _ = app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["config"] == config


CHANGES = {"optim.lr": 0.4, "optim.nesterov": False, "augment.sides": [24, 32], "epochs": 12}


def test_command_reproduces_the_config_and_changes_are_marked(run: Path, tmp_path: Path) -> None:
    recipe = load_recipe("quick")
    config = recipe.changed(CHANGES)
    assert overrides(config, recipe) == CHANGES
    config = dataclasses.replace(
        config, dataset="shapes10", final=True, seed=7, device="cpu", kernels="torch", threads=3
    )
    _rewrite_config(run, config, "quick", CHANGES)
    write_json(run / "results.json", read_json(run / "results.json") | {"git": None})
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    page = Page(tmp_path / "page.html")
    (command,) = [text for _, text in page.all("pre")]
    words = shlex.split(command)
    assert words[:2] == ["sprat", "train"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["config"] == config
    assert [text for _, text in page.all("mark")] == ["marked", "12", "0.4", "false", "[24, 32]"]


def test_python_code_reproduces_the_config(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = read_json(run / "results.json")
    results["git"] = {"commit": "c0ffee", "dirty": True}
    write_json(run / "results.json", results)
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    page = Page(tmp_path / "page.html")
    (code,) = re.findall("<pre><code>(.*?)</code>", page.source, re.DOTALL)
    checkout, *program = html.unescape(code).splitlines()
    assert checkout == "git checkout c0ffee"
    given: list[Config] = []
    monkeypatch.setattr(sprat, "train", given.append)
    exec("\n".join(program))
    assert given == [read_run(run).config]
    assert "changes that are not in this commit" in page.text


def test_old_run_with_fewer_entries_is_shown(final_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(final_run, tmp_path / "run"))
    results = read_json(run / "results.json")
    for key in ("side", "train_per_class"):
        del results[key]
    for key in ("tta_views", "tta_p"):
        del results["test"][key]
    write_json(run / "results.json", results)
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    assert "as the mean of 2 views" in Page(tmp_path / "page.html").text


class TestCommand:
    def test_overwrites_the_report_in_the_runs_folder(self, here: Here, run: Path) -> None:
        (run / "report.html").write_text("the page of before")
        done = here("report", run, "--device", "cpu")
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == f"{run / 'report.html'}\n"
        page = Page(run / "report.html")
        assert len(list(page.all("img"))) == 2 * MISTAKES
        assert "Computed again for this page" in page.text

    def test_another_file_is_replaced_only_when_asked(self, here: Here, run: Path) -> None:
        (run / "model.safetensors").unlink()  # else it would predict
        other = run.parent / "other.html"
        other.write_text("mine")
        refused = here("report", run, "--output", other)
        assert refused.returncode == 2
        assert "--overwrite" in refused.stderr
        assert other.read_text() == "mine"
        assert here("report", run, "--output", other, "--overwrite").returncode == 0
        assert Page(other).text

    def test_missing_data_is_reported_with_the_reason(
        self, here: Here, final_run: Path, tmp_path: Path
    ) -> None:
        path = tmp_path / "page.html"
        done = here("report", final_run, "--output", path)
        assert done.returncode == 0
        assert "was trained on other images" in done.stderr
        page = Page(path)
        said = [text for _, text in page.all("p", **{"class": "absent"})]
        assert len(said) == 2
        assert all("was trained on other images" in text for text in said)
        assert list(page.all("img")) == []
        done = here("report", final_run, "--output", path, "--overwrite", "--dataset", "nowhere")
        assert done.returncode == 2
        assert "Unknown dataset 'nowhere'" in done.stderr

    def test_missing_model_is_reported(self, here: Here, run: Path) -> None:
        (run / "model.safetensors").unlink()
        done = here("report", run)
        assert done.returncode == 0
        assert "There is no model at" in done.stderr
        assert "There is no model at" in Page(run / "report.html").text

    @pytest.mark.parametrize(
        ("made", "message"),
        [
            ([], "There is no folder"),
            (["config.json"], "the run is not finished. Resume it with sprat train --resume"),
            (
                ["seed-0/results.json", "seed-1/results.json"],
                "several seeds (seed-0, seed-1). Name one of them",
            ),
            (["unrelated.txt"], "There is no {run}/results.json. Name the folder of a run."),
            (["results.json"], "{run}/results.json is not a file that a run of sprat writes"),
        ],
    )
    def test_folder_without_a_finished_run_is_refused(
        self, here: Here, tmp_path: Path, made: list[str], message: str
    ) -> None:
        run = tmp_path / "run"
        for name in made:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_text("{}")
        before = sorted(tmp_path.rglob("*"))
        done = here("report", run)
        assert done.returncode == 2
        assert message.format(run=run) in done.stderr
        assert sorted(tmp_path.rglob("*")) == before

    def test_output_not_ending_in_html_is_refused(self, here: Here, run: Path) -> None:
        done = here("report", run, "--output", run.parent / "page.pdf")
        assert done.returncode == 2
        assert "expected a name that ends in .html." in done.stderr


@pytest.mark.parametrize("damage", [{"val": None}, {"model": 3}, {"machine": {}}, {"final": True}])
def test_damaged_results_are_reported(run: Path, tmp_path: Path, damage: dict) -> None:
    write_json(run / "results.json", read_json(run / "results.json") | damage)
    message = f"{re.escape(str(run))}/results.json is not a file that a run of sprat writes"
    with pytest.raises(SpratError, match=message):
        write_report(read_run(run), tmp_path / "page.html", "no answers")
    assert not (tmp_path / "page.html").exists()


def test_every_setting_is_shown(run: Path, tmp_path: Path) -> None:
    write_report(read_run(run), tmp_path / "page.html", "no answers")
    tables = [rows for rows in Page(tmp_path / "page.html").tables() if rows[0][-1:] == ["value"]]
    shown = {(rows[0][0], row[0]) for rows in tables for row in rows[1:]}
    for name, value in read_run(run).config.to_dict().items():
        if isinstance(value, dict):
            assert {key for table, key in shown if table == name} == value.keys()
        else:
            assert ("the run", name) in shown
