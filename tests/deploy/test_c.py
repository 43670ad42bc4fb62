"""Tests of models in C: integer reference against torch, compiled code against the reference."""

import ctypes
import dataclasses
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_c import (
    STRICT,
    compile_files,
    integer_of,
    noise_images,
    program_of,
    scores_by,
    write_files,
)
from conftest import Here
from torch import Tensor, nn

import sprat
from sprat import zoo
from sprat.budget import memory_plan
from sprat.budget.graph import trace
from sprat.budget.layers import Add, Lowered, Map, layer_names, lower
from sprat.checkpoint import Model, load_model, save_model, with_ranges
from sprat.data import Dataset
from sprat.data.imageset import Normalization
from sprat.deploy import Options
from sprat.deploy.c import reference
from sprat.deploy.c.compiler import deepest_chain
from sprat.deploy.c.quantize import Rescale
from sprat.deploy.c.source import write_source
from sprat.deploy.writing import Exported, export
from sprat.display import make_console, print_compiled, print_contenders
from sprat.errors import SpratError
from sprat.evaluation.ranges import fold_all, measure_record, run
from sprat.models import NETWORKS, build_network
from sprat.run_folder import read_config
from sprat.training.images import split_off_val

NORMALIZATION = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
UNSUPPORTED = {"Tiniest"}
SMALLEST = [card["name"] for card in sorted(zoo.cards(), key=lambda card: card["parameters"])[:2]]
needs_gcc = pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc")


class Everything(nn.Module):
    """Network of layers of every kind, combined in every way that has an integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.BatchNorm2d(3)
        self.stem = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.pointwise = nn.Conv2d(3, 2, 1, stride=2)
        self.grouped = nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=4)
        self.tall = nn.Conv2d(6, 6, (5, 1), padding=(2, 0), groups=6, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.multiplied = nn.Conv2d(6, 12, 3, padding="same", groups=6)
        self.middle = nn.Linear(12 * 4 * 4, 9)
        self.head = nn.Linear(9, 7)

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat(
            [self.stem(self.mean(images)), F.relu6(self.pointwise(images))], 1
        )  # 8 channels
        mixed = self.grouped(both)
        left, right = mixed.split([6, 6], 1)
        left = self.norm(self.tall(left)) + F.hardtanh(right)
        joined = F.relu(torch.cat([left, right], 1))  # right is copied
        joined = joined + self.multiplied(mixed[:, 3:9])
        pooled = F.max_pool2d(joined, 3, 2, 1) + F.avg_pool2d(joined, 3, 2, 1)
        some = joined[:, 1:11:3, 1::2, ::2]  # some channels and pixels
        pooled = pooled + F.pad(some, (0, 0, 0, 0, 3, 5))
        pooled = F.hardtanh(F.channel_shuffle(F.pad(pooled, (1, 0, 0, 0))[..., :4], 3), 0.1, 3)
        return self.head(F.relu(self.middle(pooled.flatten(1))))


MOVES: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {  # layers; a move of 8 x 6 x 6
    "nothing": (0, lambda x: x),
    "there and back": (1, lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).relu()),  # a copy
    "one more": (0, lambda x: x.unsqueeze(2).squeeze(2)),
    "a slice": (0, lambda x: x[:, 2:5]),
    "a slice from the end": (1, lambda x: x[:, -3:].relu()),
    "narrow": (0, lambda x: x.narrow(1, 3, 4)),
    "every second channel": (1, lambda x: x[:, ::2]),
    "every second row": (1, lambda x: x[:, :, 1::2, :-1]),
    "backwards": (1, lambda x: x.flip(1)),
    "roll": (1, lambda x: x.roll(3, 1)),
    "shuffle": (1, lambda x: F.channel_shuffle(x, 4)),
    "shuffle by views": (
        1,
        lambda x: x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2).relu(),
    ),
    "a group": (1, lambda x: x.reshape(len(x), 4, 2, 6, 6)[:, :, 1]),
    "a group in a row": (0, lambda x: x.reshape(len(x), 4, 2, 6, 6)[:, 1]),
    "in turns": (1, lambda x: x.view(len(x), 4, 2, 6, 6).movedim(1, 2).reshape(x.shape)),
    "padding": (1, lambda x: F.pad(x, (1, 2, 0, 3))),
    "padding and cutting": (1, lambda x: F.pad(x, (-1, 2, 3, -1, 0, 4))),
    "clamped zeros": (1, lambda x: F.hardtanh(F.pad(x[:, :, ::5], (0, 0, 9, 9, 1, 0)), 0.1, 0.2)),
    "a module that pads": (1, nn.ZeroPad2d((0, 1, 0, 1))),
    "one column": (1, lambda x: F.pad(x[..., :1], (0, 5))),
}
UNMOVED: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "transposed": ("its output is not rows", lambda x: x.transpose(2, 3)),
    "mirrored": ("its output is not rows", lambda x: x.flip(3)),
    "other rows": ("its input has shape", lambda x: x.reshape(len(x), 2, 12, 12)),
    "padded with ones": ("it pads with other values", lambda x: F.pad(x, (1, 1), value=1.0)),
    "reflected": ("it pads with other values", lambda x: F.pad(x, (1,) * 4, mode="reflect")),
    "unshuffled": ("there is no integer form", lambda x: F.pixel_unshuffle(x, 2)),
}


class Moved(nn.Module):
    """Network whose scores are the means of a map, and of the same map after a move."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move
        self.stem = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        return torch.cat([(x + x).mean((2, 3)), self.move(x).mean((2, 3))], 1).relu()


