"""Tests of observers: each hears everything, and nothing that it does changes the run."""

import dataclasses
import re
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Here, StopAfter, weights

import sprat
from sprat.data import Dataset
from sprat.errors import Interrupted, SpratError
from sprat.evaluation.records import EpochRow, RunResult, read_metrics
from sprat.training.observer import Observer
from sprat.training.run import Run

CONFIG = dataclasses.replace(SMALL, epochs=2)
EVENTS = ("started", "stepped", "epoch_ended", "evaluating", "finished", "closed")
PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "watch.md"


class Notes(Observer):
    """Observer that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def started(self, run: Run) -> None:
        self.heard.append("started")

    def stepped(self, run: Run) -> None:
        self.heard.append("stepped")

    def epoch_ended(self, run: Run, row: EpochRow) -> None:
        self.heard.append("epoch_ended")

    def evaluating(self, images: int) -> None:
        self.heard.append("evaluating")

    def finished(self, run: Run, results: RunResult) -> None:
        assert results == sprat.resume(run.folder, quiet=True).results
        self.heard.append("finished")

    def closed(self, run: Run) -> None:
        self.heard.append("closed")


class Meddler(Observer):
    """Observer that draws random numbers and changes the state of torch and of the network."""

    def _meddle(self, run: Run) -> None:
        torch.manual_seed(1)
        torch.rand(3)
        torch.set_grad_enabled(False)
        run.step.network.eval()

    started = stepped = _meddle

    def epoch_ended(self, run: Run, row: EpochRow) -> None:
        self._meddle(run)


class Broken(Observer):
    """Observer that fails in one event."""

    def __init__(self, error: BaseException, event: str) -> None:
        self.calls = 0

        def fail(*what: object) -> None:
            self.calls += 1
            raise error

        setattr(self, event, fail)


def _train(dataset: Dataset, output: Path, *observers: Observer, **options: Any) -> sprat.Run:
    return sprat.train(
        CONFIG, dataset=dataset, output=output, quiet=True, observers=observers, **options
    )


@pytest.fixture(scope="module")
def unwatched(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _train(tiny, tmp_path_factory.mktemp("unwatched") / "run").folder


def test_observer_receives_every_event_in_order(tiny: Dataset, tmp_path: Path) -> None:
    notes = Notes()
    _train(tiny, tmp_path / "run", notes)
    steps = len(notes.heard[1 : notes.heard.index("epoch_ended")])
    assert steps == 180 // CONFIG.batch_size
    epoch = ["stepped"] * steps + ["epoch_ended"]
    evaluating = notes.heard.count("evaluating")
    assert evaluating > 0
    rest = ["evaluating"] * evaluating + ["finished", "closed"]
    assert notes.heard == ["started", *epoch, *epoch, *rest]


def test_observer_is_closed_after_an_interruption(tiny: Dataset, tmp_path: Path) -> None:
    notes, asked = Notes(), StopAfter(2)
    with pytest.raises(Interrupted):
        _train(tiny, tmp_path / "run", notes, stopping=_stopping(asked))
    assert notes.heard == ["started", "stepped", "stepped", "closed"]


class _stopping:  # noqa: N801 - a context manager
    def __init__(self, asked: StopAfter) -> None:
        self.asked = asked

    def __enter__(self) -> StopAfter:
        return self.asked

    def __exit__(self, *error: object) -> None:
        pass


def test_observers_do_not_change_the_weights(
    tiny: Dataset, tmp_path: Path, unwatched: Path
) -> None:
    drawn = torch.get_rng_state()
    run = _train(tiny, tmp_path / "run", Meddler(), Notes())
    assert weights(run.folder) == weights(unwatched)
    rows = [
        [{k: row[k] for k in ("loss", "top1", "ema_top1")} for row in read_metrics(each)]  # type: ignore[literal-required]
        for each in (run.folder, unwatched)
    ]
    assert rows[0] == rows[1]
    assert torch.is_grad_enabled()
    torch.set_rng_state(drawn)


def test_failing_observer_is_removed_after_one_warning(
    tiny: Dataset, tmp_path: Path, unwatched: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = [(event, RuntimeError("its server is gone\x1b")) for event in EVENTS]
    ways += [("stepped", OSError(28, "full")), ("stepped", SystemExit(3))]
    broken, notes = [Broken(error, event) for event, error in ways], Notes()
    run = _train(tiny, tmp_path / "run", *broken, notes)
    assert [each.calls for each in broken] == [1] * len(ways)
    assert weights(run.folder) == weights(unwatched)
    assert notes.heard[-1] == "closed", "the others still hear everything"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(ways)
    for event, error in ways:
        name = type(error).__name__
        warning = f"sprat: The observer Broken failed in {event} ({name}: "
        assert any(line.startswith(warning) for line in lines), warning
    assert not any("\x1b" in line for line in lines)


def test_ctrl_c_in_an_observer_ends_the_run(tiny: Dataset, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _train(tiny, tmp_path / "run", Broken(KeyboardInterrupt(), "stepped"))


@pytest.mark.parametrize("wrong", [Notes, "tensorboard", [Notes], [None], Notes()])
def test_invalid_observers_are_refused(tmp_path: Path, wrong: Any) -> None:
    for verb in (
        lambda: sprat.train("quick", output=tmp_path / "run", observers=wrong),
        lambda: sprat.train_seeds("quick", seeds=2, output=tmp_path / "run", observers=wrong),
        lambda: sprat.resume(tmp_path / "run", observers=wrong),
    ):
        with pytest.raises(
            SpratError, match=r"^observers contains .* expected a list of instances"
        ):
            verb()


def test_observer_receives_events_of_each_seed(tiny: Dataset, tmp_path: Path) -> None:
    notes = Notes()
    found = sprat.train_seeds(
        CONFIG,
        seeds=2,
        dataset=tiny,
        output=tmp_path,
        quiet=True,
        observers=[notes],
    )
    assert len(found.summary["seeds"]) == 2
    assert [each for each in notes.heard if each in ("started", "closed")] == [
        *("started", "closed") * 2,
    ]


class TestTensorBoard:
    @staticmethod
    def _read(run: Path) -> Any:
        accumulator = pytest.importorskip(
            "tensorboard.backend.event_processing.event_accumulator"
        ).EventAccumulator
        found = accumulator(str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
        return found.Reload()

    def test_contains_metrics_settings_and_pictures(
        self, tiny: Dataset, tmp_path: Path, unwatched: Path
    ) -> None:
        pytest.importorskip("tensorboard")
        run = _train(tiny, tmp_path / "run", sprat.TensorBoard())
        assert weights(run.folder) == weights(unwatched)
        found, rows = self._read(run.folder), read_metrics(run.folder)
        for tag, key in (("loss", "loss"), ("lr", "lr"), ("val/ema_top1", "ema_top1")):
            points = [(point.step, point.value) for point in found.Scalars(tag)]
            assert points == [(row["epoch"], pytest.approx(row[key])) for row in rows]  # type: ignore[literal-required]
        (last,) = found.Scalars("final_val/top1")
        assert run.results["val"]
        assert last.value == pytest.approx(run.results["val"]["top1"])
        assert set(found.Tags()["images"]) == {"augmentation", "confusion", "curves"}
        for tag in found.Tags()["images"]:
            (image,) = found.Images(tag)
            assert image.encoded_image_string.startswith(b"\x89PNG")
            assert image.width > 200
        (settings,) = found.Tensors("settings/text_summary")
        assert b"batch_size = 16" in settings.tensor_proto.string_val[0]

    def test_a_resumed_run_has_each_point_once(self, tiny: Dataset, tmp_path: Path) -> None:
        """Check this after an epoch that was reported but lost and one saved but not reported."""
        pytest.importorskip("tensorboard")

        class Kill(Observer):
            def epoch_ended(self, run: Run, row: EpochRow) -> None:
                shutil.copy(run.folder / "last.pt", tmp_path / f"{row['epoch']}.pt")

        run = tmp_path / "run"
        asked = StopAfter(180 // CONFIG.batch_size * 2 - 1)
        with pytest.raises(Interrupted):
            _train(tiny, run, sprat.TensorBoard(), Kill(), stopping=_stopping(asked))
        shutil.copy(tmp_path / "1.pt", run / "last.pt")
        with pytest.raises(Interrupted):  # without TensorBoard
            sprat.resume(run, dataset=tiny, quiet=True, stopping=_stopping(StopAfter(1)))
        sprat.resume(run, dataset=tiny, quiet=True, observers=[sprat.TensorBoard()])
        found = self._read(run)
        assert [point.step for point in found.Scalars("loss")] == [1, 2]
        assert len(found.Images("augmentation")) == 1
        assert len(found.Tensors("settings/text_summary")) == 1

    def test_a_folder_that_cannot_be_written_does_not_end_the_run(
        self, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("tensorboard")

        class InTheWay(Observer):
            def started(self, run: Run) -> None:
                (run.folder / "tensorboard").write_text("a file")

        run = _train(tiny, tmp_path / "run", InTheWay(), sprat.TensorBoard())
        assert run.results["epochs"] == 2
        assert "sprat: The observer TensorBoard failed in started" in capsys.readouterr().err

    def test_on_the_command_line(self, here: Here, tmp_path: Path) -> None:
        pytest.importorskip("tensorboard")
        few = ("--train-images", 64, "--epochs", 1, "--optim.warmup-epochs", 0, "--model", "SpratT")
        where = ("--dataset", "shapes10", "--device", "cpu", "--output", tmp_path / "run")
        done = here("train", *where, *few, "--batch-size", 32, "--log", "tensorboard")
        assert done.returncode == 0, done.stderr
        assert [point.step for point in self._read(tmp_path / "run").Scalars("loss")] == [1]

    def test_says_what_to_install(self, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "tensorboard", None)
        done = here("train", "--log", "tensorboard")
        assert done.returncode == 2
        assert "TensorBoard is not installed. Install it with pip install 'sprat[ten" in done.stderr
        with pytest.raises(SpratError, match="is not installed"):
            sprat.TensorBoard()


class Fake(types.ModuleType):
    """Fake of a logging package that notes its calls and their arguments."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.calls: list[tuple[str, Any]] = []
        self.points: dict[int, dict[str, Any]] = {}


