"""Tests of the command line as a user meets it, with real files and some real processes."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here
from cyclopts.completion.detect import ShellDetectionError
from PIL import Image

from sprat.cli import app
from sprat.data import load_dataset
from sprat.models import NetworkConfig
from sprat.settings.config import Config, OptimConfig
from sprat.settings.recipes import load_recipe, overrides, recipe_names
from sprat.text import command as to_paste
from sprat.training.run import Interrupted
from sprat.training.start import train


def sprat(*words: object, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sprat", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | {"COLUMNS": "200"} | env,
        timeout=300,
        check=False,
    )


# a kind of GPU that this machine does not have
NO_GPU = "cuda" if sys.platform == "darwin" else "mps"


# commands, correct and wrong, that must not load torch, with their exit codes
WITHOUT_TORCH = {
    "--help": 0,
    "--version": 0,
    "train --help": 0,
    "predict --help": 0,
    "data verify --help": 0,
    "models": 0,
    "models --json": 0,
    "models spratm": 0,
    "models nosuch": 2,
    "nosuch": 2,
    "train --nosuch 1": 2,
    "train --epochs many": 2,
    "train --epochs 0": 2,
    "train --optim.lr -1": 2,
    "train --tta 3": 2,
    "train --recipe nosuch": 2,
    "train --recipe nosuch.toml": 2,
    "train --dataset nosuch": 2,
    "train --model nosuch": 2,
    "train --distill.teacher nosuch": 2,
    "train --resume nosuch": 2,
    "train --seeds -1": 2,
    "evaluate nosuch": 2,
    "evaluate SpratM --tta 3": 2,
    "evaluate SpratM --threads -1": 2,
    "evaluate SpratM --dataset nosuch": 2,
    "evaluate SpratM --weights nosuch.pth": 2,
    "evaluate SpratM --mean 0.5": 2,
    "import SpratM --weights nosuch.pth --mean 0.5": 2,
    "predict": 2,
    "predict nosuch": 2,
    "predict SpratM": 2,
    "predict SpratM nosuch.png": 2,
    "predict nosuch.png --top 0": 2,
    "export nosuch": 2,
    "export SpratM --format nosuch": 2,
    "export SpratM --format pth --raw": 2,
    "export SpratM --format pth --output model.onnx": 2,
    "export SpratM --format pth --dataset nosuch": 2,
    "report nosuch --threads -1": 2,
    "summary nosuch": 2,
    "summary SpratM --side 0": 2,
    "check nosuch --max-parameters 1": 2,
    "check SpratM": 2,
    "check SpratM --max-macs -1": 2,
    "compare nosuch": 2,
    "runs nosuch": 2,
    "runs .": 0,
    "runs . --watch --json": 2,
    "serve --max-files 0": 2,
    "data show --dataset nosuch": 2,
    "data show --columns 0": 2,
    "data fetch --dataset nosuch": 2,
    "data verify --dataset nosuch": 2,
    "augment preview --recipe nosuch": 2,
    "augment preview --dataset nosuch": 2,
    "augment preview --model nosuch": 2,
}


def test_light_commands_do_not_import_torch(tmp_path: Path) -> None:
    """Run all commands in one process in which importing torch fails."""
    code = """
import json, sys
from sprat.cli import main
codes = {}
for line in json.loads(sys.argv[1]):
    sys.argv = ["sprat", *line.split()]
    try:
        main()
    except SystemExit as ended:
        codes[line] = ended.code
    except ImportError as error:
        codes[line] = str(error)
heavy = {"torch", "numpy", "matplotlib", "PIL"} & set(sys.modules)
with open("codes.json", "w") as file:
    json.dump([codes, sorted(heavy)], file)