def with_statistics(network: nn.Module) -> nn.Module:
    """Return the network in evaluation mode, with BatchNorm as if trained."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.3)
    return network.eval()


class TestLayersInFloatingPoint:
    @pytest.mark.parametrize("name", sorted(NETWORKS.keys() - UNSUPPORTED))
    def test_give_the_networks_logits(self, name: str) -> None:
        network = with_statistics(build_network(name))
        assert_same_logits(network, lower(trace(network, 16)), torch.randn(2, 3, 16, 16))

    def test_give_the_same_logits_for_every_layer_kind(self) -> None:
        network = with_statistics(Everything())
        assert_same_logits(network, lower(trace(network, 16)), torch.randn(4, 3, 16, 16))

    @pytest.mark.parametrize("kind", MOVES)
    def test_moves_keep_logits_and_add_expected_layers(self, kind: str) -> None:
        layers, move = MOVES[kind]
        network = Moved(move)
        lowered = lower(trace(network, 6))
        assert_same_logits(network, lowered, torch.randn(2, 3, 6, 6))
        assert len(lowered.layers) == 5 + layers  # convolution, sum, two means, ReLU

    @pytest.mark.parametrize("kind", UNMOVED)
    def test_unsupported_moves_are_refused(self, kind: str) -> None:
        reason, move = UNMOVED[kind]
        with pytest.raises(SpratError, match=f"cannot be computed in integers: {reason}"):
            lower(trace(Moved(move), 6))


def assert_same_logits(network: nn.Module, lowered: Lowered, images: Tensor) -> None:
    with torch.inference_mode():
        expected = network(images)
        *_, logits = run(lowered, fold_all(lowered, network.state_dict()), images)
    assert torch.allclose(logits.flatten(1), expected, rtol=1e-4, atol=1e-4)


class TestReference:
    def test_rescaling_rounds_half_up(self) -> None:
        rescale = Rescale.by([0.5, 0.25, 1.0, 3.0, 1e-30])
        sums = np.arange(-9, 10).reshape(1, -1, 1, 1).repeat(5, 0)
        given = reference._rescale(sums, rescale, slice(None))[:, :, 0, 0]
        for row, factor in zip(given, [0.5, 0.25, 1.0, 3.0, 0.0], strict=True):
            assert row.tolist() == np.floor(np.arange(-9, 10) * factor + 0.5).tolist()

    def test_layer_names_are_unique(self) -> None:
        layers = [
            Add(place=place, inputs=(), output=Map(1, 1, 1))
            for place in ("", "a.b_2", "a.b", "a.b", "a_b", "add_2", "")
        ]
        lowered = Lowered(tuple(layers), Map(3, 1, 1), Map(1, 1, 1))
        assert layer_names(lowered) == ["add", "a_b_2", "a_b", "a_b_3", "a_b_4", "add_2", "add_3"]

    def test_non_finite_values_are_refused(self) -> None:
        network = with_statistics(Everything())
        network.norm.running_var.fill_(float("nan"))
        with pytest.raises(SpratError, match="not finite"):
            integer_of(network, noise_images(2, 16), NORMALIZATION)

    def test_is_close_to_the_network(self) -> None:
        network, images = with_statistics(Everything()), noise_images(64, 16)
        integer = integer_of(network, images, NORMALIZATION)
        given = reference.scores(integer, images.numpy())
        logits = integer.scores.scale * (torch.from_numpy(given).float() - integer.scores.zero)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in vars(NORMALIZATION).values())
        with torch.inference_mode():
            expected = network((images / 255 - mean) / std)
        assert (logits - expected).abs().max() < 0.05 * (expected.max() - expected.min())


@needs_gcc
class TestC:
    @pytest.mark.parametrize("layout", ["planes", "hwc"])
    def test_every_layer_kind_equals_reference_byte_for_byte(
        self, layout: str, tmp_path: Path
    ) -> None:
        images = noise_images(64, 16)
        integer = integer_of(with_statistics(Everything()), images, NORMALIZATION)
        program = program_of(integer, layout=layout, prefix="every_1")
        given = scores_by(program, images, tmp_path)
        assert (given == reference.scores(integer, images.numpy())).all()

    @pytest.mark.parametrize("name", ["WRN16x1", "DenseNetBC40"])
    def test_networks_equal_reference_byte_for_byte(self, name: str, tmp_path: Path) -> None:
        images = noise_images(4, 16)
        integer = integer_of(with_statistics(build_network(name)), images, NORMALIZATION)
        program = program_of(integer)
        given = scores_by(program, images, tmp_path)
        assert (given == reference.scores(integer, images.numpy())).all()

    @pytest.mark.parametrize("name", SMALLEST)
    def test_smallest_pretrained_models_equal_reference_byte_for_byte(
        self, name: str, tmp_path: Path
    ) -> None:
        model, images = load_model(zoo.ZOO / name), noise_images(20, 32)
        integer = integer_of(model.network, images, model.normalization)
        program = program_of(integer)
        given = scores_by(program, images, tmp_path, "gcc -O2")
        assert (given == reference.scores(integer, images.numpy())).all()
        assert len(np.unique(given)) > 20

    def test_class_names_with_special_characters_are_kept(self, tmp_path: Path) -> None:
        names = ['"quoted" \\n ??/ */', "Żółw\n", "\x019", "x" * 255, "1234567"[:3], "a", "b"]
        integer = integer_of(with_statistics(Everything()), noise_images(4, 16), NORMALIZATION)
        program = dataclasses.replace(program_of(integer, names), title="*/ ??/ \\")
        write_files(program, tmp_path)
        compile_files(program, tmp_path, "gcc -shared -fPIC", "model.so")
        library = ctypes.CDLL(str(tmp_path / "model.so"))
        listed = (ctypes.c_char_p * len(names)).in_dll(library, "model_class_names")
        assert [name.decode() for name in listed] == names


@pytest.fixture(scope="module", autouse=True)
def briefly() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sprat.evaluation.ranges.CALIBRATION", 20)
        monkeypatch.setattr("sprat.deploy.agreement.COMPARED", 40)
        monkeypatch.setattr("sprat.deploy.agreement.TIMED_SECONDS", 0.0)
        yield


@pytest.fixture(scope="module")
def model() -> Model:
    network = with_statistics(Everything())
    names = tuple(f"class {n}" for n in range(7))
    return Model(network, "Everything", names, NORMALIZATION, 16, {})


@pytest.fixture(scope="module")
def sets(tiny: Dataset) -> dict[str, Any]:
    """Return images of seven classes for calibration, and for comparison."""
    return {
        name: images.subset((images.targets < 7).nonzero().flatten()[:40])
        for name, images in (("training", tiny.train), ("compared", tiny.test))
    }


class TestExport:
    def export(self, model: Model, path: Path, sets: dict[str, Any], **options: Any) -> Exported:
        overwrite = bool(options.pop("overwrite", False))
        wanted = Options(max_drop=100, max_class_drop=100, **options)
        return export(model, path, "c", wanted, overwrite=overwrite, **sets)

    @needs_gcc
    def test_the_folder_compiles_and_its_self_test_passes(
        self,
        model: Model,
        sets: dict[str, Any],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        folder = tmp_path / "made" / "here.v1"
        exported = self.export(model, folder, sets, layout="hwc", prefix="tiny", verify=True)
        names = {"tiny.h", "tiny.c", "tiny_data.c", "main.c", "Makefile"}
        assert {path.name for path in folder.iterdir()} == names
        assert [path.name for path in folder.parent.iterdir()] == ["here.v1"]
        assert folder.stat().st_mode & 0o777 == tmp_path.joinpath("made").stat().st_mode & 0o777
        assert exported.same_top1 > 0.9
        print_contenders(make_console(), exported.contenders)
        weights = memory_plan(model.network, 16).weights
        assert f"{weights:,} — " in " ".join(capsys.readouterr().out.split())
        strict = " ".join(STRICT)
        made = subprocess.run(
            ["make", "-C", folder, f"CFLAGS=-Os {strict}"],
            check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert "16 of 16 as expected" in made.stdout, made.stderr

    @needs_gcc
    def test_self_test_fails_on_wrong_scores(self, model: Model, tmp_path: Path) -> None:
        program = program_of(integer_of(model.network, noise_images(20, 16), NORMALIZATION))
        images = noise_images(2, 16).numpy()
        scores = reference.scores(program.network, images)
        scores[1, 3] ^= 1
        for name, content in write_source(program, images, scores).items():
            (tmp_path / name).write_bytes(content)
        made = subprocess.run(["make", "-C", tmp_path], check=False, capture_output=True, text=True)
        assert made.returncode != 0
        assert "1 of 2 as expected" in made.stdout

    def test_folder_is_overwritten_only_if_it_has_no_other_files(
        self,
        model: Model,
        sets: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        folder = tmp_path / "folder"
        self.export(model, folder, sets)
        with pytest.raises(SpratError, match="exists already"):
            self.export(model, folder, sets)
        (folder / "Makefile").write_text("changed")
        (folder / "selftest").write_text("which make makes")
        self.export(model, folder, sets, overwrite=True)
        assert "selftest" in (folder / "Makefile").read_text()
        (folder / "board.c").touch()
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        with monkeypatch.context() as early:
            early.setattr("sprat.deploy.writing.Source", None)  # refused before any work
            with pytest.raises(SpratError, match=r"also contains 'board\.c'"):
                self.export(model, folder, sets, overwrite=True)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]
        monkeypatch.chdir(folder)
        with pytest.raises(SpratError, match=r"\. also contains 'board\.c'"):
            self.export(model, Path(), sets, overwrite=True)

    @pytest.mark.parametrize("compiler", ["false", "nothing-of-this-name"])
    def test_verify_reports_a_failing_or_missing_compiler(
        self,
        compiler: str,
        model: Model,
        sets: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setenv("CC", compiler)
        folder = tmp_path / "folder"
        if compiler == "false":
            with pytest.raises(SpratError, match="The C compiler failed"):
                self.export(model, folder, sets, verify=True)
            assert not list(tmp_path.iterdir())
        else:
            self.export(model, folder, sets, verify=True)
            assert "no C compiler (nothing-of-this-name)" in capsys.readouterr().err

    def test_subfolder_with_a_generated_name_prevents_overwriting(
        self, model: Model, sets: dict[str, Any], tmp_path: Path
    ) -> None:
        (tmp_path / "folder" / "selftest").mkdir(parents=True)
        with pytest.raises(SpratError, match="also contains 'selftest'"):
            self.export(model, tmp_path / "folder", sets, overwrite=True)

    @pytest.mark.parametrize("prefix", ["", "9", "a-b", "ä", "main", "x" * 41])
    def test_invalid_c_prefix_is_refused(self, prefix: str) -> None:
        with pytest.raises(SpratError, match="prefix is "):
            Options(prefix=prefix)

    def test_unsupported_network_is_refused_before_loading_images(self, tmp_path: Path) -> None:
        network = build_network("Tiniest").eval()
        names = tuple(map(str, range(10)))
        save_model(
            tmp_path / "m.safetensors", Model(network, "Tiniest", names, NORMALIZATION, 16, {})
        )
        with pytest.raises(SpratError, match=r"layer_norm in stem\.1\.norm cannot be computed"):
            sprat.export(
                tmp_path / "m.safetensors",
                format="c",
                output=tmp_path / "folder",
                data_dir=tmp_path / "nowhere",
            )

    def test_class_name_with_null_character_is_refused(
        self, model: Model, sets: dict[str, Any], tmp_path: Path
    ) -> None:
        names = ("a\0b", *model.classes[1:])
        cut = Model(model.network, "Everything", names, NORMALIZATION, 16, {})
        with pytest.raises(SpratError, match="contains a null character"):
            self.export(cut, tmp_path / "folder", sets)
        assert not list(tmp_path.iterdir())


@needs_gcc
class TestCompiled:
    def test_sizes_match_compiler_and_plan(
        self, model: Model, sets: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        folder = tmp_path / "folder"
        options = Options(max_drop=100, max_class_drop=100, compile=True)
        found = export(model, folder, "c", options, **sets).compiled
        assert found is not None
        plan = memory_plan(model.network, 16)
        assert found.arena == plan.arena
        assert found.constants > plan.weights
        assert "-O2" in found.flags
        assert found.chain[0] == "model_classify"
        command = ["gcc", "-std=c11", "-O2", "-fstack-usage", "-c", "model.c"]
        subprocess.run(command, cwd=folder, check=True)
        rows = [row.split("\t") for row in (folder / "model.su").read_text().splitlines()]
        frames = {row[0].rpartition(":")[2].partition(".")[0]: int(row[1]) for row in rows}
        assert found.stack == sum(frames[name] for name in found.chain)
        assert found.stack >= frames["model_classify"] + max(frames["conv"], frames["add"])
        listed = subprocess.run(
            ["size", "-A", "model.o"], cwd=folder, check=True, capture_output=True, text=True
        ).stdout
        sections = {
            row.split()[0]: int(row.split()[1]) for row in listed.splitlines() if row[:1] == "."
        }
        assert found.code == sum(size for name, size in sections.items() if name[:5] == ".text")
        assert found.arena <= sections[".bss"] < found.arena + 64
        print_compiled(make_console(), found)
        assert f"stack {found.stack:,}" in capsys.readouterr().out

    def test_limits_count_stack_and_code(
        self, model: Model, sets: dict[str, Any], tmp_path: Path
    ) -> None:
        plan = memory_plan(model.network, 16)
        fits = Options(max_ram=plan.arena, max_flash=plan.weights, max_drop=100, max_class_drop=100)
        export(model, tmp_path / "fits", "c", fits, **sets)
        ram = Options(max_ram=plan.arena, compile=True)
        with pytest.raises(SpratError, match=r"\(arena .*, stack "):
            export(model, tmp_path / "folder", "c", ram, **sets)
        flash = Options(max_flash=plan.weights, compile=True)
        with pytest.raises(SpratError, match=r"\(constants .*, code "):
            export(model, tmp_path / "folder", "c", flash, **sets)
        assert [path.name for path in tmp_path.iterdir()] == ["fits"]

    @pytest.mark.parametrize(
        ("compiler", "words"),
        [
            ("false", "The C compiler failed"),
            ("nothing-of-this-name", "no C compiler"),
            ("true", "The compiler's size failed"),
            ("gcc '", "expected words as in a shell"),
        ],
    )
    def test_unusable_compiler_is_refused(
        self,
        compiler: str,
        words: str,
        model: Model,
        sets: dict[str, Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(SpratError, match=words):
            export(model, tmp_path / "folder", "c", Options(compile=True), **sets)
        assert not list(tmp_path.iterdir())


def test_deepest_chain_is_the_one_with_most_stack() -> None:
    frames = {"a": 8, "b": 100, "c": 60, "d": 50, "main": 999}
    calls = ["a b", "a c", "c d", "c memset", "main a"]
    graph = ['node: { title: "memset" label: "memset\\nstring.h:1:1" shape : ellipse }']
    for name, size in frames.items():
        graph.append(
            f'node: {{ title: "{name}" label: "{name}\\nm.c:1:1\\n{size} bytes (static)" }}'
        )
    for by, to in map(str.split, calls):
        graph.append(f'edge: {{ sourcename: "{by}" targetname: "{to}" label: "m.c:1:1" }}')
    assert deepest_chain("\n".join(graph), "a") == ["a", "c", "d"]
    assert deepest_chain("\n".join(graph), "nothing") == []


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"max_ram": "1K"}, r"bytes of RAM \(arena .*expected at most 1,024 \(--max-ram\)"),
        ({"max_flash": 100}, r"bytes of flash \(weights .*\(--max-flash\)"),
        ({"max_parameters": "1k"}, r"parameters, expected ≤ 1,000 \(--max-parameters\)"),
        ({"max_macs": "1k"}, r"MACs, expected ≤ 1,000 \(--max-macs\)"),
    ],
)
def test_model_over_a_limit_is_refused_before_loading_images(
    limits: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(SpratError, match=words):
        sprat.export(
            "SpratS",
            format="c",
            output=tmp_path / "folder",
            data_dir=tmp_path / "nowhere",
            **limits,
        )
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def file(tiny: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model file with ranges, whose dataset does not exist."""
    network = with_statistics(build_network("ResNet8"))
    about = {"dataset": "/nowhere/pictures"}
    model = Model(network, "ResNet8", tiny.train.classes, tiny.normalization, 16, about)
    ranges = measure_record(network, tiny.train, tiny.normalization)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    save_model(path, dataclasses.replace(model, ranges=ranges))
    return path


