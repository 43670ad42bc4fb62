"""Tests that the README and the pages of docs/ are correct: their figures, their files."""

import importlib.util
import json
import re
import runpy
from pathlib import Path
from statistics import median, stdev
from typing import Any

import pytest
from faults import KINDS

from sprat.augment.views import VIEWS
from sprat.evaluation.records import read_json, read_metrics, teachers_of
from sprat.run_folder import read_config
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides, recipe_path
from sprat.zoo import cards, find_card, listed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
RESULTS = ROOT / "results"
SETTLED = {"precision", "pictures.channels"}  # a run sets these for its machine and images
DOCS = ROOT / "docs"
RESULTS_PAGE = (DOCS / "explanation" / "results.md").read_text()
SUMMARIES = sorted(RESULTS.glob("*/summary.json"))


def _rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _row_of(recipe: str) -> list[str]:
    rows = [row for row in _rows(RESULTS_PAGE) if row[0] == f"`{recipe}`"]
    assert len(rows) == 1, f"the table of results has {len(rows)} rows for {recipe}"
    return rows[0]


def _formatted(figure: dict[str, float]) -> str:
    spread = "" if figure["std"] is None else f" ± {100 * figure['std']:.2f}"
    return f"{100 * figure['mean']:.2f}{spread} % (n = {figure['n']})"


def _named(summary: dict[str, Any]) -> str:
    """Return the recipe and the changes of it, as typed."""
    changes = summary["overrides"].items()
    return summary["recipe"] + "".join(f" --{name} {value}" for name, value in changes)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"


def test_there_are_committed_results() -> None:
    assert [path.parent.name for path in SUMMARIES] != []


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda p: p.parent.name)
class TestEverySummary:
    def test_summarizes_its_committed_runs(self, path: Path, tmp_path: Path) -> None:
        import shutil

        from sprat.evaluation.summary import write_summary

        shutil.copytree(path.parent, tmp_path / "copy")
        assert write_summary(tmp_path / "copy") == read_json(path)

    def test_comes_from_committed_recipes_on_all_training_images(self, path: Path) -> None:
        stated = read_json(path)["overrides"]
        for file in path.parent.glob("seed-*/results.json"):
            results = read_json(file)
            assert results["overrides"] == stated
            assert results["git"]["dirty"] is False
            config, recipe, _ = read_config(file.parent)
            assert overrides(config, load_recipe(recipe)).keys() <= {*SETTLED, *stated}
            if load_recipe(recipe).precision != "auto":
                assert config.precision == load_recipe(recipe).precision
            assert results["final"] is True
            assert results["test"]["n"] == 10_000
            assert file.parent.name == f"seed-{results['seed']}"
            names = {p.name for p in file.parent.iterdir()}
            assert names == {"results.json", "metrics.jsonl", "config.json", "curves.png"}

    def test_matches_the_table_of_results(self, path: Path) -> None:
        summary = read_json(path)
        cells = _row_of(_named(summary))
        assert cells[1] == f"{summary['parameters']:,}"
        assert cells[2] == str(summary["epochs"])
        for cell, figure in ((cells[3], summary["top1"]), (cells[4], summary["tta_top1"])):
            assert cell == _formatted(figure)
        assert cells[5] == _time(summary["seconds"]["median"])

    def test_matches_the_header_of_its_recipe(self, path: Path) -> None:
        summary = read_json(path)
        header = recipe_path(summary["recipe"]).read_text()
        assert _formatted(summary["top1"]) in header


