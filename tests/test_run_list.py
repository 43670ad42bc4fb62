"""Tests of listing runs: every one with its state, however damaged."""

import json
import shutil
import signal
import threading
from pathlib import Path

import pytest
from conftest import Here

import sprat
from sprat import display
from sprat.display import PlainConsole, watch_runs
from sprat.errors import SpratError
from sprat.run_folder import locked
from sprat.run_list import list_runs

BEFORE = Path(__file__).parent / "before"
RESULTS = Path(__file__).parents[1] / "results"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Folder of a finished run, an interrupted one, two seeds of a recipe, and one in a search."""
    folder = tmp_path / "runs"
    shutil.copytree(BEFORE / "finished", folder / "ended")
    shutil.copytree(BEFORE / "interrupted", folder / "halfway")
    for seed in (2, 10):
        shutil.copytree(RESULTS / "quick" / "seed-0", folder / "quick" / f"seed-{seed}")
    shutil.copytree(RESULTS / "quick" / "seed-2", folder / "a search" / "trial-1" / "fold-0")
    (folder / "notes").mkdir()
    (folder / "notes" / "todo.txt").write_text("nothing")
    return folder


def test_lists_runs_at_any_depth_with_results(runs: Path, here: Here) -> None:
    found = {run.name: run for run in sprat.list_runs(runs)}
    names = ["a search/trial-1/fold-0", "ended", "halfway", "quick/seed-2", "quick/seed-10"]
    assert list(found) == names
    result = json.loads((runs / "quick" / "seed-2" / "results.json").read_text())
    seed = found["quick/seed-2"]
    assert (seed.state, seed.group, seed.recipe) == ("finished", "quick", "quick")
    assert (seed.val, seed.test) == (None, result["test"]["top1"])
    assert (seed.parameters, seed.seconds) == (result["parameters"], result["seconds"])
    halfway = found["halfway"]
    assert (halfway.state, halfway.epochs, halfway.epochs_in_all) == ("interrupted", 1, 2)
    assert halfway.val == json.loads((runs / "halfway" / "metrics.jsonl").read_text())["ema_top1"]
    assert halfway.parameters is None, "an older config.json does not have it"
    done = here("runs", runs, "--json")
    assert json.loads(done.stdout) == [run.to_dict() for run in found.values()]
    (alone,) = list_runs(runs / "ended")
    assert (alone.name, alone.group) == ("ended", "")


def test_lists_runs_within_a_run(runs: Path) -> None:
    shutil.copytree(BEFORE / "finished", runs / "ended" / "search" / "trial-1")
    within = [(run.name, run.group) for run in list_runs(runs / "ended")]
    assert within == [("ended", ""), ("search/trial-1", "search")]


def test_prints_group_mean_above_its_runs(runs: Path, here: Here) -> None:
    lines = here("runs", runs).stdout.splitlines()
    assert [line.split("  ")[0] for line in lines[1:4]] == [
        *("a search/trial-1/fold-0", "ended", "halfway"),
    ]
    assert lines[4].split() == [
        *("quick/", "2", "runs", "quick", "OptimizedCIFAR10Net200K", "150,690"),
        *("—", "—", "mean", "88.15", "%", "16:20"),
    ]
    assert [line[:9] for line in lines[5:]] == ["  seed-2 ", "  seed-10"]


def test_sorts_and_filters(runs: Path, here: Here) -> None:
    def names(**options: object) -> list[str]:
        return [run.name for run in list_runs(runs, **options)]  # type: ignore[arg-type]

    seeds = ["quick/seed-2", "quick/seed-10"]
    assert names(sort="test")[:3] == ["a search/trial-1/fold-0", *seeds], "best first"
    assert names(sort="test", reverse=True)[:3] == [*seeds, "a search/trial-1/fold-0"]
    assert names(sort="parameters")[-1] == "halfway", "unknown values are last"
    assert names(sort="parameters", reverse=True)[-1] == "halfway"
    assert names(sort="name", reverse=True) == names()[::-1]
    assert names(sort="time")[:2] == ["halfway", "ended"]
    assert names(recipe="QUICK", sort="epochs") == ["a search/trial-1/fold-0", *seeds]
    assert names(network="sprat*", state="interrupted") == ["halfway"]
    assert names(dataset="nosuch") == []
    assert here("runs", runs, "--dataset", "nosuch").stdout == "There is no such run.\n"
    assert json.loads(here("runs", runs, "--dataset", "nosuch", "--json").stdout) == []


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("config.json", b"[" * 100_000),
        ("config.json", b'{"recipe": 1e999, "overrides": {}, "config": {}}'),
        ("config.json", b'{"recipe": "x", "overrides": {}, "config": {"nosuch": 1}}'),
        ("metrics.jsonl", b"\xff\xfe"),
        ("metrics.jsonl", b'{"epoch": 1}\n'),
        ("results.json", b"null"),
        ("results.json", b'{"seconds": 1' + b"0" * 5000 + b"}"),
    ],
)
def test_a_damaged_run_is_listed_as_such(
    tmp_path: Path, here: Here, file: str, content: bytes | None
) -> None:
    shutil.copytree(BEFORE / "interrupted", tmp_path / "bad\x1b[31m")
    shutil.copytree(BEFORE / "finished", tmp_path / "good")
    path = tmp_path / "bad\x1b[31m" / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    bad, good = list_runs(tmp_path)
    assert (bad.state, good.state) == ("damaged", "finished")
    assert bad.error
    assert file in bad.error
    assert "Traceback" not in bad.error
    done = here("runs", tmp_path)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert "bad\\x1b[31m is damaged: " in done.stdout


def test_file_or_missing_folder_is_refused(tmp_path: Path, here: Here) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SpratError, match=r"file is not a folder. Name a folder"):
        list_runs(tmp_path / "file")
    done = here("runs", tmp_path / "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nosuch does not exist. Name a folder that contains runs" in done.stderr
    assert here("runs", tmp_path, "--watch", "--json").returncode == 2


def test_does_not_follow_symlink_cycles(runs: Path) -> None:
    (runs / "notes" / "again").symlink_to(runs)
    assert len(list_runs(runs)) == 5


def test_training_run_shows_time_left(runs: Path, here: Here) -> None:
    metrics = runs / "halfway" / "metrics.jsonl"
    row = json.loads(metrics.read_text())
    row["seconds"] = 5000
    metrics.write_text(json.dumps(row))
    with locked(runs / "halfway"):
        (run,) = list_runs(runs, state="training")
        assert run.seconds_left == pytest.approx(5000, abs=1000)
        assert "training, 1:" in here("runs", runs).stdout
    assert list_runs(runs, state="training") == []


def test_watched_table_updates_while_a_run_trains(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display, "WATCH_EVERY", 0.01)
    seen = threading.Event()

    def read() -> list[sprat.ListedRun]:
        found = list_runs(runs)
        if [run.epochs for run in found if run.name == "halfway"] == [2]:
            seen.set()
        return found

    def train() -> None:
        with locked(runs / "halfway"):
            started.set()
            metrics = runs / "halfway" / "metrics.jsonl"
            first = metrics.read_text()
            again = first.replace('"epoch": 1', '"epoch": 2')
            whole = metrics.with_name("new")
            whole.write_text(first + again)
            whole.replace(metrics)
            assert seen.wait(60)

    started = threading.Event()
    trainer = threading.Thread(target=train)
    trainer.start()
    started.wait()
    with (runs / "shown").open("w+") as terminal:
        watch_runs(PlainConsole(file=terminal, force_terminal=True, width=200), read)
        trainer.join()
        terminal.seek(0)
        shown = terminal.read()
    assert "training" in shown
    assert "2/2" in shown
    assert shown.rindex("interrupted") > shown.rindex("training"), "the last state stays visible"


def test_ctrl_c_leaves_a_watched_table_without_an_error(
    runs: Path, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(display.time, "sleep", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under nohup
    with locked(runs / "halfway"):
        done = here("runs", runs, "--watch")
    signal.signal(signal.SIGINT, before)
    assert (done.returncode, done.stderr) == (0, "")
