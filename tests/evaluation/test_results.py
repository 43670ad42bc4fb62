"""Tests of the readable files of a run."""

import copy
import json
import os
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sprat.errors import SpratError
from sprat.evaluation.records import read_json, read_metrics, read_results, write_json
from sprat.evaluation.summary import write_summary
from sprat.run_folder import new_run, read_config

RUN = next((Path(__file__).parents[2] / "results").glob("*/seed-0"))
RESULT = json.loads((RUN / "results.json").read_text())
EVALUATION = RESULT["test"]
WRONG = [None, True, -1, 0.5, "x", [], {}, 10**30, [None], {"a": None}]


def _result(seed: int, top1: float, **changes: object) -> dict:
    return RESULT | {
        "recipe": "quick", "overrides": {}, "dataset": "cifar10", "dataset_md5": "0", "model": "M",
        "parameters": 1, "epochs": 2, "seed": seed, "final": True, "seconds": 10.0 * seed,
        "test": EVALUATION | {"top1": top1, "tta_top1": top1 + 0.01, "ece": 0.02},
    } | changes  # fmt: skip


def test_summary_covers_all_seeds(tmp_path: Path) -> None:
    shares = [0.88, 0.885, 0.879]
    for seed, top1 in enumerate(shares):
        write_json(tmp_path / f"seed-{seed}" / "results.json", _result(seed, top1))
    summary = write_summary(tmp_path)
    assert summary == json.loads((tmp_path / "summary.json").read_text())
    assert summary["seeds"] == [0, 1, 2]
    assert summary["top1"] == {
        "n": 3, "mean": pytest.approx(sum(shares) / 3), "std": statistics.stdev(shares),
        "median": 0.88, "min": 0.879, "max": 0.885,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "seed 1 differs from seed 0 in epochs"),
        ({"overrides": {"epochs": 2}}, "seed 1 differs from seed 0 in overrides"),
        ({"final": False, "test": None, "val": EVALUATION}, "seed 1 differs from seed 0 in final"),
    ],
)
def test_runs_with_different_settings_are_not_summarized(
    tmp_path: Path, changes: dict, message: str
) -> None:
    write_json(tmp_path / "seed-0" / "results.json", _result(0, 0.5))
    write_json(tmp_path / "seed-1" / "results.json", _result(1, 0.5, **changes))
    with pytest.raises(SpratError, match=message):
        write_summary(tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_damaged_and_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(SpratError, match=r"There is no .*results\.json\. Name"):
        read_json(tmp_path / "results.json")
    with pytest.raises(SpratError, match=r"There is no .*metrics\.jsonl\. Name"):
        read_metrics(tmp_path)
    with pytest.raises(SpratError, match="contains no seed"):
        write_summary(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": ')
    with pytest.raises(SpratError, match="cannot be read as JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpratError, match="recipe is missing"):
        read_config(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n{")
    with pytest.raises(SpratError, match="cannot be read"):
        read_metrics(tmp_path)


def _paths(value: object, at: tuple = ()) -> Iterator[tuple]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield (*at, key)
            yield from _paths(inner, (*at, key))


def _changed(values: dict, at: tuple, change: Callable[[dict, str], object]) -> dict:
    changed: dict = copy.deepcopy(values)
    table = changed
    for key in at[:-1]:
        table = table[key]
    change(table, at[-1])
    return changed


class TestHostileFiles:
    """Tests that a readable file with any content is read correctly or refused in one line."""

    @pytest.mark.parametrize("at", list(_paths(RESULT)), ids=".".join)
    def test_results_with_a_wrong_or_missing_value(self, tmp_path: Path, at: tuple) -> None:
        path, used = tmp_path / "results.json", at[0] not in ("brief", "train_per_class")
        path.write_text(json.dumps(_changed(RESULT, at, lambda table, key: table.pop(key))))
        _read_or_refused(path, read_results)
        refused = 0
        for value in WRONG:
            changed = _changed(RESULT, at, lambda table, key, v=value: table.update({key: v}))
            path.write_text(json.dumps(changed))
            refused += not _read_or_refused(path, read_results)
        assert refused >= 4 if used else refused >= 1, at

    @pytest.mark.parametrize("key", json.loads((RUN / "metrics.jsonl").read_text().split("\n")[0]))
    def test_metrics_with_a_wrong_or_missing_value(self, tmp_path: Path, key: str) -> None:
        path = tmp_path / "metrics.jsonl"
        lines = (RUN / "metrics.jsonl").read_text().split("\n")[:3]
        row = json.loads(lines[1])
        for value in [*WRONG, float("nan"), float("inf")]:
            path.write_text("\n".join([lines[0], json.dumps(row | {key: value}), lines[2], ""]))
            fine = "top1" in key if value is None else value == 0.5 and type(row[key]) is not int
            fine |= value == -1 and key == "loss"
            if _read_or_refused(path, lambda path: read_metrics(path.parent)):
                assert fine, value
        del row[key]
        path.write_text("\n".join([lines[0], json.dumps(row), lines[2], ""]))
        assert not _read_or_refused(path, lambda path: read_metrics(path.parent)) or "top1" in key

    @pytest.mark.parametrize(
        "change",
        [lambda t: t + t, lambda t: t[:-40], lambda t: t[40:], lambda t: "", lambda t: "\n" + t,
         lambda t: "[]\n" * 3, lambda t: "[" * 100_000, lambda t: t.replace("\n", "")],
    )  # fmt: skip
    def test_damaged_metrics_are_refused(
        self, tmp_path: Path, change: Callable[[str], str]
    ) -> None:
        (tmp_path / "metrics.jsonl").write_text(change((RUN / "metrics.jsonl").read_text()))
        with pytest.raises(SpratError):
            read_metrics(tmp_path)

    @pytest.mark.parametrize(
        "content",
        [b"", b"{", b"[" * 100_000, b'{"a":' * 100_000, b"9" * 5_000, b"NaN", b"Infinity", b"1e999",
         b"\xff\xfe", b"\0", b"null", b"3", b'"x"', b"[]", b"{}", b"-Infinity", b"[[[[1]]]]"],
    )  # fmt: skip
    @pytest.mark.parametrize(
        ("name", "read"),
        [
            ("results.json", read_results),
            ("config.json", lambda path: read_config(path.parent)),
            ("metrics.jsonl", lambda path: read_metrics(path.parent)),
        ],
    )
    def test_invalid_content_is_refused(
        self, tmp_path: Path, name: str, read: Callable[[Path], object], content: bytes
    ) -> None:
        (tmp_path / name).write_bytes(content)
        assert not _read_or_refused(tmp_path / name, read)

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "results.json")
        assert not _read_or_refused(tmp_path / "results.json", read_results)

    @pytest.mark.parametrize(
        "changes",
        [{"recipe": 3}, {"overrides": []}, {"overrides": {"a": {}}}, {"config": []},
         {"config": {"epochs": "3"}}, {"config": {"epoch": 3}}, {"config": {"threads": 10**14}}],
    )  # fmt: skip
    def test_invalid_config_is_refused(self, tmp_path: Path, changes: dict) -> None:
        values = {"recipe": "quick", "overrides": {}, "config": {}} | changes
        (tmp_path / "config.json").write_text(json.dumps(values))
        assert not _read_or_refused(tmp_path / "config.json", lambda path: read_config(path.parent))


def _read_or_refused(path: Path, read: Callable[[Path], object]) -> bool:
    """Return whether the file was read; if not, check that one line names and refuses it."""
    said = ""
    try:
        read(path)
    except SpratError as error:
        said = str(error)
    assert not said or str(path) in said
    assert "\n" not in said
    return not said


@pytest.mark.parametrize("run", [p.parent for p in RUN.parents[1].glob("*/seed-*/config.json")])
def test_every_committed_run_is_read(run: Path) -> None:
    assert read_results(run / "results.json")["epochs"] == len(read_metrics(run))


def test_nan_is_never_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"top1": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_runs_begun_simultaneously_get_separate_folders(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    first = "runs/mine-seed7-20260102-030405"
    with new_run("mine.toml", 7) as one, new_run("mine.toml", 7) as two:
        assert [one.as_posix(), two.as_posix()] == [first, f"{first}-2"]
        (one / "config.json").write_text("{}")
    assert [path.name for path in Path("runs").iterdir()] == [one.name], "the empty one is removed"
    (one / "config.json").unlink()
    with new_run("mine.toml", 7) as three:
        assert three.as_posix() == f"{first}-2"
    one.rmdir()
    with new_run("mine.toml", 7):
        pass
    assert list(tmp_path.iterdir()) == [], "the empty folder runs is removed too"
