"""Tests of the compiled kernels, compared with their plain twin, the network itself."""

import copy
import dataclasses
import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from torch import Tensor, nn
from twins import (
    REASON,
    SPECS,
    built,
    distance,
    far_from_twin,
    features,
    gradients,
    needs_kernels,
    network,
)

from sprat import kernels
from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.evaluation.records import read_json
from sprat.kernels import LANES, CompiledNetwork, Inference, NoKernels, prepare, why_not
from sprat.kernels.cpu import build
from sprat.kernels.cpu.plan import CPUTrunk
from sprat.kernels.support import supported
from sprat.models import NETWORKS, NetworkConfig, build_network, draft_network
from sprat.models.blocks import Block, Blueprint, Head, Normed, Separable, blueprint_of, stem_of
from sprat.models.classifier import conv_bn
from sprat.models.optimized200k import OptimizedCIFAR10Net200K
from sprat.models.sprat import SpratBlock, SpratS
from sprat.training.ema import reestimate_batchnorm
from sprat.training.observer import Observer
from sprat.training.prepare import why_not_kernels
from sprat.training.run import Interrupted
from sprat.training.start import resume, settle_for, train

__all__ = ["network"]  # a fixture

CPU = torch.device("cpu")


@needs_kernels
class TestAgainstPlainTwin:
    @pytest.mark.parametrize("shape", [(32, 32), (16, 16), (20, 20), (28, 28), (17, 23)])
    def test_output_gradients_and_statistics_in_fp32(
        self, network: nn.Module, shape: tuple[int, int]
    ) -> None:
        fast, worst = CPUTrunk(network, bf16=False, threads=2), []
        # Among millions of values, one within rounding of 0 may fall on the other side of ReLU,
        # which changes every gradient before it a little. Not every draw has such a value.
        for _ in range(10):
            network.zero_grad()
            found = far_from_twin(network, fast, torch.randn(16, 3, *shape))
            assert found["pooled"] < 1e-5
            worst.append(max(found.values()))
            if sum(each < 1e-4 for each in worst) == 2:
                break
        assert sorted(worst)[1] < 1e-4, worst
        assert max(worst) < 0.05, worst

    def test_bf16_is_as_close_to_fp32_as_autocast(self, network: nn.Module) -> None:
        images = torch.randn(16, 3, 32, 32)
        automatic = copy.deepcopy(network)
        found = far_from_twin(network, CPUTrunk(network, bf16=True, threads=2), images)
        twin = copy.deepcopy(automatic)
        with torch.autocast("cpu", torch.bfloat16):
            pooled = features(automatic, images).float()
        theirs = features(twin, images)
        assert found["pooled"] < 1.5 * distance(pooled, theirs)
        exact, cast = gradients(twin, theirs), gradients(automatic, pooled)
        for name in exact:
            assert found[name] < 1.5 * distance(cast[name], exact[name]) + 0.02, name

    def test_three_steps_of_sgd_end_at_the_same_weights(self, network: nn.Module) -> None:
        twin = copy.deepcopy(network)
        forwards = CompiledNetwork(network, bf16=False, threads=2), twin
        images, targets = torch.randn(3, 16, 3, 20, 20), torch.randint(10, (3, 16))
        for forward, trained in zip(forwards, (network, twin), strict=True):
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
            for step in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(forward(images[step]), targets[step]).backward()
                optimizer.step()
        for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
            # A sum that rounds to the other side of ReLU's 0 moves the weights by up to 0.01 of
            # their norm, as it does for torch compared with a twin in float64.
            assert distance(ours, theirs) < 0.02, name

    @pytest.mark.parametrize("images", [1, 16, 150])
    def test_evaluation_matches_for_any_batch_size(self, network: nn.Module, images: int) -> None:
        network.train()
        network(torch.randn(16, 3, 16, 16))  # changes the running statistics
        fast = CompiledNetwork(network, bf16=False, threads=2).eval()
        batch = torch.randn(images, 3, 16, 16)
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        assert distance(fast(batch), network(batch)) < 1e-5
        assert all(torch.equal(b, before[name]) for name, b in network.named_buffers())

    def test_training_continues_after_an_evaluation(self, network: nn.Module) -> None:
        fast = CompiledNetwork(network, bf16=False, threads=2)
        images = torch.randn(64, 3, 16, 16)
        fast.eval()
        fast(images)
        fast.train()
        twin = copy.deepcopy(network)
        assert distance(fast(images), twin(images)) < 1e-5
        assert distance(network.stem[1].running_var, twin.stem[1].running_var) < 1e-5  # type: ignore[index,union-attr]

    def test_reestimated_statistics_match(self, network: nn.Module) -> None:
        twin, batches = copy.deepcopy(network), torch.randn(3, 32, 3, 16, 16)
        reestimate_batchnorm(CompiledNetwork(network, bf16=False, threads=2), batches)
        reestimate_batchnorm(twin, batches)
        for (name, ours), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
            assert distance(ours.float(), theirs.float()) < 1e-5, name

    def test_weights_loaded_later_are_used(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        images = torch.randn(16, 3, 32, 32)
        fast(images)
        network.load_state_dict(type(network)().state_dict())
        assert distance(fast(images), features(network, images)) < 1e-5


@needs_kernels
class TestTrunk:
    @pytest.mark.parametrize("bf16", [False, True])
    def test_threads_change_no_bit(self, network: nn.Module, bf16: bool) -> None:
        images, results = torch.randn(48, 3, 16, 16), []
        for threads in (1, 2, 3):
            copied = copy.deepcopy(network)
            pooled = CPUTrunk(copied, bf16=bf16, threads=threads)(images)
            results.append([pooled, *gradients(copied, pooled).values(), *copied.buffers()])
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))

    def test_backward_after_another_forward_is_refused(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        images = torch.randn(16, 3, 16, 16)
        early = fast(images)
        fast(images)
        with pytest.raises(RuntimeError, match="overwritten by a later"):
            early.sum().backward()

    def test_batch_size_not_divisible_by_16_is_refused(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        with pytest.raises(ValueError, match=r"\(17, 3, 16, 16\); expected a multiple of 16"):
            fast(torch.randn(17, 3, 16, 16))

    def test_images_in_any_memory_format(self, network: nn.Module) -> None:
        images, fast = torch.randn(32, 3, 16, 20), CPUTrunk(network, bf16=False, threads=2)
        expected = fast(images)
        for given in (
            images.to(memory_format=torch.channels_last),
            torch.cat((images, images), 3)[..., 20:],
            images.flip(0, 3).flip(0, 3).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
        ):
            assert torch.equal(fast(given), expected)

    def test_nan_propagates(self, network: nn.Module) -> None:
        images = torch.randn(16, 3, 16, 16)
        images[3, 1, 5, 5] = torch.nan
        assert CPUTrunk(network, bf16=False, threads=2)(images).isnan().any()

    def test_every_parameter_gets_a_gradient(self, network: nn.Module) -> None:
        forward = CompiledNetwork(network, bf16=False, threads=2)
        forward(torch.randn(16, 3, 16, 16)).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


@pytest.fixture
def nothing_loaded() -> Iterator[None]:
    build.load.cache_clear()
    yield
    build.load.cache_clear()


@pytest.fixture
def quick_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing_loaded: None) -> None:
    """Set up a compiler whose libraries only report that they are ready, and an empty cache."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    compiler = tmp_path / "compiler"
    source = "echo 'int ready(void) { return 1; }'"
    compiler.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != -o ]; do shift; done\n'
        f'{source} | cc -shared -fPIC -x c - -o "$2"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


class TestChoice:
    def test_why_not_names_the_reason(self) -> None:
        network = OptimizedCIFAR10Net200K()
        assert "multiple of 16" in str(why_not(network, CPU, 100))
        assert "for CPUs" in str(why_not(network, torch.device("mps"), 128))
        assert "do not support ResNet8" in str(why_not(draft_network("ResNet8"), CPU, 128))

    def test_training_without_a_compiler_falls_back_to_torch(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        build.load.cache_clear()
        try:
            config = dataclasses.replace(
                SMALL, epochs=1, optim=dataclasses.replace(SMALL.optim, warmup_epochs=0)
            )
            train(config, tiny, tmp_path / "run", recipe="small")
            with pytest.raises(SpratError, match=r"there is no C compiler .*--kernels auto"):
                settle_for(dataclasses.replace(config, kernels="compiled"), tiny)
        finally:
            build.load.cache_clear()
        machine = read_json(tmp_path / "run" / "results.json")["machine"]
        assert machine["kernels"] == "torch"
        assert "no-such-compiler" in machine["kernels_because"]

    @pytest.mark.usefixtures("nothing_loaded")
    def test_failing_compiler_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        compiler = tmp_path / "cc"
        compiler.write_text("#!/bin/sh\necho 'trunk.c: error: a strange land' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        with pytest.raises(NoKernels, match="a strange land"):
            build.load_trunk(False)

    @pytest.mark.usefixtures("nothing_loaded")
    def test_unwritable_cache_is_reported(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "sprat").write_text("a file where a folder should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "sprat"))
        if REASON is not None and "compiler" in REASON:
            pytest.skip(REASON)
        with pytest.raises(NoKernels, match="cannot be written or loaded"):
            build.load_trunk(False)

    def test_changing_any_c_file_changes_the_library_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        folder = shutil.copytree(build.FOLDER, tmp_path / "cpu")
        monkeypatch.setattr(build, "FOLDER", folder)
        places = [build._place("trunk", ["cc"])]
        sources = [path for path in folder.iterdir() if path.suffix in (".c", ".h")]
        for path in sources:
            path.write_text(path.read_text() + "\n")
            places.append(build._place("trunk", ["cc"]))
        assert len(set(places)) == 1 + len(sources)

    def test_every_c_file_names_its_plain_twin_and_tests(self) -> None:
        tests = "".join(path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py"))
        for path in build.FOLDER.glob("*.c"):
            header = path.read_text().split("*/")[0]
            assert len(path.read_text().splitlines()) < 350, path
            assert "lain twin" in header, path
            for name in re.findall(r"\bTest\w+|\btest_\w+(?!\w*\.py)", header):
                assert name in tests or (Path(__file__).parent / f"{name}.py").exists(), name

    def test_why_not_compiles_nothing(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        compiler, called = tmp_path / "cc", tmp_path / "called"
        compiler.write_text(f"#!/bin/sh\ntouch '{called}'\necho 'error: no' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert why_not(draft_network("SpratS"), CPU) is None
        assert not called.exists()
        build.load.cache_clear()
        try:
            with pytest.raises(NoKernels, match="failed: error: no"):
                prepare(CPU, bf16=False)
        finally:
            build.load.cache_clear()
        assert called.exists()
        assert "failed: error: no" in str(why_not(draft_network("SpratS"), CPU))

    @pytest.mark.usefixtures("quick_compiler")
    def test_damaged_library_is_rebuilt(self, tmp_path: Path) -> None:
        build.load("trunk")
        (library,) = (tmp_path / "sprat" / "kernels").glob("*.so")
        whole = library.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (flipped, whole[:-1], whole[:middle], b""):
            library.unlink()  # rather than overwrite it: this process has it mapped
            library.write_bytes(damaged)
            build.load.cache_clear()
            assert not build.is_built("trunk")
            assert build.load("trunk").ready() == 1
            assert library.read_bytes() == whole

    @needs_kernels
    def test_run_is_not_resumed_with_other_kernels(
        self, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = iter([False] * 5 + [True])
        with pytest.raises(Interrupted):
            train(SMALL, tiny, tmp_path / "run", recipe="small", should_stop=asked.__next__)
        monkeypatch.setenv("CC", "no-such-compiler")
        build.load.cache_clear()
        try:
            with pytest.raises(SpratError, match="'compiled', but there is no C compiler"):
                resume(tmp_path / "run", tiny)
        finally:
            build.load.cache_clear()

    @pytest.mark.usefixtures("quick_compiler")
    def test_compiling_is_announced_once(self, tiny: Dataset) -> None:
        reported: list[str] = []

        class Recorder(Observer):
            def preparing(self, what: str) -> None:
                reported.append(what)

        for _ in range(2):
            settle_for(SMALL, tiny, Recorder())
            build.load.cache_clear()
        assert len(reported) == 1
        assert "compiling" in reported[0]

    @needs_kernels
    def test_results_name_the_kernels(self, small_run: Path) -> None:
        assert read_json(small_run / "results.json")["machine"]["kernels"] == "compiled"

    @needs_kernels
    def test_supported_networks_are_as_listed(self) -> None:
        known = {name for name in NETWORKS if not why_not(draft_network(name), CPU)}
        assert known == {
            "OptimizedCIFAR10Net200K",
            "SpratNet",
            "SpratT",
            "SpratS",
            "SpratM",
            "SpratL",
        }
        with pytest.raises(NoKernels, match="do not support Linear"):
            CPUTrunk(nn.Linear(2, 2), bf16=False, threads=1)

    def test_batchnorm_without_momentum_is_left_to_torch_on_gpu(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("sprat.kernels._check_gpu", lambda device: None)
        network, gpu = build_network("SpratS"), torch.device("cuda")
        assert why_not(network, gpu) is None
        network.stem[1].momentum = None  # type: ignore[index,union-attr]
        assert "do not support BatchNorm2d(momentum=None)" in str(why_not(network, gpu))
        config = dataclasses.replace(SMALL, device="cuda", precision="bf16")
        assert "momentum=None" in str(why_not_kernels(config, "graph", network))
        assert why_not_kernels(config, "torch", network) is None

    def test_modified_blocks_are_refused(self) -> None:
        class Other(SpratBlock):
            def forward(self, x: Tensor) -> Tensor:
                return x

        for spoil in (
            lambda stage: stage.append(Other(28, 42, (1, 3, 5, 7))),
            lambda stage: setattr(stage[0], "bn1", nn.GroupNorm(1, 42)),
        ):
            network = build_network("SpratS")
            spoil(network.stages[0])  # type: ignore[index]
            with pytest.raises(NoKernels, match=r"do not support (SpratS|GroupNorm)"):
                CPUTrunk(network, bf16=False, threads=1)


class Toy(nn.Module):
    """A user's own network: a block with windows of three sizes, three convolutions and an identity
    shortcut, then one of stride 2 with a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 12), nn.ReLU())
        self.near, self.far = (depthwise(4, kernel) for kernel in (3, 7))
        layers = ((12, 18), (18, 26), (26, 12), (12, 20))
        self.layers = nn.ModuleList(nn.Sequential(*conv_bn(*widths, 1)) for widths in layers)
        self.down, self.side = depthwise(12, 5, 2), nn.Sequential(*conv_bn(12, 20, 1, 2))
        self.dropout, self.linear = nn.Dropout(0.0), nn.Linear(20, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        still, near, far = x.chunk(3, 1)
        y = torch.cat((self.far(still), near, self.near(far)), 1)
        y = self.layers[1](self.layers[0](y).relu()).relu()
        x = (x + self.layers[2](y)).relu()
        x = (self.layers[3](self.down(x)) + self.side(x)).relu()
        return self.linear(self.dropout(x.mean((2, 3))))

    def blocks(self) -> Blueprint | None:
        stem, still = stem_of(self.stem), nn.Identity()
        windows = ((self.far, still, self.near), (still,), (still,), (self.down,))
        convs = [Separable(w, *layer) for w, layer in zip(windows, self.layers, strict=True)]
        blocks = Block(tuple(convs[:3]), still), Block((convs[3],), Normed(*self.side))
        return stem and Blueprint(stem, blocks, Head(self.dropout, self.linear))


def depthwise(channels: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    padding = kernel // 2
    return nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False)


# for each block: its convolutions (sizes of windows, 1 for none; width; stride) and its shortcut
BLOCKS: dict[str, list[tuple[list[tuple[tuple[int, ...], int, int]], str]]] = {
    "the stem alone": [],
    "no window and no shortcut": [([((1,), 8, 1)], "none")],
    "a projection without a window": [([((1,), 10, 1)], "projection"), ([((3,), 10, 1)], "none")],
    "a projection beside a last convolution without a window":
        [([((5,), 14, 2), ((1,), 6, 1)], "projection")],
    "windows at the end": [([((1,), 12, 1), ((3, 1, 5), 6, 1)], "identity")],
    "odd numbers of channels under odd windows":
        [([((5,), 7, 1), ((3,), 9, 2), ((1, 7, 3), 5, 1)], "projection"),
         ([((1, 3, 5, 7, 1), 3, 1), ((1,), 5, 1)], "identity")],
    "a stride longer than the window": [([((3,), 8, 6), ((1, 5), 3, 1)], "projection")],
    "four convolutions, two strides": [([((7, 3), 8, 2), ((1,), 4, 1), ((1, 5), 16, 2),
        ((1,), 8, 1)], "projection"), ([((3,), 8, 1)], "identity")],
}  # fmt: skip


class Described(nn.Module):
    """A network of given blocks, computed in torch as the docstrings in models/blocks.py say."""

    def __init__(self, *blocks: tuple[list[tuple[tuple[int, ...], int, int]], str]) -> None:
        super().__init__()
        self.described: list[Block] = []
        self.stem, width = nn.Sequential(*conv_bn(3, 6), nn.ReLU()), 6
        for rows, kind in blocks:
            start, step, convs = width, 1, []
            for sizes, out, stride in rows:
                share = width // len(sizes)
                windows = (nn.Identity() if k == 1 else depthwise(share, k, stride) for k in sizes)
                convs.append(Separable(tuple(windows), *conv_bn(width, out, 1)))  # type: ignore[arg-type]
                width, step = out, step * stride
            projection = Normed(*conv_bn(start, width, 1, step))  # type: ignore[arg-type]
            shortcuts = {"none": None, "identity": nn.Identity(), "projection": projection}
            self.described.append(Block(tuple(convs), shortcuts[kind]))
        self.head = Head(nn.Dropout(0.0), nn.Linear(width, 10))
        parts = [part for block in self.described for conv in block.convs
                 for part in (*conv.windows, conv.pointwise, conv.norm)]  # fmt: skip
        for block in self.described:
            if isinstance(block.shortcut, Normed):
                parts += [block.shortcut.conv, block.shortcut.norm]
        self.parts = nn.ModuleList([*parts, self.head.linear])

    def blocks(self) -> Blueprint | None:
        stem = stem_of(self.stem)
        return stem and Blueprint(stem, tuple(self.described), self.head)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.described:
            y = x
            for conv in block.convs:
                y = y if conv is block.convs[0] else y.relu()
                shares = zip(conv.windows, y.chunk(len(conv.windows), 1), strict=True)
                y = torch.cat([
                    window(share) if isinstance(window, nn.Conv2d)
                    else share[..., :: conv.stride, :: conv.stride]
                    for window, share in shares
                ], 1)  # fmt: skip
                y = conv.norm(conv.pointwise(y))
            shortcut = block.shortcut
            if isinstance(shortcut, Normed):
                y = y + shortcut.norm(shortcut.conv(x))
            elif shortcut is not None:
                y = y + x
            x = y.relu()
        return self.head(x.mean((2, 3)))


@needs_kernels
def test_frozen_network_uses_inference_kernels() -> None:
    network = build_network("SpratS").eval()
    images = torch.randn(5, 3, 16, 16)
    frozen = CompiledNetwork(network, bf16=True, threads=1, frozen=True)
    assert torch.equal(frozen(images), Inference(network)(images))
    assert torch.equal(frozen.train()(images), Inference(network)(images))


def test_drafting_leaves_random_state_unchanged() -> None:
    before = torch.get_rng_state()
    draft_network("SpratS")
    assert torch.equal(torch.get_rng_state(), before)


@needs_kernels
class TestAnyNetworkOfKnownBlocks:
    def test_described_network_trains_like_its_plain_twin(self) -> None:
        self.check(Toy())

    @pytest.mark.parametrize("name", BLOCKS)
    def test_unusual_blocks_match_plain_twin(self, name: str) -> None:
        self.check(Described(*BLOCKS[name]))

    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_unusual_settings_match_plain_twin(self, spec: NetworkConfig) -> None:
        network = built(spec)
        trunk, found = CPUTrunk(network, bf16=False, threads=2), {}
        for _ in range(3):  # a draw may have a value within rounding of ReLU's 0, as above
            network.zero_grad()
            # the weights of a single input have a gradient of 0: BatchNorm undoes their scale
            found = far_from_twin(network, trunk, torch.randn(LANES, 3, 16, 17), least=0.01)
            if max(found.values()) < 1e-4:
                break
        else:
            pytest.fail(f"far from the plain twin: {found}")
        images = torch.randn(5, 3, 17, 16)
        answers = network.eval()(images)
        fast = CompiledNetwork(network, bf16=False, threads=2)
        assert distance(fast(images), answers) < 1e-5
        assert distance(Inference(network)(images), answers) < 1e-5

    @pytest.mark.parametrize("spec", SPECS, ids=str)
    def test_settings_in_bf16(self, spec: NetworkConfig) -> None:
        network, images = built(spec), torch.randn(LANES, 3, 16, 17)
        trunk = CPUTrunk(network, bf16=True, threads=2)
        found = far_from_twin(network, trunk, images, least=0.01)
        assert found["pooled"] < 0.03
        assert all(map(math.isfinite, found.values()))

    def check(self, network: nn.Module) -> None:
        """Check that three steps of SGD and an evaluation give the same results as in torch."""
        torch.manual_seed(11)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.5)
        twin = copy.deepcopy(network)
        images, targets = torch.randn(3, 32, 3, 12, 9), torch.randint(10, (3, 32))
        forwards = CompiledNetwork(network, bf16=False, threads=2), twin
        for forward, trained in zip(forwards, (network, twin), strict=True):
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.02, momentum=0.9)
            for step in range(3):
                optimizer.zero_grad()
                logits = forward(images[step])
                nn.functional.cross_entropy(logits, targets[step]).backward()
                optimizer.step()
        ended = network.state_dict(), twin.state_dict()
        for (name, ours), theirs in zip(ended[0].items(), ended[1].values(), strict=True):
            assert distance(ours.float(), theirs.float()) < 1e-3, name
        twin.load_state_dict(network.state_dict())
        answers = twin.eval()(images[0])
        assert distance(forwards[0].eval()(images[0]), answers) < 1e-5
        assert distance(Inference(network)(images[0]), answers) < 1e-5


