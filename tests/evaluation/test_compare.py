"""Tests of the comparison of runs with published figures."""

import json
from pathlib import Path

import pytest
from PIL import Image

from sprat.cli import app
from sprat.errors import SpratError
from sprat.evaluation.compare import (
    Entry,
    comparison_table,
    pareto_front,
    read_entries,
    read_published,
    to_markdown,
)
from sprat.evaluation.records import write_json
from sprat.figures.png import draw_comparison

MODEL = "OptimizedCIFAR10Net200K"
EVALUATION = {
    "top1": 0.88,
    "top1_ci95": [0.873, 0.886],
    "per_class": {f"class {n}": 0.88 for n in range(10)},
}


def _entry(parameters: int, top1: float, **changes: object) -> Entry:
    values: dict = {"name": f"{parameters}", "macs": None, "receptive_field": None}
    values |= {"protocol": "", "source": "", "parameters": parameters, "top1": top1}
    return Entry(**(values | changes))


@pytest.fixture
def results(tmp_path: Path) -> dict[str, Path]:
    """Files of each kind of results that can be compared."""
    same = {"model": MODEL, "dataset": "cifar10", "recipe": "mine"}
    final, choosing, seeds = (tmp_path / name for name in ("final", "choosing", "seeds"))
    write_json(final / "results.json", same | {"test": EVALUATION, "val": None, "side": 32})
    write_json(choosing / "results.json", same | {"test": None, "val": EVALUATION})
    spread = {"mean": 0.9, "std": 0.002, "n": 3}
    write_json(seeds / "summary.json", same | {"seeds": [0, 1, 2], "top1": spread, "split": "test"})
    evaluated = tmp_path / "evaluated.json"
    write_json(evaluated, {"model": MODEL, "dataset": "cifar10", "split": "test"} | EVALUATION)
    return {"final": final, "choosing": choosing, "seeds": seeds, "evaluated": evaluated}