def test_example_output_matches_seed_0() -> None:
    page = (DOCS / "how-to" / "train.md").read_text()
    block = page.split("```text")[1].split("```")[0]
    run = RESULTS / "quick" / "seed-0"
    test = read_json(run / "results.json")["test"]
    assert f"{100 * test['top1']:.2f} %  (95 % interval" in block
    assert f"{100 * test['tta_top1']:.2f} %" in block
    for name, share in test["per_class"].items():
        assert re.search(rf"^ +{name} +{100 * share:.2f} %  █+$", block, re.MULTILINE), name
    rows = {row["epoch"]: row for row in read_metrics(run)}
    shown = re.findall(r"^ +(\d+) +([\d.]+) +([\d.]+) % +([\d.]+) %", block, re.MULTILINE)
    assert len(shown) > 2
    for epoch, *figures in shown:
        row = rows[int(epoch)]
        assert figures == [
            f"{row['loss']:.4f}", f"{100 * row['top1']:.2f}", f"{100 * row['ema_top1']:.2f}"
        ]  # fmt: skip


def test_ema_table_matches_the_measurement() -> None:
    measured = json.loads((RESULTS / "ema_batchnorm.json").read_text())["rows"]
    by_key = {(m["epoch"], m["decay"], m["warmup"], m["statistics"]): m for m in measured}
    section = (DOCS / "explanation" / "ema-and-batchnorm.md").read_text()
    rows = [row for row in _rows(section) if row[0].isdigit()]
    assert len(rows) == len({m["epoch"] for m in measured})
    for epoch, raw, plain, averaged, cold_plain, cold_averaged in rows:
        shown = {
            (True, "plain"): plain, (True, "averaged"): averaged,
            (False, "plain"): cold_plain, (False, "averaged"): cold_averaged,
        }  # fmt: skip
        for (warmup, statistics), cell in shown.items():
            m = by_key[int(epoch), 0.999, warmup, statistics]
            assert cell == f"{100 * m['top1']:.2f}"
            assert raw == f"{100 * m['raw_top1']:.2f}"


def test_chosen_ema_is_not_worse_than_raw_weights() -> None:
    """Allow for two standard errors of the paired difference."""
    measured = json.loads((RESULTS / "ema_batchnorm.json").read_text())["rows"]
    kept = [m for m in measured if m["warmup"] and m["statistics"] == "plain"]
    assert {m["decay"] for m in kept} >= {0.99, 0.999}
    for m in kept:
        assert m["difference"] >= -2 * m["paired_standard_error"], m


def _tree() -> dict[Path, str]:
    """Return the paths in the tree of docs/architecture.md, with their descriptions."""
    found: dict[Path, str] = {}
    folders: list[tuple[int, Path]] = [(-1, Path())]
    page = (DOCS / "architecture.md").read_text()
    for line in page.split("## The files")[1].split("```")[1].strip("\n").splitlines():
        indent = len(line) - len(line.lstrip())
        name, _, meaning = line.strip().partition(" ")
        while folders[-1][0] >= indent:
            folders.pop()
        path = folders[-1][1] / name
        found[path] = meaning.strip()
        if name.endswith("/"):
            folders.append((indent, path))
    return found


