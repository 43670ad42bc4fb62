"""Tests of exported models: without sprat they answer as torch does, or they are not written."""

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, Here
from PIL import Image
from torch import Tensor, nn

from sprat import __version__
from sprat.augment.transforms import normalize
from sprat.checkpoint import Model, load_model, metadata
from sprat.data import Dataset
from sprat.data.imageset import ImageSet, Normalization
from sprat.deploy import FORMATS, Options
from sprat.deploy.agreement import ClassDrop, check_class_drop, lost_by_chance
from sprat.deploy.int8 import shorten
from sprat.deploy.onnx import IR_VERSION, OPSET
from sprat.deploy.writing import Exported, export
from sprat.errors import SpratError
from sprat.evaluation.evaluate import predict_probabilities, top1
from sprat.models import NetworkConfig, build_network
from sprat.training.start import train

ROOT = Path(__file__).parents[2]
GRAPHS = ("onnx", "onnx-int8", "pt2")
SEEN_AS_0_TO_1 = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
Files = dict[str, Exported]


@pytest.fixture(autouse=True, scope="module")
def briefly() -> Iterator[None]:
    """Use fewer images than users do, and time each contender once, since no test checks times."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sprat.deploy.agreement.COMPARED", 200)
        monkeypatch.setattr("sprat.evaluation.ranges.CALIBRATION", 100)
        monkeypatch.setattr("sprat.deploy.agreement.TIMED_SECONDS", 0.0)
        monkeypatch.setattr("torch.onnx.export", Translated(torch.onnx.export))
        yield


class Translated:
    """Cache of torch.onnx.export, which takes seconds: one call per program and its weights."""

    def __init__(self, export: Callable[..., Any]) -> None:
        self.export, self.before = export, dict[bytes, bytes]()

    def __call__(self, program: Any, **options: Any) -> Any:
        import onnx

        key = hashlib.sha256(f"{program}{options}".encode())
        for tensor in (*program.state_dict.values(), *program.constants.values()):
            key.update(tensor.detach().numpy().tobytes())
        if key.digest() not in self.before:
            proto = self.export(program, **options).model_proto
            self.before[key.digest()] = proto.SerializeToString()
        content = self.before[key.digest()]
        return SimpleNamespace(model_proto=onnx.ModelProto.FromString(content))


@pytest.fixture(scope="module")
def run(small: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a network that is quick to export; `make system` exports all others."""
    run = tmp_path_factory.mktemp("runs") / "resnet8"
    train(
        dataclasses.replace(SMALL, network=NetworkConfig(name="ResNet8")),
        small,
        run,
        recipe="small",
    )
    return run


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    pytest.importorskip("onnxruntime", reason="needs sprat[export]")
    return load_model(run)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def files(model: Model, small: Dataset, folder: Path) -> Iterator[Files]:
    """Export the model in every format; long.onnx is int8 as onnxruntime's quantiser wrote it."""
    import onnx

    def keep_long(graph: Any) -> None:
        opset = onnx.helper.make_opsetid("", OPSET)
        long = onnx.helper.make_model(graph, ir_version=IR_VERSION, opset_imports=[opset])
        onnx.save(long, folder / "long.onnx")
        shorten(graph)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("sprat.deploy.int8.shorten", keep_long)
        yield _in_every_format(model, small, folder)


def _in_every_format(model: Model, small: Dataset, folder: Path) -> Files:
    return {
        format: export(
            model,
            folder / f"small{FORMATS[format].ending}",
            format,
            Options(max_drop=20, max_class_drop=100),
            compared=small.test,
            training=small.train,
        )
        for format in FORMATS
    }


def opened(path: Path) -> Any:
    import onnxruntime

    return onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])


def answers(file: Exported, images: Tensor) -> Tensor:
    """Return the answers of a graph that runs without sprat."""
    if file.format == "pt2":
        with torch.inference_mode():
            said: Tensor = torch.export.load(file.path).module()(images)
            return said
    return torch.from_numpy(opened(file.path).run(None, {"images": images.numpy()})[0])


def about(path: Path) -> dict[str, Any]:
    if path.suffix == ".onnx":
        text = opened(path).get_modelmeta().custom_metadata_map["sprat"]
    else:
        extra = {"sprat": ""}
        torch.export.load(path, extra_files=extra)
        text = extra["sprat"]
    described: dict[str, Any] = json.loads(text)
    return described


def noise(count: int, classes: int = 10, side: int = 32) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, side, side)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % classes, tuple(map(str, range(classes))))


