"""The readable files of a run."""

import json
import statistics
from pathlib import Path

import pytest

from sprat.errors import SpratError
from sprat.results import (
    new_run,
    read_config,
    read_json,
    read_metrics,
    write_json,
    write_summary,
)


def _result(seed: int, top1: float, **changes: object) -> dict:
    return {
        "recipe": "quick", "overrides": {}, "dataset": "cifar10", "dataset_md5": "0", "model": "M",
        "parameters": 1, "epochs": 2, "seed": seed, "final": True, "seconds": 10.0 * seed,
        "test": {"top1": top1, "tta_top1": top1 + 0.01, "ece": 0.02},
    } | changes  # fmt: skip


def test_a_summary_is_over_the_seeds(tmp_path: Path) -> None:
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
        ({"epochs": 3}, "seed 1 differs in epochs"),
        ({"overrides": {"epochs": 2}}, "seed 1 differs in overrides"),
        ({"final": False}, "seed 1 differs in final"),
    ],
)
def test_runs_that_are_not_seeds_of_one_recipe_are_not_summed_up(
    tmp_path: Path, changes: dict, message: str
) -> None:
    write_json(tmp_path / "seed-0" / "results.json", _result(0, 0.5))
    write_json(tmp_path / "seed-1" / "results.json", _result(1, 0.5, **changes))
    with pytest.raises(SpratError, match=message):
        write_summary(tmp_path)
    assert not (tmp_path / "summary.json").exists()


def test_damaged_and_missing_files_are_told_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpratError, match=r"results\.json; is"):
        read_json(tmp_path / "results.json")
    with pytest.raises(SpratError, match=r"metrics\.jsonl; is"):
        read_metrics(tmp_path)
    with pytest.raises(SpratError, match="holds no seed"):
        write_summary(tmp_path)
    (tmp_path / "config.json").write_text('{"recipe": ')
    with pytest.raises(SpratError, match="cannot be read as JSON"):
        read_config(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SpratError, match="lacks recipe"):
        read_config(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n{")
    with pytest.raises(SpratError, match="cannot be read"):
        read_metrics(tmp_path)


def test_not_a_number_never_reaches_a_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"top1": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_runs_begun_in_the_same_second_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda form: "20260102-030405")
    first = "runs/mine-seed7-20260102-030405"
    with new_run("mine.toml", 7) as one, new_run("mine.toml", 7) as two:
        assert [one.as_posix(), two.as_posix()] == [first, f"{first}-2"]
        (one / "config.json").write_text("{}")
    assert [path.name for path in Path("runs").iterdir()] == [one.name], "an empty one is removed"
    (one / "config.json").unlink()
    with new_run("mine.toml", 7) as three:
        assert three.as_posix() == f"{first}-2"
    one.rmdir()
    with new_run("mine.toml", 7):
        pass
    assert list(tmp_path.iterdir()) == [], "and nothing but that is left behind"
