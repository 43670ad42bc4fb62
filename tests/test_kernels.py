"""The compiled kernels against their plain twin, the network itself."""

import copy
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import SMALL
from torch import Tensor, nn

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.kernels import CompiledNetwork, Inference, NoKernels, prepare, why_not
from sprat.kernels.cpu import build
from sprat.kernels.cpu.plan import CPUTrunk
from sprat.kernels.support import supported
from sprat.models import MODELS, OptimizedCIFAR10Net200K, build_model, draft_model
from sprat.models.blocks import Block, Blueprint, Normed, Separable, stem_of
from sprat.models.classifier import PooledClassifier, conv_bn
from sprat.models.sprat import SpratBlock, SpratS
from sprat.results import read_json
from sprat.training.ema import reestimate_batchnorm
from sprat.training.observer import Observer
from sprat.training.run import Interrupted
from sprat.training.start import resume, settle_for, train

CPU = torch.device("cpu")


def reason_here() -> str | None:
    """Why there are no kernels on this machine."""
    try:
        prepare(CPU, bf16=False)
    except NoKernels as reason:
        return str(reason)
    return None


REASON = reason_here()
needs_kernels = pytest.mark.skipif(REASON is not None, reason=f"no compiled kernels: {REASON}")


@pytest.fixture(params=["OptimizedCIFAR10Net200K", "SpratS", "SpratT"])
def network(request: pytest.FixtureRequest) -> nn.Module:
    """A network whose every BatchNorm does something of its own."""
    torch.manual_seed(3)
    network = MODELS[request.param](dropout=0.0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.train()


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Length of the difference, as a share of theirs."""
    return ((ours - theirs).norm() / theirs.norm()).item()


def gradients(network: nn.Module, pooled: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    (pooled * torch.randn(pooled.shape, generator=generator)).sum().backward()
    return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def features(network: nn.Module, images: Tensor) -> Tensor:
    return network.features(images).mean(dim=(2, 3))  # type: ignore[operator]


def far_from_twin(network: nn.Module, fast: CPUTrunk, images: Tensor) -> dict[str, float]:
    """Distances of output, gradients and running statistics of one step from the plain ones."""
    twin = copy.deepcopy(network)
    ours, theirs = fast(images), features(twin, images)
    found = {"pooled": distance(ours, theirs)}
    plain = gradients(twin, theirs)
    fused = gradients(network, ours)
    assert fused.keys() == plain.keys()
    found |= {name: distance(fused[name], plain[name]) for name in plain}
    for (name, ours), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
        found[name] = distance(ours.float(), theirs.float())
    return found


@needs_kernels
class TestAgainstPlainTwin:
    @pytest.mark.parametrize("shape", [(32, 32), (16, 16), (20, 20), (28, 28), (17, 23)])
    def test_output_gradients_and_statistics_in_fp32(
        self, network: nn.Module, shape: tuple[int, int]
    ) -> None:
        fast, worst = CPUTrunk(network, bf16=False, threads=2), []
        for _ in range(10):
            network.zero_grad()
            found = far_from_twin(network, fast, torch.randn(16, 3, *shape))
            assert found["pooled"] < 1e-5
            worst.append(max(found.values()))
        # of millions of values one within rounding of 0 may fall on the other side of ReLU, and
        # every gradient before it changes a little at once: not every draw has such a value
        assert sorted(worst)[1] < 1e-4, worst
        assert max(worst) < 0.05, worst

    def test_bf16_is_as_near_to_fp32_as_autocast_is(self, network: nn.Module) -> None:
        images = torch.randn(32, 3, 32, 32)
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
        images, targets = torch.randn(3, 16, 3, 32, 32), torch.randint(10, (3, 16))
        for forward, trained in zip(forwards, (network, twin), strict=True):
            optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9)
            for step in range(3):
                optimizer.zero_grad()
                nn.functional.cross_entropy(forward(images[step]), targets[step]).backward()
                optimizer.step()
        for (name, ours), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
            assert distance(ours, theirs) < 2e-3, name

    @pytest.mark.parametrize("images", [1, 16, 150])
    def test_evaluation_of_any_number_of_images(self, network: nn.Module, images: int) -> None:
        network.train()
        network(torch.randn(32, 3, 32, 32))  # running statistics of their own
        fast = CompiledNetwork(network, bf16=False, threads=2).eval()
        batch = torch.randn(images, 3, 32, 32)
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}
        assert distance(fast(batch), network(batch)) < 1e-5
        assert all(torch.equal(b, before[name]) for name, b in network.named_buffers())

    def test_training_goes_on_after_an_evaluation_in_between(self, network: nn.Module) -> None:
        fast = CompiledNetwork(network, bf16=False, threads=2)
        images = torch.randn(64, 3, 16, 16)
        fast.eval()
        fast(images)
        fast.train()
        twin = copy.deepcopy(network)
        assert distance(fast(images), twin(images)) < 1e-5
        assert distance(network.stem[1].running_var, twin.stem[1].running_var) < 1e-5  # type: ignore[index,union-attr]

    def test_reestimated_statistics_are_the_plain_ones(self, network: nn.Module) -> None:
        twin, batches = copy.deepcopy(network), torch.randn(3, 32, 3, 32, 32)
        reestimate_batchnorm(CompiledNetwork(network, bf16=False, threads=2), batches)
        reestimate_batchnorm(twin, batches)
        for (name, ours), theirs in zip(network.named_buffers(), twin.buffers(), strict=True):
            assert distance(ours.float(), theirs.float()) < 1e-5, name

    def test_weights_loaded_later_are_seen(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        images = torch.randn(16, 3, 32, 32)
        fast(images)
        network.load_state_dict(type(network)().state_dict())
        assert distance(fast(images), features(network, images)) < 1e-5


@needs_kernels
class TestTrunk:
    @pytest.mark.parametrize("bf16", [False, True])
    def test_threads_change_no_bit(self, network: nn.Module, bf16: bool) -> None:
        images, results = torch.randn(48, 3, 24, 24), []
        for threads in (1, 2, 3):
            copied = copy.deepcopy(network)
            pooled = CPUTrunk(copied, bf16=bf16, threads=threads)(images)
            results.append([pooled, *gradients(copied, pooled).values(), *copied.buffers()])
        for other in results[1:]:
            assert all(map(torch.equal, results[0], other))

    def test_a_backward_pass_that_comes_too_late_is_refused(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        images = torch.randn(16, 3, 16, 16)
        early = fast(images)
        fast(images)
        with pytest.raises(RuntimeError, match="overwritten by a later"):
            early.sum().backward()

    def test_other_batches_are_refused_in_words(self, network: nn.Module) -> None:
        fast = CPUTrunk(network, bf16=False, threads=2)
        with pytest.raises(ValueError, match=r"\(17, 3, 16, 16\); expected a multiple of 16"):
            fast(torch.randn(17, 3, 16, 16))

    def test_not_a_number_comes_through(self, network: nn.Module) -> None:
        images = torch.randn(16, 3, 16, 16)
        images[3, 1, 5, 5] = torch.nan
        assert CPUTrunk(network, bf16=False, threads=2)(images).isnan().any()

    def test_every_parameter_of_the_network_gets_its_gradient(self, network: nn.Module) -> None:
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


class TestChoice:
    def test_why_not_names_the_reason(self) -> None:
        network = OptimizedCIFAR10Net200K()
        assert "multiple of 16" in str(why_not(network, CPU, 100))
        assert "for CPUs" in str(why_not(network, torch.device("mps"), 128))
        assert "do not support ResNet8" in str(why_not(draft_model("ResNet8"), CPU, 128))

    def test_without_a_compiler_torch_trains_and_the_results_say_so(
        self, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        build.load.cache_clear()
        try:
            config = dataclasses.replace(
                SMALL, epochs=1, optim=dataclasses.replace(SMALL.optim, warmup_epochs=0)
            )
            train(config, small, tmp_path / "run", recipe="small")
            with pytest.raises(SpratError, match=r"there is no C compiler .*--kernels auto"):
                settle_for(dataclasses.replace(config, kernels="compiled"), small)
        finally:
            build.load.cache_clear()
        machine = read_json(tmp_path / "run" / "results.json")["machine"]
        assert machine["kernels"] == "torch"
        assert "no-such-compiler" in machine["kernels_because"]

    @pytest.mark.usefixtures("nothing_loaded")
    def test_a_compiler_that_fails_is_a_reason(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        compiler = tmp_path / "cc"
        compiler.write_text("#!/bin/sh\necho 'trunk.c: error: a strange land' >&2\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        with pytest.raises(NoKernels, match="a strange land"):
            build.load_trunk(False)

    @pytest.mark.usefixtures("nothing_loaded")
    def test_no_place_for_the_library_is_a_reason(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "sprat").write_text("a file where a folder should be")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "sprat"))
        if REASON is not None and "compiler" in REASON:
            pytest.skip(REASON)
        with pytest.raises(NoKernels, match="cannot be written or loaded"):
            build.load_trunk(False)

    @pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
    def test_a_damaged_library_is_built_anew(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
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
        build.load.cache_clear()
        build.load("trunk")
        (library,) = (tmp_path / "sprat" / "kernels").glob("*.so")
        whole = library.read_bytes()
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
        for damaged in (flipped, whole[:-1], whole[:middle], b""):
            library.unlink()  # this process has it mapped
            library.write_bytes(damaged)
            build.load.cache_clear()
            assert not build.is_built("trunk")
            assert build.load("trunk").ready() == 1
            assert library.read_bytes() == whole
        build.load.cache_clear()

    @needs_kernels
    def test_a_run_is_not_resumed_by_other_means_than_it_began(
        self, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = iter([False] * 5 + [True])
        with pytest.raises(Interrupted):
            train(SMALL, small, tmp_path / "run", recipe="small", should_stop=asked.__next__)
        monkeypatch.setenv("CC", "no-such-compiler")
        build.load.cache_clear()
        try:
            with pytest.raises(SpratError, match="'compiled', but there is no C compiler"):
                resume(tmp_path / "run", small)
        finally:
            build.load.cache_clear()

    @needs_kernels
    def test_compiling_is_announced_once(
        self, small: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        build.load.cache_clear()
        told: list[str] = []

        class Tell(Observer):
            def preparing(self, what: str) -> None:
                told.append(what)

        try:
            for _ in range(2):
                settle_for(SMALL, small, Tell())
                build.load.cache_clear()
        finally:
            build.load.cache_clear()
        assert len(told) == 1
        assert "compiling" in told[0]

    @needs_kernels
    def test_results_name_the_kernels(self, small_run: Path) -> None:
        assert read_json(small_run / "results.json")["machine"]["kernels"] == "compiled"

    @needs_kernels
    def test_what_they_know_and_what_they_do_not(self) -> None:
        known = {name for name in MODELS if not why_not(draft_model(name), CPU)}
        assert known == {"OptimizedCIFAR10Net200K", "SpratT", "SpratS", "SpratM", "SpratL"}
        with pytest.raises(NoKernels, match="do not support Linear"):
            CPUTrunk(nn.Linear(2, 2), bf16=False, threads=1)

    def test_a_block_of_another_kind_is_not_taken_for_one_they_know(self) -> None:
        class Other(SpratBlock):
            def forward(self, x: Tensor) -> Tensor:
                return x

        for spoil in (
            lambda stage: stage.append(Other(28, 42)),
            lambda stage: setattr(stage[0], "bn1", nn.GroupNorm(1, 42)),
        ):
            network = build_model("SpratS")
            spoil(network.stages[0])  # type: ignore[index]
            with pytest.raises(NoKernels, match=r"do not support (SpratS|GroupNorm)"):
                CPUTrunk(network, bf16=False, threads=1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")
def test_on_a_gpu_output_gradients_and_statistics_in_fp32(network: nn.Module) -> None:
    from sprat.kernels.cuda.plan import GPUTrunk

    network = network.to("cuda", memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin, images = copy.deepcopy(network), torch.randn(64, 3, 32, 32, device="cuda")
    ours, theirs = GPUTrunk(network, torch.float32)(images), features(twin, images)
    assert distance(ours, theirs) < 1e-5
    direction = torch.randn_like(theirs)
    for pooled in (ours, theirs):
        (pooled * direction).sum().backward()
    for (name, parameter), plain in zip(network.named_parameters(), twin.parameters(), strict=True):
        if parameter.grad is not None:  # TF32 may be on in the twin
            assert distance(parameter.grad, plain.grad) < 0.05, name  # type: ignore[arg-type]
    for ours, theirs in zip(network.buffers(), twin.buffers(), strict=True):
        assert distance(ours.float(), theirs.float()) < 1e-3