def model_of(network: nn.Module, side: int = 32, classes: int = 10) -> Model:
    names = tuple(map(str, range(classes)))
    normalization = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    return Model(network.eval(), type(network).__name__, names, normalization, side, {})


@pytest.fixture
def untrained() -> Model:
    torch.manual_seed(0)
    return model_of(build_network(SMALL.network))


class TestEveryFormat:
    @pytest.mark.parametrize("format", GRAPHS)
    @pytest.mark.parametrize("batch", [1, 3])
    def test_matches_torch_for_any_batch_size(
        self, format: str, batch: int, files: Files, model: Model, small: Dataset
    ) -> None:
        images = small.test.images[:batch]
        expected = predict_probabilities(model.network, images, model.normalization)
        close = 0.3 if format == "onnx-int8" else 1e-4
        assert torch.allclose(answers(files[format], images), expected, rtol=0, atol=close)

    @pytest.mark.parametrize("format", GRAPHS)
    def test_contains_model_metadata(self, format: str, files: Files, model: Model) -> None:
        described = about(files[format].path)
        assert described.items() >= json.loads(json.dumps(metadata(model))).items()
        assert described["sprat"] == __version__
        assert described["input"].startswith("images: uint8")
        assert described["output"].startswith("probabilities: float32")

    @pytest.mark.parametrize("format", GRAPHS)
    def test_contains_no_paths_of_the_machine(self, format: str, files: Files) -> None:
        content = files[format].path.read_bytes()
        for place in (ROOT, Path(torch.__file__).parent, files[format].path.parent):
            assert str(place).encode() not in content

    def test_weights_alone_load_into_the_network(
        self, files: Files, model: Model, small: Dataset
    ) -> None:
        network = build_network(model.name)
        network.load_state_dict(torch.load(files["pth"].path, weights_only=True))
        images = small.test.images[:]
        said, expected = (
            predict_probabilities(n, images, model.normalization) for n in (network, model.network)
        )
        assert torch.equal(said, expected)

    def test_is_compared_with_torch(self, files: Files, model: Model, small: Dataset) -> None:
        expected = predict_probabilities(model.network, small.test.images, model.normalization)
        for format, file in files.items():
            names = [contender.name for contender in file.contenders]
            assert names == ["torch", *(["onnx"] if format == "onnx-int8" else []), format]
            assert file.n == len(small.test)
            first, last = file.contenders[0], file.contenders[-1]
            assert first.top1 == top1(expected, small.test.targets)
            if file.path.is_file():
                assert last.bytes == file.path.stat().st_size
            timed = [each.ms_for_one_image for each in file.contenders if each.name != "c"]
            assert all(milliseconds > 0 for milliseconds in timed)
            if format in GRAPHS:
                said = answers(file, small.test.images[:])
                assert last.top1 == top1(said, small.test.targets)
                assert file.same_top1 == top1(said, expected.argmax(1))

    def test_int8_is_less_than_half_as_large(self, files: Files) -> None:
        _, fp32, int8 = files["onnx-int8"].contenders
        assert int8.bytes < fp32.bytes / 2

    def test_shortened_int8_gives_identical_output(
        self, files: Files, folder: Path, small: Dataset
    ) -> None:
        import onnx

        short, long = files["onnx-int8"].path, folder / "long.onnx"
        assert short.stat().st_size < 0.9 * long.stat().st_size
        images = small.test.images[:].numpy()
        said, expected = (opened(path).run(None, {"images": images})[0] for path in (short, long))
        assert said.tobytes() == expected.tobytes()
        proto = onnx.load(short)
        arrays = [onnx.numpy_helper.to_array(constant) for constant in proto.graph.initializer]
        contents = [(each.dtype, each.shape, each.tobytes()) for each in arrays]
        assert len(set(contents)) == len(contents)
        assert not any(node.name or node.doc_string for node in proto.graph.node)
        assert {entry.key for entry in proto.metadata_props} == {"sprat"}

    def test_int8_weights_are_unsigned_so_sums_cannot_saturate(self, files: Files) -> None:
        """Guard against processors without VNNI, which add pairs of products in 16 bits."""
        import onnx

        graph = onnx.load(files["onnx-int8"].path).graph
        quantised = {node.input[0] for node in graph.node if node.op_type == "DequantizeLinear"}
        weights = [c for c in graph.initializer if c.name in quantised and len(c.dims) > 1]
        assert len(weights) == 10  # 9 convolutions, 1 linear layer
        # their products are added in 32 bits everywhere
        assert {value.data_type for value in weights} == {onnx.TensorProto.UINT8}

    @pytest.mark.parametrize("format", ["onnx", "onnx-int8"])
    def test_is_valid_onnx(self, format: str, files: Files) -> None:
        import onnx

        onnx.checker.check_model(onnx.load(files[format].path), full_check=True)

    def test_batchnorm_is_folded(self, files: Files) -> None:
        import onnx

        proto = onnx.load(files["onnx"].path)
        assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}

    def test_export_keeps_training_mode(self, model: Model, tmp_path: Path) -> None:
        model.network.train()
        export(model, tmp_path / "weights.pth", "pth", compared=noise(4))
        assert model.network.training
        model.network.eval()


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_raw_takes_normalised_images_and_gives_logits(
    format: str, untrained: Model, tmp_path: Path
) -> None:
    seen = noise(20)
    path = tmp_path / f"raw{FORMATS[format].ending}"
    file = export(untrained, path, format, Options(raw=True), compared=seen)
    assert about(path)["input"].startswith("images: float32")
    assert about(path)["output"].startswith("logits: float32")
    statistics = (untrained.normalization.mean, untrained.normalization.std)
    images = normalize(seen.images[:5], *map(torch.tensor, statistics)).contiguous()
    with torch.inference_mode():
        expected = untrained.network(images)
    assert torch.allclose(answers(file, images), expected, rtol=0, atol=1e-4)


