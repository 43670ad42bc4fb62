"""Tests of a search's damaged files: refused and left alone, or read as they were."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Here as CommandLine
from pretended import Recorder, decide, plan, records

from sprat import SpratError
from sprat.searching.driver import Decision, Driver
from sprat.searching.journal import Journal
from sprat.searching.outcome import outcome_of, read_outcome, read_trials, write_trials
from sprat.searching.plan import read_plan, write_plan
from sprat.searching.space import Space

FLIPS = 60  # in each file, one at a time
NOT_WHAT_IT_WAS = (None, True, -1, 1e400, "x", [], [None], {}, {"x": None})
JOURNAL, SETTINGS, OUTCOME, TRIALS = "journal.log", "settings.json", "outcome.json", "trials.json"
PLAN = plan(trials=3, generation=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decision]:
    """Folder of a finished search, and its decision."""
    folder = tmp_path_factory.mktemp("whole")
    write_plan(folder, PLAN)
    driver = Driver(PLAN, folder, Recorder())
    decision = driver.run()
    write_trials(folder, decision)
    (folder / OUTCOME).write_text(json.dumps(outcome_of(decision, driver)))
    return folder, decision


def opened(path: Path, digest: str = PLAN.digest) -> list[dict[str, Any]]:
    """Return the trials in a journal."""
    journal = Journal(path, digest, Space(PLAN.config, PLAN.sides), PLAN.rungs[-1])
    return [trial.to_record() for generation in journal.read() for trial in generation]


def attempted(attempt: Callable[[], Any]) -> tuple[Any, str]:
    """Return the result of an attempt, or None and the error's message."""
    try:
        return attempt(), ""
    except SpratError as error:
        return None, str(error)


def flipped(content: bytes) -> Iterator[bytes]:
    """Yield copies of the content, each with one bit flipped."""
    draw = random.Random(0)
    for _ in range(FLIPS):
        changed = bytearray(content)
        changed[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        yield bytes(changed)


def retyped(values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield copies of the values, each with one of them missing or wrong."""
    for key in values:
        yield {other: value for other, value in values.items() if other != key}
        for wrong in NOT_WHAT_IT_WAS:
            yield {**values, key: wrong}


def relined(content: bytes) -> Iterator[bytes]:
    """Yield copies of a journal, each with one line missing, doubled or replaced."""
    lines = content.splitlines(keepends=True)
    for at, line in enumerate(lines):
        for instead in (b"", 2 * line, b"[]\n", b"5\n", b"{}\n", b"null\n", b"\0" * 9 + b"\n"):
            yield b"".join([*lines[:at], instead, *lines[at + 1 :]])


@pytest.mark.parametrize("damage", [flipped, relined])
def test_damaged_journal_is_refused_or_read_correctly(
    whole: tuple[Path, Decision], tmp_path: Path, damage: Any
) -> None:
    folder, decision = whole
    content = (folder / JOURNAL).read_bytes()
    expected = [trial.to_record() for trial in decision.trials]
    path, refused = tmp_path / JOURNAL, 0
    for damaged in damage(content):
        path.write_bytes(damaged)
        found, said = attempted(lambda: opened(path))
        if said:
            refused += 1
            assert said.startswith((f"{path} is damaged (", f"{path} is the journal of another"))
            assert path.read_bytes() == damaged
        else:
            assert found == expected[: len(found)]
    assert refused


def test_truncated_journal_loses_only_its_end(whole: tuple[Path, Decision], tmp_path: Path) -> None:
    folder, decision = whole
    content = (folder / JOURNAL).read_bytes()
    expected = [trial.to_record() for trial in decision.trials]
    path, draw = tmp_path / JOURNAL, random.Random(0)
    for size in (0, 1, len(content) - 1, *draw.sample(range(len(content)), 20)):
        path.write_bytes(content[:size])
        kept = content[: content.rfind(b"\n", 0, size) + 1].count(b'"record"')
        assert opened(path) == expected[:kept]
    for size in (1, len(content) - 1):
        path.write_bytes(content[:size])
        found = decide(tmp_path, Recorder(), trials=3, generation=3)
        assert records(found) == records(decision)
        assert opened(path) == [trial.to_record() for trial in found.trials]


def test_journal_of_another_search_is_refused_unchanged(
    whole: tuple[Path, Decision], tmp_path: Path
) -> None:
    content = (whole[0] / JOURNAL).read_bytes() + b'{"torn'
    (tmp_path / JOURNAL).write_bytes(content)
    config = dataclasses.replace(PLAN.config, seed=1)
    with pytest.raises(SpratError, match="is the journal of another search"):
        decide(tmp_path, Recorder(), trials=3, generation=3, config=config)
    assert (tmp_path / JOURNAL).read_bytes() == content


def read(folder: Path, name: str) -> Any:
    if name == SETTINGS:
        return read_plan(folder)
    if name == OUTCOME:
        return read_outcome(folder)
    return read_trials(folder, json.loads((folder / OUTCOME).read_text()))


@pytest.mark.parametrize("name", [SETTINGS, OUTCOME, TRIALS])
def test_damaged_records_are_refused_naming_the_file(
    whole: tuple[Path, Decision], tmp_path: Path, name: str
) -> None:
    folder, _ = whole
    content = (folder / name).read_bytes()
    (tmp_path / OUTCOME).write_bytes((folder / OUTCOME).read_bytes())
    path, values = tmp_path / name, json.loads(content)
    path.write_bytes(content)
    assert read(tmp_path, name)
    spoilt = [json.dumps(each).encode() for each in (None, 5, "x", [], {}, [[]])]
    if isinstance(values, list):
        spoilt += [json.dumps([each, *values[1:]]).encode() for each in retyped(values[0])]
    else:
        spoilt += [json.dumps(each).encode() for each in retyped(values)]
    refused = 0
    for damaged in [b"", b"\xff", content[:-9], *spoilt, *flipped(content)]:
        path.write_bytes(damaged)
        _, said = attempted(lambda: read(tmp_path, name))
        if said:
            refused += 1
            assert name in said
        assert path.read_bytes() == damaged
    assert refused > len(spoilt) / 2


def test_damaged_settings_end_the_command(
    whole: tuple[Path, Decision], tmp_path: Path, here: CommandLine
) -> None:
    inner = tmp_path / "run" / "search"
    inner.mkdir(parents=True)
    for damaged in (b"{", b"[]", b'{"config": 5}'):
        (inner / SETTINGS).write_bytes(damaged)
        done = here("search", "--resume", tmp_path / "run")
        assert (done.returncode, done.stdout) == (2, "")
        assert SETTINGS in done.stderr
        assert "Traceback" not in done.stderr
        assert [path.name for path in inner.iterdir()] == [SETTINGS]