class TestStoredRanges:
    def export(self, file: Path, folder: Path, **options: Any) -> Exported:
        return sprat.export(
            file, format="c", output=folder, max_drop=100, max_class_drop=100, quiet=True, **options
        )

    def test_equal_those_that_export_measures(
        self, file: Path, tiny: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        exported = self.export(file, tmp_path / "stored")
        assert (exported.dataset, exported.split, exported.n) == ("shapes10", "drawings", 40)
        assert exported.contenders[-1].top1 is None
        assert "Compared on drawings" in capsys.readouterr().err
        exported = self.export(file, tmp_path / "measured", calibrate=tiny)
        assert (exported.dataset, exported.split) == ("shapes10", "test")
        files = {
            name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
            for name in ("stored", "measured")
        }
        assert files["stored"] == files["measured"]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda ranges: ranges["layers"].pop("stem_0"), "the layer stem_0 has none"),
            (lambda ranges: ranges["layers"].update(more=[0.0, 1.0]), "has no layer 'more'"),
            (lambda ranges: ranges["layers"].update(stem_0=[1.0, -1.0]), "from 1 to -1"),
            (lambda ranges: ranges["layers"].update(stem_0=[0.0, 1e-310]), "from 0 to 1e-310"),
            (lambda ranges: ranges["layers"].update(stem_0=[0.0]), r"'stem_0' is \[0\.0\]"),
            (lambda ranges: ranges["layers"].update(stem_0=[0.0, 1e300]), "expected a number"),
            (lambda ranges: ranges["layers"].update(stem_0=[0.0, None]), "expected a number"),
            (
                lambda ranges: ranges["layers"].update(classifier=[-1e9, 1e9]),
                "predicts the class that PyTorch predicts for",
            ),
            (lambda ranges: ranges["layers"].update(stem_0=[0.0, 1e30]), "scales differ by"),
            (lambda ranges: ranges.update(layers=[]), "layers is \\[\\], expected a table"),
            (lambda ranges: ranges.update(version=2), "version is 2"),
            (lambda ranges: ranges.clear(), "version is missing"),
        ],
    )
    def test_invalid_ranges_are_refused(
        self, change: Callable[[Any], Any], words: str, file: Path, tmp_path: Path
    ) -> None:
        model = load_model(file)
        ranges = json.loads(json.dumps(model.ranges))
        change(ranges)
        damaged = tmp_path / "model.safetensors"
        damaged.write_bytes(with_ranges(file, file.read_bytes(), ranges))
        assert sprat.load(damaged).classes == model.classes
        with pytest.raises(SpratError, match=words):
            self.export(damaged, tmp_path / "folder")
        assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]

    def test_calibrating_replaces_invalid_ranges(
        self, file: Path, tiny: Dataset, tmp_path: Path
    ) -> None:
        damaged = tmp_path / "model.safetensors"
        damaged.write_bytes(with_ranges(file, file.read_bytes(), {}))
        self.export(damaged, tmp_path / "folder", calibrate=tiny)

    def test_missing_ranges_need_the_dataset(self, file: Path, here: Here, tmp_path: Path) -> None:
        (tmp_path / "old.safetensors").write_bytes(with_ranges(file, file.read_bytes(), None))
        words = ("export", tmp_path / "old.safetensors", "--format", "c")
        done = here(*words, "--output", tmp_path / "folder")
        assert done.returncode == 2
        assert "since it contains no ranges of activations: Unknown dataset" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "folder").exists()

    def test_named_dataset_must_exist(self, file: Path, tmp_path: Path) -> None:
        for option in ("dataset", "calibrate"):
            with pytest.raises(SpratError, match="gone"):
                self.export(file, tmp_path / "folder", **{option: str(tmp_path / "gone")})

    def test_calibrate_is_refused_for_formats_without_ranges(self, file: Path) -> None:
        with pytest.raises(SpratError, match="onnx does not take --calibrate"):
            sprat.export(file, format="onnx", calibrate="shapes10")

    def test_a_run_stores_those_of_its_training_images(
        self, small_run: Path, small: Dataset
    ) -> None:
        model, (config, _, _) = load_model(small_run), read_config(small_run)
        kept, _ = split_off_val(small, config)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr("sprat.evaluation.ranges.CALIBRATION", model.ranges["images"])
            trained_on = small.train.subset(kept)
            expected = measure_record(model.network, trained_on, model.normalization)
        assert model.ranges == expected

    def test_leave_the_rest_of_the_file_unchanged(self, file: Path) -> None:
        model = load_model(file)
        without = with_ranges(file, file.read_bytes(), None)
        assert with_ranges(file, without, model.ranges) == file.read_bytes()
        assert with_ranges(file, without, None) == without