def test_without_a_dataset_drawings_are_compared(untrained: Model, tmp_path: Path) -> None:
    other = model_of(untrained.network, side=40)
    file = export(other, tmp_path / "weights.pth", "pth")
    assert file.n == 200
    assert {contender.top1 for contender in file.contenders} == {None}
    with pytest.raises(SpratError, match="calibrated on training images"):
        export(other, tmp_path / "int8.onnx", "onnx-int8")


class TwoFaced(nn.Module):
    """Network that answers differently once exported, as if the exporter had a fault."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 10)
        self.bias = bias

    def forward(self, images: Tensor) -> Tensor:
        logits = self.linear(images.mean(dim=(2, 3)))
        if torch.compiler.is_exporting():
            return logits + self.bias * torch.arange(10)
        return logits


class Forgetful(nn.Linear):
    """Network whose weights are lost on the way into a file."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.mean(dim=(2, 3)))

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return {key: 0 * value for key, value in super().state_dict(*args, **kwargs).items()}


class TestDisagreement:
    @pytest.mark.parametrize(
        ("format", "bias"), [("onnx", 1.0), ("pt2", 1.0), ("pt2", 1e-3), ("pt2", float("nan"))]
    )
    def test_differing_graph_is_not_written(self, format: str, bias: float, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="needs sprat[export]")
        path = tmp_path / f"model{FORMATS[format].ending}"
        path.write_text("the file before")
        with pytest.raises(SpratError, match="does not agree with PyTorch"):
            export(model_of(TwoFaced(bias)), path, format, compared=noise(20), overwrite=True)
        assert path.read_text() == "the file before"
        assert list(tmp_path.iterdir()) == [path]

    def test_file_that_lost_weights_is_not_written(self, tmp_path: Path) -> None:
        with pytest.raises(SpratError, match="does not agree with PyTorch"):
            export(model_of(Forgetful(3, 10)), tmp_path / "a.pth", "pth", compared=noise(20))
        assert list(tmp_path.iterdir()) == []

    def test_int8_that_loses_accuracy_is_not_written(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="needs sprat[export]")
        torch.manual_seed(0)
        untrained = model_of(build_network("ResNet8"))
        seen = noise(200)  # of which the network is rarely sure
        said = predict_probabilities(untrained.network, seen.images, untrained.normalization)
        named_rightly = ImageSet(seen.images, said.argmax(1), seen.classes)
        parts = {"compared": named_rightly, "training": noise(50)}
        with pytest.raises(SpratError, match=r"100.00 % in fp32: .* at most 0 \(--max-drop\)"):
            export(untrained, tmp_path / "a.onnx", "onnx-int8", Options(max_drop=0), **parts)
        assert list(tmp_path.iterdir()) == []


class Bands(nn.Module):
    """Network that loses a class when quantised.

    It answers class k if band k is bright. For the lost class, the value that says so is so much
    smaller than for the others that 8 bits, with one scale for the map, round it to 0.
    """

    def __init__(self, lost: int | None) -> None:
        super().__init__()
        sizes = torch.ones(10)
        if lost is not None:
            sizes[lost] = 1e-4
        self.pool = nn.AvgPool2d((20, 2))
        self.shrink, self.grow = nn.Conv2d(3, 10, (1, 10)), nn.Linear(10, 10)
        with torch.no_grad():
            self.shrink.weight.zero_()
            self.shrink.bias.zero_()  # type: ignore[union-attr]
            for band in range(10):
                self.shrink.weight[band, :, 0, band] = sizes[band] / 3
            self.grow.weight.copy_(torch.diag(1 / sizes))
            self.grow.bias.zero_()
            self.grow.bias[0] = 0.2  # the answer if no band is seen

    def forward(self, images: Tensor) -> Tensor:
        return self.grow(self.shrink(self.pool(images)).relu().flatten(1))