"""
    (tmp_path / "torch.py").write_text("raise ImportError('torch is imported')")
    (tmp_path / "run").mkdir()
    subprocess.run(
        [sys.executable, "-c", code, json.dumps(list(WITHOUT_TORCH))],
        cwd=tmp_path / "run",
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        check=True,
    )
    codes, heavy = json.loads((tmp_path / "run" / "codes.json").read_text())
    assert codes == WITHOUT_TORCH
    assert heavy == []


def test_summary_does_not_import_the_compiler() -> None:
    code = (
        "import sys; from sprat.cli import app\n"
        "app(['summary', 'SpratM'], result_action='return_value')\n"
        "heavy = {'torch._dynamo', 'torch._inductor', 'sympy', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


class TestHelp:
    def test_lists_commands_and_settings(self, here: Here) -> None:
        assert all(word in here("--help").stdout for word in ("train", "evaluate", "predict"))
        text = here("train", "--help").stdout
        assert "--optim.lr" in text
        assert "Peak learning rate" in text
        assert "Images per step" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--epochs", "0"], "epochs is 0, expected 1 to 100,000"),
        (["train", "--epochs", "many"], '"many"'),
        (["train", "--epochs", "1", "--optim.warmup-epochs", "3"], "fewer than epochs (= 1)"),
        (["train", "--optim.lrr", "1"], "Did you mean --optim.lr?"),
        (["train", "--recipe", "quik"], "did you mean 'quick'"),
        (["train", "--dataset", "cifar"], "Available: auto, cifar10, cifar100, svhn"),
        (["train", "--dataset", "shapes10", "--model", "resnet"], "Unknown network 'resnet'"),
        (["train", "--dataset", "shapes10", "--batch-size", "20000"], "batch_size is 20000"),
        (["train", "--resume", "nowhere"], "There is no nowhere/config.json"),
        (["train", "--resume", "nowhere", "--seed", "3"], "Leave all others out"),
        (["train", "--dataset", "shapes10", "--device", NO_GPU], "Use --device auto"),
        (
            ["train", "--dataset", "shapes10", "--device", "cpu", "--precision", "fp16"],
            "needs a GPU",
        ),
        (["summary", "resnet9"], "Unknown network 'resnet9'; did you mean 'ResNet8'"),
        (["summary", "nowhere.safetensors"], "There is no model at nowhere.safetensors"),
        (["summary", "nowhere:Net"], "nowhere cannot be run: ModuleNotFoundError"),
        (["summary", "torch.nn:Conv4d"], "torch.nn has no network 'Conv4d'; did you mean"),
        (["summary", "torch.nn:Conv2d"], "torch.nn:Conv2d cannot be built: TypeError"),
        (["summary", "resnet8", "--side", "8"], "cannot be traced on images of 3 x 8 x 8"),
        (["summary", "resnet8", "--depth", "-1"], "--depth is -1"),
        (["summary", "torch.nn:Identity"], "returns (1, 3, 32, 32) for one image, expected"),
        (["summary", "resnet8", "--effective", "field.jpg"], "ends in .png"),
        (
            ["check", "resnet8"],
            "No limit is given. Give at least one, such as --max-parameters 200k",
        ),
        (
            ["check", "resnet8", "--min-accuracy", "85"],
            "--min-accuracy is 85.0, expected",
        ),
        (
            ["check", "resnet8", "--min-accuracy", "0.8"],
            "There is no resnet8/results.json. Name the folder of a run.",
        ),
        (["check", "resnet8", "--max-macs", "-1"], "budget.max_macs is -1"),
        (
            ["train", "--dataset", "shapes10", "--budget.max-parameters", "100000"],
            "does not fit the budget: parameters 150,690, limit ≤ 100,000",
        ),
        (
            ["train", "--dataset", "shapes10", "--budget.max-peak-memory", "9000"],
            "does not fit the budget: arena in fp32 166,632 bytes, limit ≤ 9,000 bytes",
        ),
        (["compare", "nowhere"], "There is no nowhere"),
        (["compare", "."], "neither results.json nor summary.json"),
        (["compare", "--no-published"], "nothing to compare"),
        (["compare", "--markdown", "--json"], "exclude each other"),
        (["compare", "--output", "plot.svg"], "ends in .png"),
        (["evaluate", "nowhere"], "There is no model at nowhere"),
        (["evaluate", "optimizedcifar10net"], "did you mean 'OptimizedCIFAR10Net200K'"),
        (["models", "nothing"], "Unknown pretrained model 'nothing'"),
        (["predict", "nowhere.safetensors", "x.png"], "There is no model at nowhere.safetensors"),
        (["predict", "nowhere.png"], "There is no file or folder nowhere.png"),
        (["predict", "OptimizedCIFAR10Net200K"], "No picture is given"),
        (["predict"], "No picture is given"),
        (["predict", "x.png", "--top", "0"], "--top is 0"),
        (["data", "show", "--output", "sheet.txt"], "ends in .png"),
        (["data", "show", "--columns", "0"], "--columns is 0"),
        (["augment", "preview", "--output", "sheet.jpg"], "ends in .png"),
        (["augment", "preview", "--recipe", "quik"], "did you mean 'quick'"),
        (["augment", "preview", "--augment.hue", "999"], "augment.hue is 999.0"),
        (
            ["train", "--dataset", "shapes10", "--tta", "3"],
            "tta is 3, expected 1, 2, 6, 8, 10 or 26",
        ),
        (["train", "--mixing.mixup", "0.9", "--mixing.ricap", "0.9"], "at most 1 in all"),
        (["trian"], 'Did you mean "train"?'),
    ],
)
def test_mistake_is_reported_with_exit_code_2(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert list(tmp_path.iterdir()) == [], "a mistake leaves nothing behind"


def test_a_mistake_ends_a_real_process_without_a_traceback(tmp_path: Path) -> None:
    done = sprat("train", "--epochs", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "epochs is 0, expected 1 to 100,000" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_unknown_recipe_key_is_reported_with_its_file(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text("[optim]\nlearning_rate = 1\nlr_ = 2")
    done = here("train", "--recipe", "mine.toml")
    assert done.returncode == 2
    assert "mine.toml: Unknown setting 'optim.learning_rate'" in done.stderr
    (tmp_path / "mine.toml").write_text("[optim]\nlrr = 1")
    assert "did you mean 'lr'" in here("train", "--recipe", "mine.toml").stderr


def test_explicit_cifar10_never_falls_back(
    here: Here, tmp_path: Path, no_network: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in no_network.items():
        monkeypatch.setenv(name, value)
    done = here("train", "--dataset", "cifar10")
    assert done.returncode == 2
    assert "CIFAR-10 could not be downloaded" in done.stderr
    assert "--data-dir or SPRAT_DATA" in done.stderr
    assert "shapes10" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_unwritable_stream_exits_with_code_2(stream: str) -> None:
    words = ["models", "--json"] if stream == "stdout" else ["models", "nosuch"]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | {stream: full}
        done = subprocess.run(
            [sys.executable, "-m", "sprat", *words], text=True, check=False, **streams
        )
    assert done.returncode == 2
    if stream == "stdout":
        assert done.stderr.startswith("sprat: Standard output cannot be written: No space left")
        assert done.stderr.count("\n") == 1


def test_run_with_moved_pictures_can_be_resumed(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for index in range(48):
        picture = tmp_path / "before" / ("dark", "light")[index % 2] / f"{index}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * index).save(picture)
    config = Config(
        dataset=str(tmp_path / "before"),
        device="cpu",
        threads=1,
        kernels="torch",
        network=NetworkConfig(name="SpratNet", widths=(8, 12), depth=(1,)),
        epochs=1,
        batch_size=16,
        tta=1,
        optim=OptimConfig(warmup_epochs=0.5),
    )
    run, now = tmp_path / "my run", tmp_path / "it's now"
    dataset = load_dataset(config.dataset, own=config.pictures)
    with pytest.raises(Interrupted):
        train(config, dataset, run, recipe="custom", should_stop=lambda: True)

    (tmp_path / "before").rename(now)
    done = here("train", "--resume", run)
    assert done.returncode == 2
    assert "is no longer there. If the data has moved, give its new place" in done.stderr
    assert (
        "trained on other images" in here("train", "--resume", run, "--dataset", "shapes10").stderr
    )

    (run / "model.safetensors").mkdir()
    again = ("train", "--resume", run, "--dataset", now)
    done = here(*again)
    assert done.returncode == 2
    assert "model.safetensors cannot be written: a folder has that name" in done.stderr
    assert f"Then resume with\n  {to_paste('sprat', *again)}\n" in done.stderr
    (run / "model.safetensors").rmdir()
    assert here(*again).returncode == 0
    assert json.loads((run / "results.json").read_text())["dataset"] == str(now)

    (run / "curves.png").unlink()  # as if killed before they were drawn
    assert here("train", "--resume", run).returncode == 0
    assert (run / "curves.png").exists()
    assert here("evaluate", run).returncode == 0


def test_unwritable_folder_is_reported(here: Here, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = here("train", "--dataset", "shapes10", "--output", tmp_path / "file" / "run")
    assert done.returncode == 2
    assert str(tmp_path / "file") in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluate_defaults_to_val_of_a_run(here: Here, small_run: Path) -> None:
    done = here("evaluate", small_run / "model.safetensors", "--split", "val")
    assert done.returncode == 2
    assert "it is not a run's folder" in done.stderr
    done = here("evaluate", small_run, "--json")
    assert json.loads(done.stdout)["split"] == "val"
    table = here("evaluate", small_run, "--split", "test", "--tta", "1").stdout
    assert "95 % interval" in table
    assert "half-moon" in table


def test_insufficient_memory_is_reported(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def train_too_large(*given: object, **options: object) -> None:
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr("sprat.training.start.train", train_too_large)
    done = here("train", "--dataset", "shapes10", "--device", "cpu")
    assert done.returncode == 2
    assert "not enough memory" in done.stderr
    assert "--batch-size" in done.stderr


MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]


class TestPredict:
    @pytest.mark.parametrize("mode", MODES)
    def test_accepts_any_mode(self, here: Here, small_run: Path, tmp_path: Path, mode: str) -> None:
        rng = np.random.default_rng(0)
        if mode == "I;16":
            image = Image.fromarray(rng.integers(0, 65536, (40, 70), dtype=np.uint16))
        else:
            image = Image.fromarray(rng.integers(0, 256, (40, 70, 3), dtype=np.uint8)).convert(mode)
        path = tmp_path / ("x.tif" if mode in ("CMYK", "YCbCr", "F", "I") else "x.png")
        image.save(path)
        done = here("predict", small_run, path, "--json", "--top", "2")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)[0]["predictions"]) == 2

    def test_unreadable_files_are_reported_and_others_classified(
        self, here: Here, small_run: Path, tmp_path: Path
    ) -> None:
        Image.new("RGB", (5, 300), "red").save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"not a picture")
        whole = (tmp_path / "a.png").read_bytes()
        (tmp_path / "c.png").write_bytes(whole[: len(whole) // 2])
        Image.new("RGB", (300, 5), "blue").save(tmp_path / "d.jpg")
        done = here("predict", small_run, tmp_path)
        assert done.returncode == 2
        assert done.stdout.count("%") == 6
        assert "a.png" in done.stdout
        assert "d.jpg" in done.stdout
        for name in ("b.png", "c.png"):
            assert f"{name} cannot be read as a picture" in done.stderr
        assert "Traceback" not in done.stderr

    def test_redirected_output_reaches_the_file(self, small_run: Path, tmp_path: Path) -> None:
        """Check that the progress bar on the terminal does not swallow the output."""
        Image.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
        terminal, its_other_end = pty.openpty()
        with (tmp_path / "out.txt").open("w") as out:
            subprocess.run(
                [sys.executable, "-m", "sprat", "predict", str(small_run), str(tmp_path / "a.png")],
                stdout=out,
                stderr=its_other_end,
                env=os.environ | {"TERM": "xterm"},
                check=True,
            )
        os.close(its_other_end)
        os.close(terminal)
        assert (tmp_path / "out.txt").read_text().count("%") == 3

    def test_missing_files_and_empty_folders_are_reported(
        self, here: Here, small_run: Path, tmp_path: Path
    ) -> None:
        assert "There is no file or folder" in here("predict", small_run, "nothing.png").stderr
        assert "contain no picture" in here("predict", small_run, tmp_path).stderr


def test_data_show_draws_a_sheet(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = here("data", "show", "--dataset", "shapes10")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("shapes10.png")
    with Image.open(tmp_path / "shapes10.png") as sheet:
        assert min(sheet.size) > 400


class TestRecipesWithOptions:
    """Tests that every setting of every recipe reaches each command that takes a recipe."""

    @pytest.mark.parametrize("recipe", recipe_names())
    @pytest.mark.parametrize("command", [["train"], ["augment", "preview"]], ids=" ".join)
    def test_every_recipe_setting_is_applied(self, recipe: str, command: list[str]) -> None:
        _, bound, _ = app.parse_args([*command, "--recipe", recipe], exit_on_error=False)
        assert bound.arguments["config"] == load_recipe(recipe)

    @pytest.mark.parametrize("command", [["train"], ["augment", "preview"]], ids=" ".join)
    def test_options_override_the_recipe(self, command: list[str]) -> None:
        words = [
            "--recipe",
            "reference",
            "--augment.hue",
            "3",
            "--mixing.ricap",
            "0",
            "--seed",
            "5",
        ]
        _, bound, _ = app.parse_args([*command, *words], exit_on_error=False)
        config, recipe = bound.arguments["config"], load_recipe("reference")
        assert overrides(config, recipe) == {"augment.hue": 3.0, "mixing.ricap": 0.0}
        assert config.seed == 5

    @pytest.mark.parametrize("command", [["train"], ["augment", "preview"]])
    def test_recipe_scales_with_epochs_except_given_options(self, command: list[str]) -> None:
        recipe = load_recipe("reference")
        words = [*command, "--recipe", "reference", "--epochs", "20"]
        _, bound, _ = app.parse_args(words, exit_on_error=False)
        assert bound.arguments["config"] == recipe.changed({"epochs": 20})
        _, bound, _ = app.parse_args([*words, "--patience", "9"], exit_on_error=False)
        assert bound.arguments["config"] == recipe.changed({"epochs": 20, "patience": 9})


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


class TestPreview:
    def test_size_follows_recipe_and_columns(self, here: Here, tmp_path: Path) -> None:
        sheet = tmp_path / "sheet.png"
        done = here("augment", "preview", "--dataset", "shapes10", "--output", sheet)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == str(sheet)
        whole = _pixels(sheet).shape
        plainer = tmp_path / "plainer.png"
        words = ("--dataset", "shapes10", "--recipe", "quick", "--columns", "4")
        assert here("augment", "preview", *words, "--output", plainer).returncode == 0
        fewer = _pixels(plainer).shape
        assert fewer[1] < whole[1], "fewer columns"
        assert fewer[0] < whole[0] / 2, "fewer rows"

    def test_is_determined_by_its_seed(self, here: Here, tmp_path: Path) -> None:
        pictures = []
        for name, seed in (("a", 1), ("b", 1), ("c", 2)):
            sheet = tmp_path / f"{name}.png"
            words = ["--dataset", "shapes10", "--columns", "3", "--seed", seed, "--output", sheet]
            app(["augment", "preview", *map(str, words)], result_action="return_value")
            pictures.append(_pixels(sheet))
        assert np.array_equal(pictures[0], pictures[1])
        assert not np.array_equal(pictures[0], pictures[2])


class TestSummary:
    def test_prints_a_network_as_text(self, here: Here) -> None:
        shown = here("summary", "OptimizedCIFAR10Net200K", "--depth", "1").stdout
        for text in ("150,690", "8,409,920", "109 x 109 px", "40.7 KiB in int8", "layer4"):
            assert text in shown

    def test_prints_json_and_draws_the_effective_field(self, here: Here, tmp_path: Path) -> None:
        drawn = tmp_path / "field.png"
        values = json.loads(here("summary", "resnet-8", "--effective", drawn, "--json").stdout)
        assert (values["model"], values["parameters"]) == ("ResNet8", 78_186)
        assert {"macs", "receptive_field", "layers", "peak_bytes", "flash_bytes"} <= values.keys()
        assert 1 < values["effective_side"] < values["receptive_field"]
        assert _pixels(drawn).shape[0] > 300

    def test_supports_saved_models_and_own_classes(
        self, here: Here, small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        values = json.loads(here("summary", small_run / "model.safetensors", "--json").stdout)
        assert (values["parameters"], values["side"]) == (1_693, 32)
        (tmp_path / "mine.py").write_text(
            "from torch import nn\n"
            "class Net(nn.Sequential):\n"
            "    def __init__(self, num_classes):\n"
            "        super().__init__(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten(),\n"
            "                         nn.Linear(8, num_classes))\n"
        )
        monkeypatch.chdir(tmp_path)
        values = json.loads(
            here("summary", "mine:Net", "--classes", "4", "--side", "9", "--json").stdout
        )
        assert values["parameters"] == 3 * 8 * 25 + 8 + 8 * 4 + 4
        assert values["receptive_field"] == 5
        assert values["macs"] == 3 * 8 * 25 * 5 * 5 + 8 * 4


def test_check_reports_exceeded_limits_by_exit_code(here: Here, small_run: Path) -> None:
    limits = ("--max-parameters", "200000", "--min-receptive-field", "20")
    kept = here("check", small_run, *limits, "--min-accuracy", "0.01")
    assert kept.returncode == 0, kept.stderr
    assert [line.split()[-1] for line in kept.stdout.splitlines()] == ["status", *["kept"] * 3]
    broken = here("check", small_run, *limits, "--max-macs", "800000", "--json")
    assert broken.returncode == 1
    verdicts = {v["metric"]: v for v in json.loads(broken.stdout)}
    assert verdicts["parameters"]["kept"] is True
    assert verdicts["MACs"]["kept"] is False
    assert verdicts["MACs"]["margin"] < 0


class TestCompletion:
    def test_is_installed_for_a_shell(
        self, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        started: list[str] = []
        for _ in range(2):
            done = here("--install-completion", "bash")
            assert done.returncode == 0, done.stderr
            started.append((tmp_path / ".bashrc").read_text())
        script = tmp_path / ".local" / "share" / "bash-completion" / "completions" / "sprat"
        assert done.stdout.startswith(f"Wrote {script}. Completion works")
        text = script.read_text()
        assert all(word in text for word in ("train", "evaluate", "--optim.lr", "--recipe"))
        assert str(script) in started[0]
        assert started[1] == started[0], "installed twice, but added only once"
        if bash := shutil.which("bash"):
            subprocess.run([bash, "-n", str(script)], check=True, capture_output=True)

    def test_unrecognised_shell_is_refused(
        self, here: Here, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def unknown() -> str:
            raise ShellDetectionError("unknown")

        monkeypatch.setattr("cyclopts.completion.detect.detect_shell", unknown)
        done = here("--install-completion")
        assert done.returncode == 2
        assert "sprat --install-completion bash" in done.stderr
        assert here("--install-completion", "tcsh").returncode == 2