def test_architecture_tree_matches_the_files() -> None:
    tree = _tree()
    for path, meaning in tree.items():
        assert (ROOT / path).exists(), f"the tree names {path}, which is not there"
        assert meaning or (ROOT / path).is_dir()
    files = [*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    for file in files:
        if file.read_text() and not (file.parent.name == "sprat" and file.stem.startswith("__")):
            assert file.relative_to(ROOT) in tree, file


def _commands() -> list[str]:
    lines = re.findall(r"^\$ (.*)$", README, re.MULTILINE)
    return [line.split(" # ")[0].strip() for line in lines]


def test_makefile_contains_the_plain_commands() -> None:
    makefile = (ROOT / "Makefile").read_text()
    plain = [c for c in _commands() if re.match(r"\.venv/bin/(sprat train|python -m pytest)", c)]
    assert len(plain) == 2
    for command in plain:
        assert command.replace(".venv/bin/", "$(BIN)/") in makefile


def test_ci_calls_the_readmes_test_command() -> None:
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert {"make test", "make check", "make system"} <= set(lines)
    assert "make test" in _commands()


def test_ema_measurement_matches_its_script() -> None:
    path = ROOT / "benchmarks" / "ema_batchnorm.py"
    spec = importlib.util.spec_from_file_location("ema_batchnorm", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    measured = read_json(RESULTS / "ema_batchnorm.json")
    config = Config.from_dict(measured["config"])
    assert overrides(config, script.CONFIG).keys() <= SETTLED
    assert {row["epoch"] for row in measured["rows"]} == {*script.POINTS, config.epochs}


def test_speeds_are_as_measured() -> None:
    """Check that every figure in the table of speeds comes from a committed measurement."""
    section = (DOCS / "explanation" / "speed.md").read_text()
    cells = {row[0]: row[1:] for row in _rows(section)}
    step = read_json(RESULTS / "training_step.json")
    assert cells["training, images/s"] == [
        f"{step['images_per_s']:,.0f}",
        f"{step['measured']['eager-bf16']['images_per_s']:,.0f} "
        f"(sprat: {step['ratio_to_eager_bf16']:.1f} times as many)",
        f"{step['measured']['brief']['images_per_s']:,.0f} "
        f"(sprat: {step['ratio_to_brief']:.1f} times as many)",
    ]
    in_the_end = (ROOT / "benchmarks" / "README.md").read_text().split("In the end")[1]
    assert f"{step['images_per_s']:,.0f} images/s at batch {step['batch_size']}" in in_the_end
    ratio = f"{step['ratio_to_eager_bf16']:.1f} times as many images per second"
    assert f"A training step processes {ratio}" in " ".join(README.split())
    assert f"{step['ratio_to_eager_bf16']:.1f} times eager bf16" in in_the_end
    assert f"{step['gflops']:.0f} GFLOP/s: {step['share_of_bf16_ceiling']:.0%}" in (
        in_the_end.replace(" %", "%")
    )
    sprint = read_json(RESULTS / "time_to_accuracy.json")
    assert cells["87.42 % from scratch, seconds"][:2] == [
        f"{sprint['seconds']:.0f}",
        f"{sprint['conventional_seconds']:,.0f}",
    ]
    assert sprint["reached"]
    assert f"{100 * sprint['top1']:.2f} ± {100 * sprint['top1_std']:.2f} %" in section
    runs = [read_json(p) for p in sorted((RESULTS / "sprint").glob("seed-*/results.json"))]
    assert [run["test"]["top1"] for run in runs] == sprint["top1_of_seeds"]
    assert [run["seconds"] for run in runs] == sprint["seconds_of_seeds"]
    assert (RESULTS / "cost.png").exists()


def test_speeds_under_load_match_the_measurement() -> None:
    figures = read_json(RESULTS / "under_load.json")
    section = (DOCS / "explanation" / "speed.md").read_text().split("## Next to other work")[1]
    _, _, *rows = _rows(section.split("Alone, the step")[0])
    for row, name in zip(rows, ("sprat", "sprat-default", "eager"), strict=True):
        measured, ratios = figures["measured"][name], figures["ratios_to_alone"][name]
        assert row[1:] == [
            f"{measured['alone']:,.0f}",
            *(f"{measured[k]:,.0f} ({ratios[k]:.2f})" for k in ("beside_one", "beside_two")),
        ]
    assert f"the step makes {figures['alone_to_default']:.2f} of" in section


def test_what_helps_page_matches_the_measurement() -> None:
    """Check every trial's accuracy and difference to its group's base ± the error over images."""
    measured = read_json(RESULTS / "proxy.json")
    chance = measured["groups"].pop("chance")["trials"]["base"]["top1_of_seeds"]
    expected = []
    for group in measured["groups"].values():
        for name, row in group["trials"].items():
            difference = f"{100 * row['difference']:+.2f} ± {100 * row['standard_error']:.2f}"
            stated = " " if name == "base" else f" {difference} "
            expected.append(f"| {name} | {100 * row['top1']:.2f} % |{stated}|")
    page = (DOCS / "explanation" / "what-helps.md").read_text()
    rows = re.findall(r"^\| [^%\n]* % \|[^%\n]*\|$", page, re.MULTILINE)
    assert f"{100 * sum(chance) / len(chance):.2f} ± {100 * stdev(chance):.2f} %" in page
    assert sorted(rows) == sorted(expected)
    for recipe in ("accurate", "taught", "taught-m"):  # full-length runs that it names
        figure = read_json(RESULTS / recipe / "summary.json")["top1"]
        assert _formatted(figure).split(" (")[0].removesuffix(" %") in page


def test_distillation_table_matches_the_runs() -> None:
    page = (DOCS / "explanation" / "what-helps.md").read_text()
    (_, _, *rows) = _rows(page.split("### In full-length runs")[1].split("\n## ")[0])
    teacher = read_json(RESULTS / "teacher" / "summary.json")["top1"]["mean"]
    assert f"reaches {100 * teacher:.2f} % itself" in page
    shown = [
        read_json(RESULTS / recipe / "seed-0" / "results.json")
        for recipe in ("taught-s", "taught-t", "taught-m", "taught", "taught-l")
    ]
    assert rows == [
        [
            run["model"], f"{run['parameters']:,}", f"{find_card(run['model'])['macs']:,}",
            str(run["epochs"]), f"{100 * run['brief']['training_accuracy']:.2f} %",
            f"{100 * run['test']['top1']:.2f} %",
            f"{100 * (teacher - run['test']['top1']):.2f}",
        ]
        for run in shown
    ]  # fmt: skip


def test_a_gpu_trains_as_fast_as_measured() -> None:
    page = " ".join((DOCS / "explanation" / "speed.md").read_text().split())
    rates = {}
    for recipe in ("teacher", "taught-l", "taught", "taught-m", "taught-s", "taught-t"):
        (run,) = [read_json(file) for file in RESULTS.glob(f"{recipe}/seed-*/results.json")]
        assert run["machine"]["gpu"] == "NVIDIA H200"
        rates[recipe] = run["images_per_s"]
    for recipe in ("teacher", "taught-l"):
        rate = f"{round(rates.pop(recipe), -3):,.0f}"
        assert re.search(rf" at {rate}( images/s)? \((recipe )?`{recipe}`\)", page), recipe
    assert f" together at {round(sum(rates.values()), -3):,.0f} images/s" in page


def test_inference_speeds_match_the_measurement() -> None:
    measured = read_json(RESULTS / "inference.json")
    networks = {measured["model"]: measured["measured"], **measured["others"]}
    section = (DOCS / "explanation" / "speed.md").read_text().split("## Inference speed")[1]
    _, _, *rows = _rows(section)
    ways = ("eager-2", "onnx-2", "onnx-int8-2")
    assert [row[0] for row in rows] == list(networks)
    for name, *cells in rows:
        assert cells == [
            *(f"{networks[name][way]['ms_for_one_image']:.2f}" for way in ways),
            *(f"{networks[name][way]['images_per_s']:,.0f}" for way in ways),
        ]
    assert f"batches of {measured['batch_size']}" in " ".join(section.split())


def test_server_speed_and_memory_match_the_measurement() -> None:
    measured = read_json(RESULTS / "serve.json")
    section = (DOCS / "how-to" / "serve.md").read_text().split("## Speed and memory")[1]
    _, _, *rows = _rows(section)
    assert rows == [
        [clients, f"{m['requests_per_s']:,.0f}", f"{m['p50_ms']:.1f}", f"{m['p99_ms']:.1f}"]
        for clients, m in measured["measured"].items()
    ]
    said, (_, early, *_, late) = " ".join(section.split()), measured["memory"]
    assert f"{measured['bare_1_images_per_s']:,.0f} images/s one at a time" in said
    assert f"{measured['bare_64_images_per_s']:,.0f} in batches of 64" in said
    for seen in (early, late):
        megabytes = f"{seen['resident_bytes'] / 2**20:.0f} MiB after {seen['requests']:,}"
        assert megabytes in said
    assert late["resident_bytes"] < 1.05 * early["resident_bytes"]


def test_augmentation_is_as_fast_as_measured() -> None:
    measured = read_json(RESULTS / "augmentation.json")
    section = " ".join((DOCS / "explanation" / "augmentation.md").read_text().split())
    assert f"{measured['images_per_s']:,.0f} images/s in batches of {measured['batch_size']}" in (
        section
    )
    assert f"{measured['ratio_to_albumentations']:.1f} times as many" in section
    assert measured["machine"]["threads"] == 2
    shares = (
        f"takes {100 * measured['augmentation_share_of_step']:.1f} % of a training step on two "
        f"threads, and mixing {100 * measured['mixing_share_of_step']:.1f} %"
    )
    assert shares in section
    in_the_end = (ROOT / "benchmarks" / "README.md").read_text().split("another machine)")[1]
    assert f"{measured['images_per_s']:,.0f} images/s" in in_the_end


def test_view_accuracies_match_the_measurement() -> None:
    models = read_json(RESULTS / "tta.json")["models"]
    assert {model["judged_on"] for model in models} == {"val", "test"}
    (final,) = [model for model in models if model["judged_on"] == "test"]
    assert final["n"] == 10_000
    section = (DOCS / "explanation" / "augmentation.md").read_text().split("## Test-time")[1]
    rows = {row[0].split(",")[0]: row[1:] for row in _rows(section) if row[0][0].isdigit()}
    assert rows.keys() == final["sets"].keys() == set(map(str, VIEWS))
    for views, figures in final["sets"].items():
        accuracy, gain, p = rows[views]
        assert accuracy == f"{100 * figures['top1']:.2f} %"
        if views == "1":
            continue
        difference, error = 100 * figures["difference"], 100 * figures["standard_error"]
        assert gain == f"{difference:+.2f} ± {error:.2f}"
        assert p == f"p = {figures['p']:.2g}"
    default = final["sets"][str(Config().tta)]
    assert default["difference"] > 0
    assert default["p"] < 0.05


def test_no_view_set_is_clearly_worse_than_one() -> None:
    for model in read_json(RESULTS / "tta.json")["models"]:
        for figures in model["sets"].values():
            assert figures["difference"] >= -2 * figures["standard_error"]


def test_the_views_tried_are_as_measured() -> None:
    """Check the offered sets' rows in the benchmarks' README against the measurement."""
    models = read_json(RESULTS / "tta.json")["models"]
    by_recipe = {m["recipe"]: m["sets"] for m in models if m["judged_on"] == "val"}
    section = (ROOT / "benchmarks" / "README.md").read_text().split("## Test-time views")[1]
    offered = [row for row in _rows(section) if row[-1].startswith("yes")]
    assert [row[0] for row in offered] == list(map(str, VIEWS))
    for views, _, quick, sprint, _ in offered:
        assert quick == f"{100 * by_recipe['quick'][views]['top1']:.2f}"
        assert sprint == f"{100 * by_recipe['sprint'][views]['top1']:.2f}"


FIT = (DOCS / "how-to" / "fit-a-budget.md").read_text()


def test_summary_example_matches_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from sprat.cli import app

    app(["summary", "OptimizedCIFAR10Net200K", "--depth", "1"], result_action="return_value")
    shown = FIT.split("```text\n")[1].split("```")[0]
    assert capsys.readouterr().out == shown


def test_check_example_matches_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    from sprat.cli import app

    limits = ["--max-parameters", "200k", "--min-receptive-field", "45"]
    limits += ["--max-ram", "64K", "--stored-as", "int8"]
    app(["check", "OptimizedCIFAR10Net200K", *limits], result_action="return_value")
    shown = FIT.split("```text\n")[2].split("```")[0]
    assert capsys.readouterr().out == shown


def test_the_table_of_boards_is_written_by_the_generator() -> None:
    page = (DOCS / "how-to" / "microcontroller.md").read_text()
    boards = runpy.run_path(str(DOCS / "generate.py"))["boards"]
    assert boards(page.replace("128 | 512", "1 | 2").replace("| SpratS |", "|")) == page


def test_table_of_boards_matches_the_memory_plans() -> None:
    page = (DOCS / "how-to" / "microcontroller.md").read_text()
    header, _, *rows = _rows(page)
    fitting = sorted(cards(), key=lambda card: card["memory"]["arena"])
    assert header[4:] == [card["name"] for card in fitting]
    boards = json.loads((DOCS / "how-to" / "boards.json").read_text())
    assert len(rows) == len(boards) == 10
    for row, board in zip(rows, boards, strict=True):
        ram, flash = board["ram_kib"], board["flash_kib"]
        assert row[:4] == [
            f"[{board['board']}]({board['source']})", board["chip"], str(ram), str(flash)
        ]  # fmt: skip
        for cell, memory in zip(row[4:], (card["memory"] for card in fitting), strict=True):
            left = ram - (memory["arena"] + memory["image"]) / 1024
            fits = left >= 0 and memory["weights"] <= 1024 * flash
            assert cell == (f"{left:.1f}" if fits else "—")


def test_pretrained_models_in_c_are_exact_and_accurate() -> None:
    results = RESULTS / "microcontroller.json"
    if not results.exists():  # docs/reference/microcontroller.md has no figures then
        return
    measured = read_json(results)["models"]
    assert {name: found["sha256"] for name, found in measured.items()} == {
        card["name"]: card["sha256"] for card in cards()
    }, "run benchmarks/microcontroller.py again"
    for name, found in measured.items():
        assert (found["images"], found["other_scores"]) == (10_000, 0), name
        assert found["top1_fp32"] - found["top1_int8"] <= 0.003, name
        assert found["worst_class_drop"] <= 0.05, name


COMPARED = [
    "results/taught-l/seed-0",
    "results/taught-m/seed-0",
    "results/taught/seed-0",
    "results/taught-t/seed-0",
    "results/taught-s/seed-0",
    "results/sprat-cpu/seed-0",
    "results/accurate",
    "results/quick",
    "results/sprint",
    "results/reference/seed-0/test.json",
]


def test_the_comparison_shown_is_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from sprat.cli import app

    monkeypatch.chdir(ROOT)
    app(["compare", *COMPARED, "--markdown"], result_action="return_value")
    table = capsys.readouterr().out
    page = (DOCS / "explanation" / "other-networks.md").read_text()
    assert table in page
    assert "compare " + " ".join(COMPARED) in page


def test_pretrained_models_are_listed_best_first() -> None:
    rows = _rows(README.split("| pretrained model |")[1].split("\n\n")[0])[1:]
    assert rows == [
        [
            f"`{card['name']}`", f"{card['parameters']:,}", f"{100 * card['test']['top1']:.2f} %",
            f"{100 * card['test']['tta_top1']:.2f} %", f"{listed(card)['bytes']:,}",
        ]
        for card in cards()
    ]  # fmt: skip


@pytest.mark.parametrize("card", cards(), ids=lambda card: card["name"])
def test_pretrained_model_comes_from_a_committed_run(card: dict[str, Any]) -> None:
    """Allow for the rounding of its weights to fp16."""
    training = card["training"]
    runs = [read_json(file) for file in RESULTS.glob("*/seed-*/results.json")]
    same = ("recipe", "overrides", "seed", "seconds", "git")
    (run,) = [run for run in runs if all(run[key] == training[key] for key in same)]
    assert (run["model"], run["test"]["n"]) == (card["name"], card["test"]["n"])
    assert card["test"]["top1"] == pytest.approx(run["test"]["top1"], abs=5e-4)


def test_every_teacher_is_pretrained_or_a_committed_run() -> None:
    runs = [read_json(file) for file in RESULTS.glob("*/seed-*/results.json")]
    names = {card["name"] for card in cards()}
    teachers = [teacher for run in runs for teacher in teachers_of(run)]
    assert teachers
    for teacher in teachers:
        if teacher["model"] in names:
            assert teacher["sha256"] == listed(find_card(teacher["model"]))["sha256"]
        else:
            kept = ("model", "recipe", "seed")
            (of,) = [one for one in runs if all(one[key] == teacher[key] for key in kept)]
            assert of["test"]["top1"] == teacher["test_top1"]


def test_near_duplicates_are_as_counted() -> None:
    counted = read_json(RESULTS / "near_duplicates.json")
    page = (DOCS / "how-to" / "check-data.md").read_text().split("## CIFAR-10")[1]
    assert f"finds {counted['leaked_test_images']} of the 10,000 test images" in page
    assert counted["exact_leaks"] == 0
    assert f"found {100 * counted['literature']['share_of_test']:.1f} %" in page
    assert list(counted["models"]) == [card["name"] for card in cards()]
    of_parts = [[found[part] for part in ("all", "without", "leaked")]
                for found in counted["models"].values()]  # fmt: skip
    for card, (everything, without, _) in zip(cards(), of_parts, strict=True):
        assert everything["top1"] == card["test"]["top1"]
        assert 0 < everything["top1"] - without["top1"] < 0.0015
    assert _rows(page)[2:] == [
        [f"`{card['name']}`", *(f"{100 * part['top1']:.2f} %" for part in parts)]
        for card, parts in zip(cards(), of_parts, strict=True)
    ]


def test_reference_run_figures_match_its_files() -> None:
    """Check the figures of one run, which chose its weights on val and read test afterwards."""
    run = RESULTS / "reference" / "seed-0"
    results, test, rows = (
        read_json(run / "results.json"), read_json(run / "test.json"), read_metrics(run)
    )  # fmt: skip
    assert (results["overrides"], results["git"]["dirty"]) == ({}, False)
    assert (test["split"], test["n"], test["tta_views"]) == ("test", 10_000, 8)
    assert results["test"] is None
    config, recipe, _ = read_config(run)
    assert overrides(config, load_recipe(recipe)).keys() <= SETTLED
    seconds = median(row["seconds"] for row in rows)
    top1, tta = 100 * test["top1"], 100 * test["tta_top1"]
    assert _row_of("reference")[1:6] == [
        f"{results['parameters']:,}",
        f"{results['epochs']} of {config.epochs}",
        f"{top1:.2f} % (n = 1)",
        f"{tta:.2f} % with 8 views (n = 1)",
        f"{seconds:.0f} seconds an epoch",
    ]
    header = recipe_path("reference").read_text().replace("\n# ", " ")
    assert f"{top1:.2f} % (n = 1)" in header
    assert f"{tta:.2f} % with eight views" in header
    assert f"({100 * results['val']['top1']:.2f} % there)" in header
    assert f"after {len(rows)} epochs, best at {results['best_epoch']}" in header
    assert f"takes {seconds:.0f} seconds" in header


def test_fault_table_matches_the_count() -> None:
    counted = read_json(RESULTS / "faults.json")
    # kinds added later are missing until all are counted again
    assert list(counted["kinds"]) == [kind for kind in KINDS if kind in counted["kinds"]]
    assert counted["faults"] == 1000
    for count in counted["kinds"].values():
        assert count["survived"] == count["tried"] > 0
        assert count["lost"] == count["silent"] == count["tracebacks"] == 0
    section = RESULTS_PAGE.split("## Faults")[1]
    _, _, *rows = _rows(section)
    assert rows == [
        [name, *(f"{value:,}" for value in count.values())]
        for name, count in counted["kinds"].items()
    ]
    assert f"in {counted['seconds'] / 60:.0f} minutes on two cores" in " ".join(section.split())