def bands(counts: list[int]) -> ImageSet:
    """Return this many images of each class: its band, bright on black."""
    targets = torch.tensor([k for k, count in enumerate(counts) for _ in range(count)])
    images = torch.zeros(len(targets), 3, 20, 20, dtype=torch.uint8)
    for image, target in zip(images, targets.tolist(), strict=True):
        image[:, :, 2 * target : 2 * target + 2] = 200
    return ImageSet(images, targets, tuple(f"band {k}" for k in range(10)))


class TestClassDrop:
    """Tests of the accuracy of each class: an average hides a class that is lost."""

    @pytest.mark.parametrize("format", ["onnx-int8", "c"])
    @pytest.mark.parametrize(("lost", "count"), [(3, 4), (9, 4), (3, 20)])
    def test_model_that_loses_a_class_is_not_written(
        self, format: str, lost: int, count: int, tmp_path: Path
    ) -> None:
        pytest.importorskip("onnxruntime", reason="needs sprat[export]")
        counts = [20] * 10
        counts[lost] = count
        seen, network = bands(counts), Bands(lost)
        model = Model(network.eval(), "Bands", seen.classes, SEEN_AS_0_TO_1, 20, {})
        path = tmp_path / f"a{FORMATS[format].ending}"
        options = Options(max_drop=100 * count / sum(counts) + 0.01)  # permits the loss
        parts = {"compared": seen, "training": seen}
        expected = (
            rf"For the class 'band {lost}', .* {format} classifies 0 of {count} images correctly, "
            rf"and {count} in fp32: a drop of 100\.00 points, expected at most 5 \(--max-class-dr"
        )
        with pytest.raises(SpratError, match=expected):
            export(model, path, format, options, **parts)
        assert list(tmp_path.iterdir()) == []
        allowed = dataclasses.replace(options, max_class_drop=100)
        worst = export(model, path, format, allowed, **parts).worst_class
        assert worst == ClassDrop(f"band {lost}", count, before=count, after=0)

    def test_is_zero_if_no_class_is_lost(self, tmp_path: Path) -> None:
        pytest.importorskip("onnxruntime", reason="needs sprat[export]")
        seen = bands([1, 2, *[20] * 8])
        model = Model(Bands(None).eval(), "Bands", seen.classes, SEEN_AS_0_TO_1, 20, {})
        options = Options(max_drop=0, max_class_drop=0)
        parts = {"compared": seen, "training": seen}
        file = export(model, tmp_path / "a.onnx", "onnx-int8", options, **parts)
        assert file.worst_class is not None
        assert file.worst_class.points == 0

    @pytest.mark.parametrize(
        ("n", "points", "most"),
        [(1, 5, 1), (2, 5, 1), (10, 5, 2), (20, 5, 3), (100, 5, 9), (1_000, 5, 62), (100, 0, 0),
         (100, 1, 3), (100, 100, 100), (1_000, 50, 526)],
    )  # fmt: skip
    def test_loss_by_chance_is_a_binomial_quantile(self, n: int, points: float, most: int) -> None:
        assert lost_by_chance(n, points / 100) == most
        drawn = torch.distributions.Binomial(n, torch.tensor(points / 100)).sample((20_000,))
        assert (drawn > most).float().mean() < 0.056

    def test_gain_in_one_class_does_not_offset_another(self) -> None:
        classes = torch.arange(40) % 2
        seen = ImageSet(torch.zeros(40, 3, 8, 8, dtype=torch.uint8), classes, ("up", "down"))
        right = nn.functional.one_hot(classes, 2).float()
        before, after = right.clone(), right.clone()
        before[1:21:2] = torch.tensor([1.0, 0.0])  # wrong for ten of twenty "down"
        after[0:20:2] = torch.tensor([0.0, 1.0])  # wrong for ten of twenty "up"
        assert check_class_drop("x", right, before, seen, 0).points == 0
        with pytest.raises(SpratError, match=r"For the class 'up', .* 10 of 20 images correctly"):
            check_class_drop("x", after, before, seen, 5)