class FakeWandB(Fake):
    """Fake of the wandb functions that the page's code calls, with wandb's arguments."""

    def init(
        self,
        *,
        project: str,
        id: str,  # noqa: A002 - as wandb has it
        name: str,
        resume: str,
        config: dict[str, Any],
    ) -> "FakeWandB":
        assert not set("/\\#?%:") & set(id), "W&B refuses these in an id"
        assert resume == "allow"
        self.calls.append(("init", id))
        self.summary: dict[str, Any] = {}
        return self

    def log(self, data: dict[str, Any], *, step: int) -> None:
        assert step not in self.points, "logged twice"
        self.points[step] = data

    def finish(self) -> None:
        self.calls.append(("finish", None))


class FakeMLflow(Fake):
    """Fake of the mlflow functions that the page's code calls, with mlflow's arguments."""

    def start_run(self, *, run_id: str | None, run_name: str) -> Any:
        self.calls.append(("init", run_id or "0a1b"))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id or "0a1b"))

    def log_params(self, params: dict[str, Any]) -> None:
        assert all(len(str(value)) <= 500 for value in params.values())

    def log_metrics(self, metrics: dict[str, float], *, step: int) -> None:
        assert step not in self.points, "logged twice"
        assert all(isinstance(value, float) for value in metrics.values())
        self.points[step] = metrics

    def log_artifact(self, local_path: Path) -> None:
        assert Path(local_path).is_file()

    def end_run(self) -> None:
        self.calls.append(("finish", None))