class TestDescriptions:
    def test_subclass_that_overrides_computation_has_none(self) -> None:
        class Louder(SpratS):
            def features(self, images: Tensor) -> Tensor:
                return 2 * super().features(images)

        class LouderStill(Louder):
            """Subclass that overrides nothing itself."""

        class Deaf(Toy):
            def forward(self, images: Tensor) -> Tensor:
                return super().forward(0 * images)

        class Unbent(SpratS):
            def block(self, channels: int, wide: int, kernels: Sequence[int]) -> nn.Module:
                return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.Tanh())

        class Wider(SpratS):
            widths = (32, 56)

        for other in (Louder(), LouderStill(), Deaf(), Unbent()):
            assert blueprint_of(other) is None
        assert blueprint_of(Wider()) is not None
        replaced = SpratS()
        replaced.forward = lambda images: images  # type: ignore[method-assign]
        assert blueprint_of(replaced) is None

    def test_subclass_may_describe_itself(self) -> None:
        class Shorter(Toy):
            def forward(self, images: Tensor) -> Tensor:
                return self.linear(self.layers[3](self.stem(images)).relu().mean((2, 3)))

            def blocks(self) -> Blueprint | None:
                conv = Separable((nn.Identity(),), *self.layers[3])
                head = Head(self.dropout, self.linear)
                return Blueprint(Normed(*self.stem[:2]), (Block((conv,)),), head)

        found = blueprint_of(Shorter())
        assert found is not None
        assert len(found.blocks) == 1
        with pytest.raises(NoKernels, match="do not hold all of its parameters"):
            supported(Shorter())

    def test_unrelated_blocks_attribute_is_ignored(self) -> None:
        assert isinstance(build_network("ResNet8").blocks, nn.Sequential)
        assert blueprint_of(build_network("ResNet8")) is None

    @pytest.mark.parametrize(("spoil", "what"), [
        (lambda toy: setattr(toy, "down", depthwise(12, 9, 2)), "windows above 7 pixels.* has 9"),
        (lambda toy: toy.stem.__setitem__(0, nn.Conv2d(3, 12, 3, (1, 2), 1, bias=False)),
         "the stem of Toy"),
        (lambda toy: setattr(toy, "near", nn.Conv2d(4, 4, 3, padding=1)), r"Conv2d\(4, 4"),
        (lambda toy: setattr(toy, "near", nn.Conv2d(4, 4, 3, padding=2, dilation=2, groups=4,
                                                   bias=False)), "dilation"),
        (lambda toy: setattr(toy, "far", toy.near), "weights that two layers"),
        (lambda toy: setattr(toy, "side", nn.Sequential(*conv_bn(12, 20, 1))), r"Conv2d\(12, 20"),
        (lambda toy: setattr(toy, "linear", nn.Linear(20, 10, bias=False)), "Linear"),
        (lambda toy: setattr(toy, "dropout", nn.AlphaDropout()), "AlphaDropout"),
        (lambda toy: toy.layers[0].__setitem__(1, nn.BatchNorm2d(18, affine=False)), "affine=F"),
        (lambda toy: toy.layers[0].__setitem__(1, nn.InstanceNorm2d(18)), "InstanceNorm2d"),
        (lambda toy: toy.stem.__setitem__(2, nn.GELU()), "Toy"),
        (lambda toy: toy.stem.__setitem__(0, nn.Conv2d(3, 12, 3, padding=1)), "the stem of Toy"),
        (lambda toy: setattr(toy, "extra", nn.Linear(2, 2)), "do not hold all of its"),
    ])  # fmt: skip
    def test_unsupported_parts_are_refused(self, spoil: Callable[[Toy], None], what: str) -> None:
        toy = Toy()
        spoil(toy)
        with pytest.raises(NoKernels, match=what):
            supported(toy)