class TestCommand:
    @pytest.fixture
    def file(self, run: Path) -> Path:
        """Return a model file, given without its run: sprat finds its dataset by name."""
        return run / "model.safetensors"

    def test_prints_a_table_and_writes_to_current_folder(
        self, file: Path, model: Model, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        allowed = ("--max-drop", "50", "--max-class-drop", "100")
        done = here("export", file, "--format", "onnx-int8", *allowed)
        assert (done.returncode, done.stderr) == (0, "")
        path = tmp_path / "ResNet8-int8.onnx"
        assert list(tmp_path.iterdir()) == [path]
        assert re.search(rf"^onnx-int8 +{path.stat().st_size:,} ", done.stdout, re.MULTILINE)
        assert re.search(r"^torch fp32 .* %$", done.stdout, re.MULTILINE)
        assert "200 images of shapes10 (test): " in done.stdout
        said = (
            r"^The class that loses most: \w+, -?\d+\.00 points \(\d+ of 20 images correct in PyT"
        )
        assert re.search(said, done.stdout, re.MULTILINE)
        again = here("export", file, "--format", "onnx-int8")
        assert again.returncode == 2
        assert "exists already and is not overwritten" in again.stderr

    def test_prints_json_and_reports_comparison_on_drawings(
        self, file: Path, here: Here, tmp_path: Path
    ) -> None:
        path, elsewhere = tmp_path / "new" / "weights.pth", ("--dataset", tmp_path / "moved")
        (tmp_path / "moved").mkdir()
        done = here("export", file, "--format", "pth", "--output", path, "--json", *elsewhere)
        assert done.returncode == 0
        assert "Compared on drawings of shapes10 instead: " in done.stderr
        said = json.loads(done.stdout)
        assert said["path"] == str(path)
        assert (said["dataset"], said["split"], said["n"]) == ("shapes10", "drawings", 200)
        assert [contender["name"] for contender in said["contenders"]] == ["torch", "pth"]

    def test_refuses_int8_without_the_dataset(
        self, file: Path, model: Model, here: Here, tmp_path: Path
    ) -> None:
        int8 = ("--format", "onnx-int8", "--output", tmp_path / "a.onnx")
        (tmp_path / "moved").mkdir()
        done = here("export", file, *int8, "--dataset", tmp_path / "moved")
        assert done.returncode == 2
        assert "onnx-int8 is calibrated on images that the model was trained on" in done.stderr
        assert list(tmp_path.iterdir()) == [tmp_path / "moved"]

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (("--output", "model.bin"), "expected a name that ends in .onnx"),
            (("--format", "pt2", "--output", "model.pth"), "expected a name that ends in .pt2"),
            (("--format", "pth", "--raw"), "pth does not take --raw. Leave it out"),
            (("--format", "pth", "--max-drop", "-1"), "max_drop is -1.0"),
            (("--format", "pth", "--max-drop", "nan"), "max_drop is nan"),
            (("--format", "onnx-int8", "--max-class-drop", "-1"), "max_class_drop is -1.0"),
        ],
    )
    def test_refuses_invalid_options(
        self, options: tuple[str, ...], said: str, file: Path, here: Here
    ) -> None:
        done = here("export", file, *options)
        assert done.returncode == 2
        assert said in done.stderr

    def test_names_the_missing_extra(
        self, file: Path, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        for format in ("onnx", "onnx-int8"):
            done = here("export", file, "--format", format)
            assert done.returncode == 2
            assert "pip install 'sprat[export]'" in done.stderr

    @pytest.mark.parametrize("format", ["pt2", "pth"])
    def test_torch_formats_need_no_extra(
        self,
        format: str,
        untrained: Model,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        for name in ("onnx", "onnxscript", "onnxruntime"):
            monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
        path = tmp_path / f"net{FORMATS[format].ending}"
        export(untrained, path, format, compared=noise(4))
        assert path.exists()


def test_documented_program_classifies_a_picture(
    files: Files, model: Model, tmp_path: Path, small: Dataset
) -> None:
    page = (ROOT / "docs" / "how-to" / "export.md").read_text()
    (program,) = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(program.splitlines()) <= 10
    (tmp_path / "cats.onnx").write_bytes(files["onnx"].path.read_bytes())
    image = small.test.images[:1]
    content = io.BytesIO()
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(content, "PNG")
    (tmp_path / "cat.jpg").write_bytes(content.getvalue())  # still PNG, so that no pixel is lost
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    expected = predict_probabilities(model.network, image, model.normalization)
    assert done.stdout.strip() == model.classes[int(expected.argmax())]
