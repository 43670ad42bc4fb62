"""Tests of the compiled kernels for inference, compared with the network itself."""

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from twins import SUPPORTED, far, trained

from sprat.augment.views import VIEWS
from sprat.data.imageset import Normalization
from sprat.evaluation.evaluate import predict_probabilities
from sprat.inference import WORTH_COMPILING, FrozenNetwork
from sprat.kernels import Inference, NoKernels, is_built
from sprat.kernels.cpu import build
from sprat.models import NETWORKS, NetworkConfig, build_network
from sprat.models.optimized200k import OptimizedCIFAR10Net200K
from sprat.models.sprat import SpratS

SHAPES = [(3, 16, 16), (1, 17, 23), (17, 32, 32), (2, 33, 64), (1, 128, 101)]
PLAIN = Normalization((0.5, 0.4, 0.3), (0.25, 0.2, 0.3))

try:
    build.load("inference")
except NoKernels as reason:
    pytestmark = pytest.mark.skip(reason=str(reason))


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class TestKernels:
    @pytest.mark.parametrize("name", SUPPORTED)
    def test_match_the_network(self, name: str) -> None:
        network = trained(name)
        fast = Inference(network)
        for batch, height, width in SHAPES:
            images = torch.randn(batch, 3, height, width)
            assert far(fast(images), network(images)) < 1e-5, (batch, height, width)

    def test_accept_any_memory_format(self) -> None:
        network = trained("SpratS")
        images, fast = torch.randn(250, 3, 16, 16), Inference(network)
        expected = network(images)
        for given in (
            images,
            images.to(memory_format=torch.channels_last),
            torch.cat((images, images), 3)[..., 16:],
            images.flip(3).flip(3),
        ):
            assert far(fast(given), expected) < 1e-5

    @pytest.mark.parametrize("name", SUPPORTED)
    def test_threads_and_batch_size_change_no_bit(self, name: str, threads) -> None:  # type: ignore[no-untyped-def]
        fast, images = Inference(trained(name)), torch.randn(7, 3, 20, 18)
        threads(1)
        expected = fast(images)
        for number in (1, 2, 3, 8):
            threads(number)
            for size in (1, 2, 5, 7):
                assert torch.equal(torch.cat([fast(b) for b in images.split(size)]), expected)

    def test_nan_affects_only_its_own_image(self) -> None:
        network, images = trained("SpratS"), torch.randn(3, 3, 16, 16)
        images[1, 2, 5, 5] = torch.nan
        logits = Inference(network)(images)
        assert logits[1].isnan().all()
        assert logits[[0, 2]].isfinite().all()

    def test_support_many_layers(self) -> None:
        spec = NetworkConfig(
            name="SpratNet", widths=(2,) * 5, depth=(52,), strides=(1,) * 5, kernels=(1,)
        )
        network, images = trained(spec), torch.randn(1, 3, 16, 16)
        assert far(Inference(network)(images), network(images)) < 1e-4

    def test_invalid_shapes_raise_the_networks_error(self) -> None:
        network = trained("SpratS")
        for shape in ((1, 3, 8, 8), (1, 1, 32, 32), (3, 32, 32)):
            with pytest.raises(ValueError, match="images have shape") as refused:
                Inference(network)(torch.zeros(shape))
            with pytest.raises(ValueError, match="images have shape") as plain:
                network(torch.zeros(shape))
            assert str(refused.value) == str(plain.value)

    def test_empty_batch_gives_empty_logits(self) -> None:
        assert Inference(trained("SpratS"))(torch.zeros(0, 3, 32, 32)).shape == (0, 10)

    def test_unsupported_networks_are_refused_and_run_in_torch(self) -> None:
        class Louder(SpratS):
            def features(self, images: Tensor) -> Tensor:
                return 2 * super().features(images)

        class Wider(SpratS):
            def __init__(self) -> None:
                super().__init__()
                self.stem[0] = nn.Conv2d(3, 28, 5, padding=2, bias=False)

        for network, what in (
            (Louder(), "Louder"),
            (Wider(), "the stem of Wider"),
            (build_network("ResNet8"), "ResNet8"),
        ):
            with pytest.raises(NoKernels, match=f"do not support {what}"):
                Inference(network)
            images = torch.randn(2, 3, 32, 32)
            assert torch.equal(FrozenNetwork(network.eval())(images), network(images))

    def test_every_network_is_supported_or_refused_by_name(self) -> None:
        for name in NETWORKS:
            network = build_network(name)
            if name in SUPPORTED:
                Inference(network)
            else:
                with pytest.raises(NoKernels, match=f"^the compiled kernels do not support {name}"):
                    Inference(network)


class TestFrozenNetwork:
    @pytest.mark.parametrize("views", [1, 6])
    def test_probabilities_match_the_networks(self, views: int) -> None:
        network = trained("OptimizedCIFAR10Net200K")
        images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8)
        found = predict_probabilities(network, images, PLAIN, VIEWS[views])
        plain = FrozenNetwork(network)
        plain._compiled = None
        expected = predict_probabilities(plain, images, PLAIN, VIEWS[views])
        assert (found - expected).abs().max() < 1e-5
        assert not torch.equal(found, expected)  # so these came from the kernels

    def test_weights_changed_between_evaluations_are_used(self) -> None:
        network, images = trained("SpratS"), torch.randint(256, (2, 3, 32, 32)).byte()
        predict_probabilities(network, images, PLAIN)
        network.load_state_dict(trained("SpratS").state_dict())
        network.classifier.bias[3] += 100  # type: ignore[index, union-attr, operator]
        assert (predict_probabilities(network, images, PLAIN)[:, 3] > 0.99).all()

    def test_compiles_only_for_many_images(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiler, called = tmp_path / "cc", tmp_path / "called"
        compiler.write_text(f"#!/bin/sh\ntouch '{called}'\nexit 1\n")
        compiler.chmod(0o755)
        monkeypatch.setenv("CC", str(compiler))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        build.load.cache_clear()
        try:
            network, images = trained("SpratS"), torch.randn(2, 3, 16, 16)
            frozen = FrozenNetwork(network)
            frozen.expect(WORTH_COMPILING - 1)
            assert not called.exists()
            assert torch.equal(frozen(images), network(images))
            frozen.expect(1)
            assert called.exists()
            assert torch.equal(frozen(images), network(images))  # since the compiler failed
        finally:
            build.load.cache_clear()

    def test_falls_back_to_the_network_without_a_compiler(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CC", "no-such-compiler")
        build.load.cache_clear()
        try:
            network, images = trained("SpratS"), torch.randn(2, 3, 16, 16)
            with pytest.raises(NoKernels, match="no C compiler"):
                is_built("inference")
            frozen = FrozenNetwork(network)
            frozen.expect(WORTH_COMPILING)
            assert torch.equal(frozen(images), network(images))
        finally:
            build.load.cache_clear()

    def test_pickling_keeps_results(self) -> None:
        frozen, images = FrozenNetwork(trained("SpratS")), torch.randn(2, 3, 16, 16)
        assert torch.equal(pickle.loads(pickle.dumps(frozen))(images), frozen(images))


def test_evaluation_restores_training_mode() -> None:
    network = OptimizedCIFAR10Net200K().train()
    predict_probabilities(network, torch.zeros(1, 3, 32, 32, dtype=torch.uint8), PLAIN)
    assert network.training