@pytest.mark.parametrize(
    ("package", "name", "fake"), [("wandb", "WandB", FakeWandB), ("mlflow", "MLflow", FakeMLflow)]
)
def test_documented_loggers_log_each_epoch_once(
    tiny: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    package: str,
    name: str,
    fake: type[Fake],
) -> None:
    (code,) = (
        each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
        if f"import {package}" in each
    )  # fmt: skip
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    logger, names = fake(package), dict[str, Any]()
    monkeypatch.setitem(sys.modules, package, logger)
    exec(code, names)
    run, steps = tmp_path / "run", 180 // CONFIG.batch_size
    with pytest.raises(Interrupted):
        _train(tiny, run, names[name](), stopping=_stopping(StopAfter(steps + 1)))
    assert list(logger.points) == [1]
    sprat.resume(run, dataset=tiny, quiet=True, observers=[names[name]()])
    assert capsys.readouterr().err == "", "the observer did not fail"
    rows = read_metrics(run)
    assert [point["loss"] for point in logger.points.values()] == [row["loss"] for row in rows]
    (begun, first), ended, (_, again), _ = logger.calls
    assert (begun, ended, again) == ("init", ("finish", None), first)


def test_documented_example_runs(
    tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, *_ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    names: dict[str, Any] = {}
    exec(code.split("\nrun = ")[0], names)
    _train(tiny, tmp_path / "run", names["Plateau"]())