class TestEntries:
    def test_every_kind_of_result_is_understood(self, results: dict[str, Path]) -> None:
        entries = {name: read_entries([path], published=False)[0] for name, path in results.items()}
        for entry in entries.values():
            assert (entry.parameters, entry.macs, entry.receptive_field) == (
                150_690, 8_409_920, 109
            )  # fmt: skip
            assert entry.standing == "measured"
        assert entries["final"].ci95 == (0.873, 0.886)
        assert (entries["choosing"].split, entries["choosing"].top1) == ("val", 0.88)
        assert (entries["seeds"].top1, entries["seeds"].std, entries["seeds"].n) == (0.9, 0.002, 3)
        assert entries["final"].name == f"{MODEL}, mine"
        assert entries["evaluated"].name == MODEL
        assert [name for name, e in entries.items() if not e.can_lead] == ["choosing"]

    def test_are_sorted_by_parameters_with_published_ones(self, results: dict[str, Path]) -> None:
        entries = read_entries(list(results.values()))
        assert len(entries) == len(results) + len(read_published())
        assert [e.parameters for e in entries] == sorted(e.parameters for e in entries)

    def test_custom_network_has_the_costs_of_its_run(self, results: dict[str, Path]) -> None:
        costs = {"parameters": 1_234, "macs": 56_000, "receptive_field": None}
        for kind, file in (("final", "results.json"), ("seeds", "summary.json")):
            path = results[kind] / file
            write_json(path, json.loads(path.read_text()) | {"model": "MyNet"} | costs)
            (entry,) = read_entries([path], published=False)
            assert (entry.parameters, entry.macs, entry.receptive_field) == tuple(costs.values())

    @pytest.mark.parametrize("text", ["[1]", "{}", '{"dataset": "cifar10"}', '"a"'])
    def test_invalid_result_is_reported(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(SpratError, match=r"x\.json is not a result of sprat"):
            read_entries([tmp_path / "x.json"])

    @pytest.mark.parametrize("kind", ["final", "choosing", "seeds", "evaluated"])
    def test_wrong_or_missing_value_is_reported(
        self, results: dict[str, Path], tmp_path: Path, kind: str
    ) -> None:
        place = results[kind]
        file = next(place.glob("*.json")) if place.is_dir() else place
        values, refused = json.loads(file.read_text()), 0
        for key in values:
            for wrong in (
                [],
                -1,
                True,
                "x",
                {},
                1e30,
                None,
                [None],
                {"top1": None},
                10**30,
                "../x",
            ):
                file.write_text(json.dumps(values | {key: wrong}))
                try:
                    assert len(read_entries([file], published=False)) == 1
                except SpratError as error:
                    refused += 1
                    message = str(error)
                    assert "\n" not in message
            file.write_text(json.dumps({k: v for k, v in values.items() if k != key}))
            if key not in ("recipe", "side"):
                with pytest.raises(SpratError, match="is not a result of sprat"):
                    read_entries([file], published=False)
        assert refused > 7 * len(values)

    def test_folder_without_results_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(SpratError, match=r"neither results\.json nor summary\.json"):
            read_entries([tmp_path])

    def test_datasets_are_not_mixed(self, results: dict[str, Path], tmp_path: Path) -> None:
        other = {"model": MODEL, "dataset": "shapes10", "split": "test"} | EVALUATION
        write_json(tmp_path / "other.json", other)
        with pytest.raises(SpratError, match=r"shapes10 .*cifar10 .*--no-published"):
            read_entries([tmp_path / "other.json"])
        with pytest.raises(SpratError, match="different datasets"):
            read_entries([tmp_path / "other.json", results["final"]], published=False)
        assert read_entries([tmp_path / "other.json"], published=False)[0].top1 == 0.88


class TestPublished:
    def test_every_figure_says_where_it_is_from(self) -> None:
        for entry in read_published():
            assert entry.source
            assert entry.protocol
            assert entry.standing in ("published", "claimed")
            assert 0.5 < entry.top1 < 1
            assert entry.parameters > 1000

    def test_original_figures_are_marked_as_claimed(self) -> None:
        claimed = {(e.name, e.parameters) for e in read_published() if e.standing == "claimed"}
        assert claimed == {
            (MODEL, 150_690), ("ResNet-18", 11_173_962), ("MobileNetV2", 2_237_160)
        }  # fmt: skip


class TestFront:
    def test_contains_entries_that_no_other_dominates(self) -> None:
        """Compare with the plain definition on all published entries."""
        entries = read_published()
        leading = [e for e in entries if e.can_lead]
        plain = [
            e
            for e in leading
            if not any(
                (o.parameters <= e.parameters and o.top1 > e.top1)
                or (o.parameters < e.parameters and o.top1 >= e.top1)
                for o in leading
            )
        ]
        assert sorted(pareto_front(entries), key=id) == sorted(plain, key=id)

    def test_excludes_claims_and_val(self) -> None:
        small, large = _entry(10, 0.8), _entry(20, 0.9)
        others = [_entry(5, 0.99, standing="claimed"), _entry(5, 0.99, split="val")]
        assert pareto_front([large, *others, small]) == [small, large]
        assert pareto_front(others) == []


class TestShown:
    def test_bounds_and_spreads_are_formatted(self) -> None:
        entries = [
            _entry(40_000, 0.91, parameters_sign="<", top1_sign=">", standing="published"),
            _entry(50_000, 0.9, std=0.002, macs=7_000),
            _entry(60_000, 0.9, ci95=(0.89, 0.91), receptive_field=9),
        ]
        _, bound, seeds, run = comparison_table(entries)
        assert bound[1:5] == ("< 40,000", "", "", "> 91 %")
        assert seeds[1:5] == ("50,000", "7,000", "", "90.00 ± 0.20 %")
        assert run[1:5] == ("60,000", "", "9 px", "90.00 % (89.00 to 91.00)")
        assert [row[-1] for row in (bound, seeds, run)] == ["●", "", ""]

    def test_markdown_rows_have_equally_many_cells(self) -> None:
        lines = to_markdown(comparison_table(read_published())).splitlines()
        assert len(lines) == 2 + len(read_published())
        assert {line.count("|") for line in lines} == {9}

    def test_the_plot_is_a_picture(self, results: dict[str, Path], tmp_path: Path) -> None:
        path = draw_comparison(read_entries(list(results.values())), tmp_path / "plot.png")
        with Image.open(path) as picture:
            assert picture.width > 600
            assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 50

    def test_the_command_prints_text_markdown_or_json(
        self, results: dict[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        printed = {}
        for option in ("--published", "--markdown", "--json"):
            app(["compare", str(results["final"]), option], result_action="return_value")
            printed[option] = capsys.readouterr().out
        assert "88.00 % (87.30 to 88.60)" in printed["--published"]
        assert printed["--markdown"].startswith("| network | parameters |")
        values = json.loads(printed["--json"])
        assert len(values) == 1 + len(read_published())
        assert sum(value["front"] for value in values) == 4
