"""Tests of the real command `sprat train`, stopped by signals, resumed, and its model used."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Here
from PIL import Image

from sprat.data import Dataset

Ended = subprocess.CompletedProcess[str]
Stopped = tuple[Path, Ended, Ended]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, no_network: dict[str, str]) -> Stopped:
    folder = tmp_path_factory.mktemp("work")
    settings = ["--device", "cpu", "--final", "--epochs", "2", "--optim.warmup-epochs", "0.4"]
    settings += ["--train-images", "1200", "--batch-size", "16"]
    begin = ["--recipe", "quick", *settings, "--output", "run"]
    ends = []
    for words, number in ((begin, signal.SIGINT), (["--resume", "run"], signal.SIGTERM)):
        process = subprocess.Popen(
            [sys.executable, "-m", "sprat", "train", *words], cwd=folder, text=True,
            env=os.environ | no_network, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch"):  # the table's header: training begins
                break
        time.sleep(1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        ends.append(subprocess.CompletedProcess(words, process.returncode, out, err))
    return folder, *ends


class TestTraining:
    """Tests of one run: fallback, Ctrl-C, SIGTERM, resume, curves, evaluate, predict."""

    def test_signals_save_and_print_the_resume_command(self, stopped: Stopped) -> None:
        folder, by_ctrl_c, by_sigterm = stopped
        assert by_ctrl_c.returncode == 128 + signal.SIGINT
        assert by_sigterm.returncode == 128 + signal.SIGTERM
        for done in (by_ctrl_c, by_sigterm):
            assert "sprat train --resume run" in done.stderr
            assert "Traceback" not in done.stderr
        assert (folder / "run" / "last.pt").exists()
        assert not (folder / "run" / "results.json").exists()

    def test_auto_says_that_it_trains_on_shapes10(self, stopped: Stopped) -> None:
        assert "TRAINING ON shapes10 INSTEAD" in stopped[1].stderr

    def test_resumed_run_finishes_with_a_usable_model(
        self,
        stopped: Stopped,
        here: Here,
        shapes10: Dataset,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = stopped[0]
        monkeypatch.chdir(folder)
        done = here("train", "--resume", "run")
        assert done.returncode == 0, done.stderr
        assert "resumed after step" in done.stdout
        assert "This is shapes10" in done.stdout
        run = folder / "run"
        assert {p.name for p in run.iterdir()} == {
            "config.json", "metrics.jsonl", "results.json", "curves.png", "model.safetensors",
            "last.pt",
        }  # fmt: skip
        with Image.open(run / "curves.png") as curves:
            assert curves.width > 600
        results = json.loads((run / "results.json").read_text())
        assert results["dataset"] == "shapes10"
        assert results["overrides"] == {
            "epochs": 2, "optim.warmup_epochs": 0.4, "train_images": 1200, "batch_size": 16
        }  # fmt: skip
        assert results["test"]["top1"] > 0.7, "two epochs of 1,200 images of shapes10"

        evaluated = here("evaluate", "run", "--json", "--device", "cpu")
        assert json.loads(evaluated.stdout)["top1"] == results["test"]["top1"]
        assert json.loads(evaluated.stdout)["split"] == "test"
        refused = here("evaluate", "run", "--split", "val")
        assert refused.returncode == 2
        assert "has no val" in refused.stderr

        # picture files are classified in order, each with all ten probabilities
        (folder / "pictures").mkdir()
        for i, image in enumerate(shapes10.test.images[:8]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"pictures/{i}.png")
        named = here("predict", "run", "pictures", "--json", "--top", "10")
        answers = json.loads(named.stdout)
        assert [Path(a["file"]).name for a in answers] == [f"{i}.png" for i in range(8)]
        for answer in answers:
            probabilities = [guess["probability"] for guess in answer["predictions"]]
            assert sum(probabilities) == pytest.approx(1, abs=1e-5)
            assert probabilities == sorted(probabilities, reverse=True)
