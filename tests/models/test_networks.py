"""Tests of specs of networks: names, settings, and a user's own code."""

import dataclasses
import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Here, weights
from PIL import Image
from twins import SPECS

from sprat.checkpoint import load_model, metadata, save_model
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.kernels import why_not
from sprat.models import NETWORKS, NetworkConfig, build_network, code, draft_network
from sprat.models.blocks import blueprint_of
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, overrides, to_toml
from sprat.training.observer import Observer
from sprat.training.start import resume, train

OWN = '''
"""Leaves a mark where it runs."""
import torch
from pathlib import Path
from torch import nn

Path(__file__).with_name("ran").touch()

class MyNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 4)
        self.head = nn.Linear(8, num_classes)

    def forward(self, images):
        return self.head(self.stem(images).relu().mean((2, 3)))

class Plain(MyNet):
    def __init__(self):
        super().__init__(10)

class Wide(MyNet):
    def __init__(self, num_classes=10, dropout=0.0, *, widths=(8,)):
        super().__init__(num_classes)
        self.widths = widths

class Broken(nn.Module):
    def __init__(self):
        super().__init__()
        raise KeyError("no such part")

class Silent(nn.Module):
    def forward(self, images):
        return images.mean()

not_a_network = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a file with a user's own networks, which has not been named with --code yet."""
    monkeypatch.setattr(code, "_used", {})
    path = tmp_path / "my_nets.py"
    path.write_text(OWN)
    return path


@pytest.mark.parametrize("spec", SPECS, ids=str)
class TestEverySpec:
    def test_every_parameter_gets_a_gradient(self, spec: NetworkConfig) -> None:
        torch.manual_seed(0)
        network = build_network(spec, 7).train()
        answers = network(torch.randn(4, 3, 32, 24))
        assert answers.shape == (4, 7)
        answers.square().mean().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())

    def test_is_supported_by_compiled_kernels(self, spec: NetworkConfig) -> None:
        """Check only that the kernels support it; test_kernels.py compares their results."""
        assert blueprint_of(build_network(spec)) is not None
        reason = why_not(draft_network(spec), torch.device("cpu"), 16)
        assert reason is None or "compiler" in reason

    def test_config_round_trip_keeps_it(self, spec: NetworkConfig) -> None:
        config = dataclasses.replace(SMALL, network=spec)
        assert Config.from_dict(config.to_dict()) == config
        assert SMALL.changed(overrides(config, SMALL)) == config

    def test_recipe_round_trip_keeps_it(self, spec: NetworkConfig, tmp_path: Path) -> None:
        path = tmp_path / "recipe.toml"
        path.write_text(to_toml(dataclasses.replace(SMALL, network=spec)))
        assert load_recipe(str(path)).network == spec


def test_a_spec_is_trained_saved_and_loaded(tiny: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(SMALL, network=SPECS[0], epochs=2, kernels="auto")
    results = train(config, tiny, tmp_path / "run", recipe="small")
    assert results["model"] == "SpratNet"
    assert results["network"] == {"name": "SpratNet", "widths": [8, 12], "depth": [1]}
    loaded = load_model(tmp_path / "run")
    assert loaded.spec == SPECS[0]
    parameters = sum(p.numel() for p in loaded.network.parameters())
    assert (
        parameters
        == results["parameters"]
        == sum(p.numel() for p in build_network(SPECS[0]).parameters())
    )


def test_one_number_stands_for_every_stage() -> None:
    one = Config.from_dict({"network": {"name": "SpratNet", "depth": 2, "widening": 1}})
    assert one.network == NetworkConfig(name="SpratNet", depth=(2,), widening=(1.0,))


class TestModelByName:
    def test_drops_the_other_settings(self) -> None:
        config = dataclasses.replace(SMALL, network=SPECS[1])
        assert config.changed({"model": "ResNet8"}).network == NetworkConfig(name="ResNet8")

    def test_keeps_settings_given_with_it(self) -> None:
        config = dataclasses.replace(SMALL, network=SPECS[1])
        changed = config.changed({"model": "SpratS", "network.depth": 2})
        assert changed.network == NetworkConfig(name="SpratS", depth=(2,))

    def test_is_read_from_older_recipes(self, tmp_path: Path) -> None:
        path = tmp_path / "old.toml"
        path.write_text('model = "sprat-s"\n')
        assert load_recipe(str(path)).network == NetworkConfig(name="sprat-s")

    def test_together_with_a_table_is_refused(self) -> None:
        with pytest.raises(SpratError, match=r"model is .SpratS., but .* table \[network\]"):
            Config.from_dict({"model": "SpratS", "network": {"depth": 2}})


REFUSED = [
    (NetworkConfig(name="ResNet8", widths=(8,)), r"network.widths is \[8\], but ResNet8 does not"),
    (NetworkConfig(name="SpratNet", widths=(8, 10)), "divisible by 4.* Take 8 or 12 instead of 10"),
    (NetworkConfig(name="SpratNet", widths=(2,)), "Take 4 or 4 instead of 2|Take 4"),
    (NetworkConfig(name="SpratNet", depth=(1, 2, 3)), "one for each of the 2 stages"),
    (NetworkConfig(name="SpratNet", kernels=(3, 4)), r"kernels is \[3, 4\], expected odd windows"),
    (NetworkConfig(name="OptimizedCIFAR10Net200K", strides=(1, 2)), "each of the 4 stages"),
    (NetworkConfig(name="OptimizedCIFAR10Net200K", kernels=(3,)), "widths, strides, depth"),
]


COUNTED = """

class Counted(MyNet):
    built = 0

    def __init__(self, num_classes):
        super().__init__(num_classes)
        Counted.built += 1
        self.number = Counted.built
"""


@pytest.mark.parametrize(("spec", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_invalid_settings_are_refused_by_name(spec: NetworkConfig, message: str) -> None:
    with pytest.raises(SpratError, match=message):
        build_network(spec)


@pytest.mark.parametrize(
    "values", [{"widths": 0}, {"widths": [8, -1]}, {"widths": "8"}, {"widths": 1e9}, {"depth": 65},
               {"kernels": 33}, {"widening": 0}, {"widening": float("nan")}, {"width": 8}],
)  # fmt: skip
def test_values_out_of_bounds_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(SpratError, match=f"network.{next(iter(values))}"):
        Config.from_dict({"network": values})


def test_file_claiming_a_huge_network_is_refused(tmp_path: Path) -> None:
    network = build_network("SpratS")
    from sprat.checkpoint import Model
    from sprat.data.imageset import Normalization

    huge = NetworkConfig(name="SpratNet", widths=(4096,) * 8, depth=(64,))
    norm = Normalization((0.5,) * 3, (0.2,) * 3)
    model = Model(network, "SpratNet", tuple("0123456789"), norm, 32, {}, huge)
    save_model(tmp_path / "m.safetensors", model)
    with pytest.raises(SpratError, match="cannot be used: it lacks"):
        load_model(tmp_path / "m.safetensors")


class TestOwnCode:
    def test_runs_only_if_named(self, own: Path) -> None:
        with pytest.raises(code.CodeNotNamed, match=f"--code {own}"):
            build_network(f"{own}:MyNet")
        assert not own.with_name("ran").exists()
        code.use(str(own))
        assert own.with_name("ran").exists()
        assert build_network(f"{own}:MyNet", 7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)

    def test_class_gets_only_arguments_it_accepts(self, own: Path) -> None:
        code.use(str(own))
        assert build_network(f"{own}:Plain").head.out_features == 10
        wide = build_network(NetworkConfig(name=f"{own}:Wide", widths=(3,)))
        assert wide.widths == (3,)
        with pytest.raises(
            SpratError, match=r"widths is \[3\], but .*MyNet does not have this setting"
        ):
            build_network(NetworkConfig(name=f"{own}:MyNet", widths=(3,)))

    def test_is_found_after_the_file_moved(self, own: Path, tmp_path: Path) -> None:
        moved = own.rename(tmp_path / "nets.py")
        code.use(str(moved))
        assert build_network(f"{own}:Plain").head.out_features == 10

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("MyNat", "has no network 'MyNat'; did you mean 'MyNet'"),
            ("not_a_network", "has no network 'not_a_network'"),
            ("Broken", "cannot be built: KeyError: 'no such part'"),
        ],
    )
    def test_invalid_networks_are_refused(self, own: Path, name: str, message: str) -> None:
        code.use(str(own))
        with pytest.raises(SpratError, match=message):
            build_network(f"{own}:{name}")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("import nothing_of_that_name", "ModuleNotFoundError"),
            ("def", "SyntaxError"),
            ("import sys; sys.exit(3)", "SystemExit: 3"),
            ("open('no such file')", "No such file"),
        ],
    )
    def test_code_that_fails_is_reported(self, own: Path, text: str, message: str) -> None:
        own.write_text(text)
        with pytest.raises(SpratError, match=f"my_nets.py cannot be run: .*{message}"):
            code.use(str(own))

    def test_missing_file_is_reported(self, tmp_path: Path) -> None:
        with pytest.raises(SpratError, match=r"There is no file .*gone\.py"):
            code.use(str(tmp_path / "gone.py"))

    def test_may_import_modules_next_to_it(self, own: Path) -> None:
        own.with_name("my_layers_of_a_test.py").write_text(own.read_text())
        own.write_text("from my_layers_of_a_test import Plain\n")
        code.use(str(own))
        assert build_network(f"{own}:Plain").head.out_features == 10

    def test_is_trained_resumed_and_loaded(
        self, own: Path, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        config = SMALL.changed({"model": f"{own}:MyNet", "epochs": 2})
        run = tmp_path / "run"
        with pytest.raises(code.CodeNotNamed):
            train(config, tiny, run, recipe="small")
        assert not run.exists()
        code.use(str(own))
        train(config, tiny, run, recipe="small")
        whole = weights(run)

        class Ends(Observer):
            def epoch_ended(self, run: object, row: object) -> None:
                raise KeyboardInterrupt

        stopped = tmp_path / "stopped"
        with pytest.raises(KeyboardInterrupt):
            train(config, tiny, stopped, recipe="small", observer=Ends())
        monkeypatch.setattr(code, "_used", {})
        with pytest.raises(code.CodeNotNamed):
            resume(stopped, tiny)
        with pytest.raises(code.CodeNotNamed):
            load_model(run)
        code.use(str(own))
        resume(stopped, tiny)
        assert weights(stopped) == whole
        loaded = load_model(run)
        assert loaded.name == "MyNet"
        assert json.loads(json.dumps(metadata(loaded)))["network"] == {"name": f"{own}:MyNet"}

    def test_is_drafted_once_before_its_run(self, own: Path, tiny: Dataset, tmp_path: Path) -> None:
        own.write_text(own.read_text() + COUNTED)
        code.use(str(own))
        limits = {"model": f"{own}:Counted", "budget.max_parameters": 1_000, "epochs": 2}

        class Look(Observer):
            def started(self, run: object) -> None:
                self.built = draft_network(f"{own}:Counted").number - 1  # type: ignore[operator]

        look = Look()
        train(SMALL.changed(limits), tiny, tmp_path / "run", recipe="small", observer=look)
        assert look.built == 2  # the draft, and the network of the run

    def test_non_logit_outputs_are_refused_before_training(
        self, own: Path, tiny: Dataset, tmp_path: Path
    ) -> None:
        code.use(str(own))
        config = SMALL.changed({"model": f"{own}:Silent"})
        with pytest.raises(SpratError, match=r"returns \(\) for one image, expected logits"):
            train(config, tiny, tmp_path / "run", recipe="small")
        assert not (tmp_path / "run").exists()


def test_network_names_equal_class_names() -> None:
    for name in NETWORKS:
        assert type(draft_network(name)).__name__ == name


class TestOwnCodeOnTheCommandLine:
    """Tests of runs with own code: without --code, the error gives a command that works."""

    @pytest.fixture
    def run(self, own: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.chdir(own.parent)
        done = here(
            *("train", "--dataset", "shapes10", "--train-images", "64", "--epochs", "1"),
            *("--model", "my_nets.py:MyNet", "--output", "own"),
        )
        assert done.returncode == 0, done.stderr
        assert "sprat evaluate own --code my_nets.py" in done.stdout
        self._forget(monkeypatch)
        return Path("own")

    def _forget(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Forget the user's code, as a new process would."""
        monkeypatch.setattr(code, "_used", {})
        Path("ran").unlink(missing_ok=True)

    def test_every_command_suggests_code_option(
        self, run: Path, here: Here, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.new("RGB", (40, 30)).save("picture.png")
        for words in (
            ("evaluate", "own", "--json"),
            ("predict", "own", "picture.png", "--json"),
            ("export", "own", "--format", "pth"),
            ("summary", "own", "--json"),
            ("check", "own", "--max-parameters", "1000", "--json"),
            ("report", "own"),
        ):
            refused = here(*words)
            assert refused.returncode == 2, words
            assert refused.stdout == ""
            assert not Path("ran").exists(), words
            _, command = refused.stderr.rstrip().split("\n")
            assert shlex.split(command) == ["sprat", *words, "--code", "my_nets.py"]
            done = here(*shlex.split(command)[1:])
            assert done.returncode == 0, done.stderr
            self._forget(monkeypatch)

    def test_resuming_needs_code_option(
        self, run: Path, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        shutil.copytree(run, "stopped")
        before = (run / "model.safetensors").read_bytes()
        Path("stopped/results.json").unlink()
        refused = here("train", "--resume", "stopped")
        assert (refused.returncode, Path("ran").exists()) == (2, False)
        assert "sprat train --resume stopped --code my_nets.py" in refused.stderr
        done = here("train", "--resume", "stopped", "--code", "my_nets.py")
        assert done.returncode == 0, done.stderr
        assert Path("stopped/model.safetensors").read_bytes() == before

    def test_a_recipe_that_names_it_does_not_run_it(self, run: Path, here: Here) -> None:
        Path("recipe.toml").write_text('epochs = 3\n[network]\nname = "my_nets.py:MyNet"\n')
        refused = here("train", "--recipe", "recipe.toml", "--dataset", "shapes10")
        assert (refused.returncode, Path("ran").exists()) == (2, False)
        assert "--code my_nets.py" in refused.stderr

    def test_compare_does_not_run_it(self, run: Path, here: Here) -> None:
        done = here("compare", "own", "--no-published", "--json")
        assert done.returncode == 0, done.stderr
        (entry,) = json.loads(done.stdout)
        assert (entry["parameters"], entry["name"]) == (314, "MyNet, quick")
        assert not Path("ran").exists()


def test_network_settings_on_the_command_line(
    here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    short = ("train", "--dataset", "shapes10", "--train-images", "64", "--epochs", "1")
    for name, words in {
        "comma": ("--network.name", "SpratNet", "--network.widths", "8,12", "--network.depth", "1"),
        "space": ("--model", "SpratNet", "--network.widths", "8", "12", "--network.depth", "1,1"),
    }.items():
        done = here(*short, *words, "--output", name)
        assert done.returncode == 0, done.stderr
    assert weights(Path("comma")) == weights(Path("space"))
    refused = here(*short, "--model", "ResNet8", "--network.widths", "8,12")
    assert refused.returncode == 2
    assert "network.widths is [8, 12], but ResNet8 does not have this setting" in refused.stderr
    done = here("evaluate", "comma", "--json")
    assert json.loads(done.stdout)["network"]["widths"] == [8, 12]
