"""Tests of the records of runs: a misspelt key is a type error, and reading checks the types."""

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints, is_typeddict

import sprat
from sprat import runtime, zoo
from sprat.evaluation import records
from sprat.evaluation.records import EPOCH_ROW
from sprat.shapes import mismatch

RECORDS = {
    name: record
    for module in (records, runtime, zoo)
    for name, record in vars(module).items()
    if is_typeddict(record) and record.__module__ == module.__name__
}
# checks the records only: the rest of sprat, and torch, would take a minute
SETTINGS = f"""
[mypy]
strict = true
mypy_path = {Path(sprat.__file__).parents[1]}
follow_imports = skip
[mypy-{",".join(sorted({record.__module__ for record in RECORDS.values()}))}]
follow_imports = silent
"""


def test_mypy_refuses_a_misspelt_key_of_every_record(tmp_path: Path) -> None:
    assert {"RunResult", "Evaluation", "EpochRow", "SeedSummary", "Card"} <= RECORDS.keys()
    lines, expected = [], set()
    for name, record in RECORDS.items():
        key = next(iter(get_type_hints(record)))
        lines += [
            f"from {record.__module__} import {name}",
            f"def right_{name}(record: {name}) -> object: return record['{key}']",
            f"def wrong_{name}(record: {name}) -> object: return record['{key}s']",
        ]
        expected.add(f'{len(lines)}: TypedDict "{name}" has no key "{key}s"')
    (tmp_path / "mypy.ini").write_text(SETTINGS)
    (tmp_path / "program.py").write_text("\n".join(lines))
    words = ["mypy", "--config-file=mypy.ini", "--cache-dir=cache", "--hide-error-codes"]
    done = subprocess.run(
        [sys.executable, "-m", *words, "--no-error-summary", "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    found = [line for line in done.stdout.splitlines() if ": note: " not in line]
    assert {line.removeprefix("program.py:").replace(" error:", "") for line in found} == expected


def test_records_are_checked_against_their_types() -> None:
    row = {
        "epoch": 1, "step": 5, "loss": 2.5, "evaluated_on": "val", "top1": 0.5, "ema_top1": None,
        "lr": 0.1, "seconds": 1, "images_per_s": 20.0,
    }  # fmt: skip
    assert mismatch(row, EPOCH_ROW) is None, "probe_top1 may be missing"
    for key, value in [
        ("top1", 1.5), ("probe_top1", "x"), ("evaluated_on", "test"), ("loss", None), ("epoch", 0),
        ("epoch", True), ("epoch", 1.0), ("lr", -1), ("seconds", float("inf")), ("ema_top1", []),
    ]:  # fmt: skip
        wrong = mismatch(row | {key: value}, EPOCH_ROW)
        assert wrong is not None
        assert wrong.startswith(f"{key} is {value!r}, expected ")
    for key in row:
        assert (
            mismatch({k: v for k, v in row.items() if k != key}, EPOCH_ROW) == f"{key} is missing"
        )
