"""Tests of Config: round trips, recipes, and an error for every invalid value."""

import dataclasses
import json
import os
import re
from pathlib import Path

import pytest

from sprat.errors import SpratError
from sprat.models import find_class
from sprat.settings.config import Config, OptimConfig
from sprat.settings.field import Table
from sprat.settings.recipes import (
    load_recipe,
    overrides,
    proportion_note,
    recipe_names,
    recipe_path,
)
from sprat.training.prepare import settle

BAD = [
    ({"epochs": 0}, "epochs is 0, expected 1 to 100,000"),
    ({"batch_size": 1}, "batch_size is 1"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
    ({"weights": "best"}, "weights is 'best', expected 'ema' or 'last'"),
    ({"weights": "ema", "ema": {"decay": 0}}, "'last', since ema.decay is 0"),
    ({"patience": -1}, "patience is -1"),
    ({"seed": -1}, "seed is -1"),
    ({"val_fraction": 0.0}, "val_fraction is 0.0"),
    ({"device": "tpu"}, "device is 'tpu'"),
    ({"precision": "int8"}, "precision is 'int8'"),
    ({"threads": -2}, "threads is -2"),
    ({"epochs": 2, "optim": {"warmup_epochs": 2}}, r"fewer than epochs \(= 2\)"),
    ({"optim": {"lr": 0}}, "optim.lr is 0, expected a number above 0. The default is 0.25."),
    ({"optim": {"lr": float("nan")}}, "optim.lr is nan"),
    (
        {"optim": {"momentum": 1}},
        "optim.momentum is 1, expected a number of at least 0 and below 1",
    ),
    ({"optim": {"momentum": 0}}, "optim.nesterov is True"),
    ({"optim": {"weight_decay": -1}}, "optim.weight_decay is -1"),
    ({"optim": {"schedule": "step"}}, "optim.schedule is 'step', expected 'cosine' or 'linear'"),
    ({"optim": {"max_norm": float("inf")}}, "optim.max_norm is inf"),
    ({"augment": {"flip": 1.5}}, "augment.flip is 1.5"),
    ({"augment": {"crop": 17}}, "augment.crop is 17"),
    ({"augment": {"crop_mode": "wrap"}}, "augment.crop_mode is 'wrap'"),
    (
        {"augment": {"sides": [16, 4]}},
        r"augment.sides is \[16, 4\], expected a list, each item 8 to 512 pixels",
    ),
    ({"augment": {"sides": {}}}, "augment.sides is {}, expected a list"),
    (
        {"augment": {"sides": [16.5]}},
        r"augment.sides is \[16.5\], expected a list, each item a whole number",
    ),
    ({"augment": {"engine": "kornia"}}, "augment.engine is 'kornia', expected 'batched' or"),
    ({"augment": {"flip_mode": "alternating", "flip": 0.3}}, "augment.flip is 0.3, expected 0.5"),
    ({"augment": {"affine": -0.1}}, "augment.affine is -0.1, expected 0 to 1"),
    ({"augment": {"coarse_dropout": 2}}, "augment.coarse_dropout is 2"),
    ({"augment": {"shift": 0.6}}, "augment.shift is 0.6, expected 0 to 0.5"),
    ({"augment": {"rotate": 200}}, "augment.rotate is 200, expected 0 to 180 degrees"),
    ({"augment": {"saturation": 256}}, "augment.saturation is 256, expected 0 to 255"),
    ({"augment": {"hole_smallest": 0}}, "augment.hole_smallest is 0"),
    ({"augment": {"hole_largest": 3}}, r"at least augment.hole_smallest \(= 4\)"),
    ({"augment": {"engine": "albumentations"}}, "augment.crop is 4, expected 0, since the engine"),
    ({"augment": {"workers": -1}}, "augment.workers is -1"),
    ({"mixing": {"mixup": 1.1}}, "mixing.mixup is 1.1, expected 0 to 1"),
    ({"mixing": {"mixup": 0.6, "ricap": 0.6}}, "is 1.2, expected at most 1 in all"),
    ({"mixing": {"ricap_beta": 0}}, "mixing.ricap_beta is 0, expected 0.01 to 100"),
    (
        {"mixing": {"strength": "up"}},
        "mixing.strength is 'up', expected 'constant', 'rising' or 'falling'",
    ),
    ({"epochs": 3, "mixing": {"off_epochs": 4}}, r"at most epochs \(= 3\)"),
    ({"budget": {"max_parameters": -1}}, "budget.max_parameters is -1, expected 0"),
    (
        {"budget": {"stored_as": "int4"}},
        "budget.stored_as is 'int4', expected 'fp32', 'fp16' or 'int8'",
    ),
    ({"optim": {"name": "adam"}}, "optim.name is 'adam', expected 'sgd' or 'muon'"),
    ({"optim": {"muon_lr": 0}}, "optim.muon_lr is 0"),
    ({"kernels": "fast"}, "kernels is 'fast', expected 'auto', 'compiled', 'graph' or 'torch'"),
    ({"class_weights": "even"}, "class_weights is 'even', expected 'none' or 'balanced'"),
    ({"pictures": {"side": 8}}, "pictures.side is 8, expected 16 to 128 pixels"),
    ({"pictures": {"unreadable": "guess"}}, "pictures.unreadable is 'guess', expected 'refuse'"),
    (
        {"pictures": {"test_fraction": 0}},
        "pictures.test_fraction is 0, expected a number above 0 and at most 0.5",
    ),
    ({"pictures": {"test_seed": -1}}, "pictures.test_seed is -1"),
    ({"evaluate_every": 0}, "evaluate_every is 0, expected 1 to"),
    ({"ema": {"decay": 1.0}}, "ema.decay is 1.0"),
    ({"epochs": 10**20}, "epochs is 100000000000000000000, expected 1 to 100,000"),
    ({"epochs": 10**5000}, "epochs is int of too many digits, expected 1 to 100,000"),
    ({"batch_size": 10**9}, "batch_size is 1000000000, expected 2 to"),
    ({"threads": 99999999999999}, r"threads is 99999999999999, expected 0 \(one per core\) to"),
    ({"tta": 3}, "tta is 3, expected 1, 2, 6, 8, 10 or 26"),
    ({"tta": 2.0}, "tta is 2.0, expected 1, 2"),
    ({"tta": 10**20}, "tta is 1"),
    ({"distill": {"teacher": ["SpratL", ""]}}, "each item a string of 1 to 4,096 characters"),
    ({"augment": {"sides": 0}}, "augment.sides is 0, expected a list"),
    ({"patience": 10**20}, "patience is 1"),
    ({"evaluate_every": 10**20}, "evaluate_every is 1"),
    ({"train_images": 10**20}, "train_images is 1"),
    ({"seed": 2**63}, "seed is 9223372036854775808, expected 0 to"),
    ({"split_seed": 2**63}, "split_seed is 9"),
    ({"pictures": {"test_seed": 2**63}}, "pictures.test_seed is 9"),
    ({"augment": {"workers": 10**9}}, "augment.workers is 1"),
    ({"augment": {"hole_largest": 10**20}}, "augment.hole_largest is 1"),
    ({"budget": {"max_flash": 10**30}}, "budget.max_flash is 1"),
    ({"optim": {"lr": 10**400}}, "optim.lr is 1"),
    ({"optim": {"lr": "1"}}, "optim.lr is '1', expected a number"),
    ({"dataset": "a\0b"}, "dataset is 'a.x00b', expected a string"),
    ({"dataset": "\ud800"}, "dataset is '.ud800', expected a string"),
    ({"model": "x" * 100_000}, "network.name is 'xxx"),
    ({"epochs": [[[[[[[[1]]]]]]]]}, "epochs is "),
    ({"x" * 100_000: 1}, "Unknown setting 'xxx"),
    ([1], "the configuration is .1., expected a table"),
    ({"epochs": 2.5}, "epochs is 2.5, expected a whole number"),
    ({"epochs": True}, "epochs is True, expected a whole number"),
    ({"final": "yes"}, "final is 'yes', expected true or false"),
    ({"optim": 3}, "optim is 3, expected a table"),
    ({"optim": {"lrr": 1}}, "Unknown setting 'optim.lrr'; did you mean 'lr'?"),
    ({"epoch": 1}, "Unknown setting 'epoch'; did you mean 'epochs'?"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_invalid_value_is_refused_with_its_source(values: dict, message: str) -> None:
    with pytest.raises(SpratError, match=message) as caught:
        Config.from_dict(values, source="my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("recipe", recipe_names())
class TestEveryRecipe:
    def test_survives_a_json_round_trip(self, recipe: str) -> None:
        config = load_recipe(recipe)
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    def test_names_an_existing_network(self, recipe: str) -> None:
        find_class(load_recipe(recipe).model)

    def test_header_gives_command_and_expected_results(self, recipe: str) -> None:
        lines = recipe_path(recipe).read_text().splitlines()
        header = "\n".join(line for line in lines[: lines.index("")] if line.startswith("#"))
        assert f"sprat train --recipe {recipe}" in header
        assert "n = " in header or "not measured yet" in header


def test_reference_has_the_original_projects_settings() -> None:
    config = load_recipe("reference")
    assert (config.epochs, config.batch_size, config.label_smoothing) == (200, 128, 0.1)
    assert (config.dropout, config.patience, config.ema.decay) == (0.2, 20, 0.999)
    assert config.optim == OptimConfig(
        lr=0.05,
        momentum=0.9,
        nesterov=False,
        weight_decay=1e-4,
        decay_norm_and_bias=True,
        warmup_epochs=5,
        schedule="cosine",
        max_norm=1.0,
    )


@pytest.mark.parametrize("table", [Config, *Config.tables.values()])
def test_every_setting_has_help_and_valid_default(table: type[Table]) -> None:
    for name, declared in table.settings.items():
        assert re.fullmatch(r"[^\n]*[^.]\.", declared.help), name
        assert declared.converted(getattr(table(), name)) == getattr(table(), name)
    assert {f.name for f in dataclasses.fields(table)} == {*table.settings, *table.tables}


def test_overrides_are_changes_except_seed_and_final() -> None:
    recipe = load_recipe("quick")
    changed = recipe.changed({"epochs": 7, "seed": 3, "final": True, "optim.lr": 0.5})
    assert overrides(changed, recipe) == {"epochs": 7, "optim.lr": 0.5}
    assert overrides(recipe, recipe) == {}


@pytest.mark.parametrize("recipe", recipe_names())
@pytest.mark.parametrize("epochs", [1, 2, 1_000])
class TestChangedEpochs:
    def test_scale_settings_counted_in_epochs(self, recipe: str, epochs: int) -> None:
        began_as = load_recipe(recipe)
        config = began_as.changed({"epochs": epochs})
        for of in (lambda c: c.optim.warmup_epochs, lambda c: c.mixing.off_epochs):
            assert of(config) / epochs == pytest.approx(of(began_as) / began_as.epochs)
        assert bool(config.patience) == bool(began_as.patience)
        assert config.evaluate_every == began_as.evaluate_every
        assert overrides(config, began_as) == {"epochs": epochs}
        note = proportion_note(config, began_as)
        assert note is not None
        assert f"(was {began_as.optim.warmup_epochs:g})" in note

    def test_keep_explicit_settings_as_overrides(self, recipe: str, epochs: int) -> None:
        began_as = load_recipe(recipe)
        given = {"epochs": epochs, "optim.warmup_epochs": 0.5, "patience": 3}
        config = began_as.changed(given)
        assert (config.optim.warmup_epochs, config.patience) == (0.5, 3)
        assert overrides(config, began_as) == given
        assert began_as.changed(overrides(config, began_as)) == config

    def test_a_contradiction_is_refused(self, recipe: str, epochs: int) -> None:
        with pytest.raises(SpratError, match=rf"fewer than epochs \(= {epochs}\)"):
            load_recipe(recipe).changed({"epochs": epochs, "optim.warmup_epochs": epochs})


def test_recipes_own_epochs_change_nothing() -> None:
    for recipe in map(load_recipe, recipe_names()):
        assert recipe.changed({"epochs": recipe.epochs}) == recipe
        assert proportion_note(recipe, recipe) is None


def test_unscaled_warmup_of_older_runs_is_an_override() -> None:
    recipe = load_recipe("quick")
    before = dataclasses.replace(recipe, epochs=20)
    assert overrides(before, recipe) == {"epochs": 20, "optim.warmup_epochs": 3.0}
    assert recipe.changed(overrides(before, recipe)) == before


@pytest.mark.parametrize("told", [{"model": "SpratM"}, {"network": {"name": "SpratM"}}])
def test_older_run_keeps_former_widths(told: dict) -> None:
    assert Config.recorded(told, "config.json").network.widths == (48, 84)
    assert Config.from_dict(told).network.widths == ()
    now = settle(Config.from_dict(told | {"device": "cpu", "kernels": "torch"}))
    assert now.network.widths == (48, 80)
    assert Config.recorded(now.to_dict(), "config.json") == now


def test_own_recipe_loads_by_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("epochs = 3\n[optim]\nlr = 1\nwarmup_epochs = 0")
    assert load_recipe(str(path)).optim.lr == 1.0
    path.write_text("epochs = ")
    with pytest.raises(SpratError, match=r"mine\.toml is not valid TOML"):
        load_recipe(str(path))
    with pytest.raises(SpratError, match="There is no recipe file"):
        load_recipe(str(tmp_path / "other.toml"))


class TestHostileRecipes:
    """Tests that hostile recipes are refused at once, in one sentence that names the file."""

    @pytest.mark.parametrize(
        "text",
        [
            "epochs = " + "[" * 100_000,
            "epochs = " + "[\n" * 20_000,
            "epochs = " + "{a=" * 600,
            "epochs = " + "9" * 5_000,
            "epochs = 99999999999999999999",
            "threads = 99999999999999",
            ".".join(["a"] * 20_000) + " = 1",
            "\n".join(f"k{n}" + ".a" * 480 + " = 1" for n in range(30)),
            f"[{'.'.join(['a'] * 20_000)}]",
            "[optim]\nlr = nan",
            "[optim]\nlr = inf",
            "epochs = 1979-05-27",
            "epochs = 9999-99-99",
            'dataset = "a\\u0000b"',
            "epochs = 3\nepochs = 4",
            "epochs\0 = 3",
            "\0" * 1_000,
            "#" * 70_000,
            "\ufeffepochs = 3",
        ],
    )
    def test_invalid_text_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "mine.toml").write_text(text, encoding="utf-8")
        self._refused(tmp_path / "mine.toml")

    def test_non_text_and_special_files_are_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_bytes(b"dataset = '\xff\xfe'")
        self._refused(path)
        os.truncate(path, 100 << 20)
        self._refused(path)
        path.unlink()
        os.mkfifo(path)
        self._refused(path)
        path.unlink()
        path.mkdir()
        self._refused(path)
        self._refused(tmp_path / ("x" * 5_000 + ".toml"))

    def _refused(self, path: Path) -> None:
        with pytest.raises(SpratError) as caught:
            load_recipe(str(path))
        assert "mine.toml" in str(caught.value) or "x" * 50 in str(caught.value)
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize(
        "changes",
        [{"threads": 99999999999999}, {"epochs": 1e3}, {"epochs": "3"}, {"seed": -1}, {5: 1},
         {"optim.lr": float("nan")}, {"epochs": object()}, {"optim": 3}, {"epochs": 10**5000}],
    )  # fmt: skip
    def test_invalid_changes_from_python_are_refused(self, changes: dict) -> None:
        with pytest.raises(SpratError):
            Config().changed(changes)


WRITTEN = {  # as typed: its value as a number of parameters and of bytes; None: refused
    "0": (0, 0),
    "65536": (65_536, 65_536),
    "0065536": (65_536, 65_536),
    "20_000_000": (20_000_000, 20_000_000),
    "0x10000": (65_536, 65_536),
    "100k": (100_000, None),  # 100,000 or 102,400 bytes?
    "64K": (None, 65_536),
    "20M": (20_000_000, 20 * 2**20),
    "2G": (2 * 10**9, 2 * 2**30),
    "1.5M": (1_500_000, 1_572_864),
    "0.5K": (None, 512),
    "0.001K": (None, None),
    "1.0": (1, 1),
    "1.5": (None, None),
    "-1": (None, None),
    "-64K": (None, None),
    "64 K": (None, None),
    "64KB": (None, None),
    "64KiB": (None, None),
    "64m": (None, None),
    "65,536": (None, None),
    "1e6": (None, None),
    "K": (None, None),
    "": (None, None),
    "nan": (None, None),
    "9" * 20: (None, None),
    "9" * 5_000: (None, None),
    "9000000G": (9_000_000 * 10**9, None),  # more than 2**53 bytes
    "٣": (3, 3),
    "٣k": (None, None),
}


@pytest.mark.parametrize("name", ["max_parameters", "max_macs", "max_flash", "max_ram"])
@pytest.mark.parametrize("text", WRITTEN, ids=lambda text: text[:12])
def test_limits_accept_only_their_unit_suffixes(text: str, name: str) -> None:
    number = WRITTEN[text][name in ("max_flash", "max_ram")]
    if number is None:
        with pytest.raises(SpratError, match=rf"budget\.{name} is .*, expected .*\d") as caught:
            Config().changed({f"budget.{name}": text})
        assert len(str(caught.value)) < 300
    else:
        budget = Config().changed({f"budget.{name}": text}).budget
        assert getattr(budget, name) == number
        assert type(getattr(budget, name)) is int


def test_a_limits_error_names_the_value_and_gives_an_example() -> None:
    expected = r"max_ram is '64k', .* number of bytes, such as 65536 or 64K \(K is 1,024, M is 1"
    with pytest.raises(SpratError, match=expected):
        Config().changed({"budget.max_ram": "64k"})
    with pytest.raises(SpratError, match=r"max_macs is 1\.5, .* such as 100000 or 100k \(k is"):
        Config().changed({"budget.max_macs": 1.5})


class TestFormerName:
    """Tests of former names, which older recipes and runs contain."""

    def test_of_evaluate_every_still_works(self) -> None:
        assert Config.from_dict({"judge_every": 5}).evaluate_every == 5
        assert Config().changed({"judge_every": 5}).evaluate_every == 5

    def test_of_max_ram_still_works(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.toml"
        path.write_text("[budget]\nmax_peak_memory = 65_536")
        config = load_recipe(str(path))
        assert config.budget.max_ram == 65_536
        assert config.changed({"budget.max_peak_memory": "32K"}).budget.max_ram == 32_768
        assert config.changed({"budget.max_peak_memory": 0}).budget.max_ram == 0

    def test_conflicting_with_current_name_is_refused(self) -> None:
        both = {"max_peak_memory": 65_536, "max_ram": "64K"}
        assert Config.from_dict({"budget": both}).budget.max_ram == 65_536
        assert Config.from_dict({"budget": both | {"max_peak_memory": 0}}).budget.max_ram == 65_536
        for limits in (both | {"max_ram": "32K"}, both | {"max_peak_memory": "32K"}):
            with pytest.raises(SpratError, match=r"max_peak_memory, its former name, is \d+"):
                Config.from_dict({"budget": limits})
            with pytest.raises(SpratError, match="former name"):
                Config().changed({f"budget.{key}": value for key, value in limits.items()})

    def test_with_invalid_value_is_refused(self) -> None:
        with pytest.raises(SpratError, match=r"budget\.max_ram is '64k'"):
            Config.from_dict({"budget": {"max_peak_memory": "64k"}})


def test_unknown_recipe_error_suggests_the_nearest() -> None:
    with pytest.raises(SpratError, match="Unknown recipe 'quik'; did you mean 'quick'"):
        load_recipe("quik")