KERNEL_FILES = [
    path
    for path in Path(kernels.__file__).parent.rglob("*")
    if path.suffix in (".c", ".h") or path.name == "triton.py"
]


@pytest.mark.parametrize("path", KERNEL_FILES, ids=lambda path: path.name)
def test_every_kernel_file_names_its_plain_twin_and_tests(path: Path) -> None:
    header = re.split(r'\*/|"""$', path.read_text(), maxsplit=1, flags=re.MULTILINE)[0]
    assert "Plain twin: " in header
    root = next(folder for folder in Path(__file__).parents if folder.name == "tests")
    tests = {file.name: file.read_text() for file in root.rglob("test_*.py")}
    compared = header.partition("Compared")[2]
    files = re.findall(r"test_\w+\.py", compared)
    assert files
    for name in re.findall(r"\bTest\w+", compared):
        assert any(f"class {name}:" in tests[file] for file in files)


def test_the_kernels_import_no_network() -> None:
    """Check that the kernels depend only on the descriptions of networks."""
    for path in Path(kernels.__file__).parent.rglob("*.py"):
        imported = re.findall(r"(?:from|import) (sprat\.models\S*)", path.read_text())
        assert set(imported) <= {"sprat.models.blocks"}, path


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
@pytest.mark.parametrize("spec", ["OptimizedCIFAR10Net200K", "SpratS", "SpratT", *SPECS], ids=str)
def test_on_a_gpu_output_gradients_and_statistics_in_fp32(spec: str | NetworkConfig) -> None:
    from sprat.kernels.cuda.plan import GPUTrunk

    network = built(spec).to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin, images = copy.deepcopy(network), torch.randn(64, 3, 32, 32, device="cuda")
    ours, theirs = GPUTrunk(network, torch.float32)(images), features(twin, images)
    assert distance(ours, theirs) < 1e-5
    direction = torch.randn_like(theirs)
    for pooled in (ours, theirs):
        (pooled * direction).sum().backward()
    for (name, parameter), plain in zip(network.named_parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:  # the twin may use TF32
            assert distance(parameter.grad, plain.grad) < 0.05, name  # type: ignore[arg-type]
    for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
        assert distance(ours.float(), theirs.float()) < 1e-3
