"""Tests of the kernels as compiled for other processors."""

import pytest
import torch
from torch import nn
from twins import SPECS, SUPPORTED, built, far, far_from_twin, needs_kernels, network, trained

from sprat.kernels.cpu import build
from sprat.kernels.cpu.inference import Inference
from sprat.kernels.cpu.plan import CPUTrunk
from sprat.models import NetworkConfig

__all__ = ["network"]  # a fixture


@needs_kernels
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="the flags are of x86-64")
@pytest.mark.parametrize(
    ("bf16", "flag", "limit"),
    [(False, "-march=x86-64-v3", 0.05), (True, "-march=x86-64-v3", 0.6),
     (False, "-march=x86-64-v2", 0.05), (True, "-march=x86-64-v2", 0.6),
     (True, "-mno-amx-bf16", 0.6), (True, "-mno-avx512bf16", 0.6)],
)  # fmt: skip
def test_trunk_agrees_with_the_network(
    network: nn.Module, bf16: bool, flag: str, limit: float
) -> None:
    fast = CPUTrunk(network, bf16=bf16, threads=2)
    fast.library = build.load("trunk", build.store(bf16), flag)
    found = far_from_twin(network, fast, torch.randn(32, 3, 32, 32))
    assert max(found.values()) < limit, found
    assert found["pooled"] < (0.03 if bf16 else 1e-4)


@needs_kernels
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="the flags are of x86-64")
@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("flag", ["-march=x86-64-v2", "-march=x86-64-v3"])
def test_trunk_agrees_for_every_spec(spec: NetworkConfig, flag: str) -> None:
    network = built(spec)
    fast = CPUTrunk(network, bf16=False, threads=2)
    fast.library = build.load("trunk", build.store(False), flag)
    found = far_from_twin(network, fast, torch.randn(16, 3, 16, 17), least=0.01)
    assert max(found.values()) < 0.05, found
    assert found["pooled"] < 1e-5


@needs_kernels
@pytest.mark.skipif(build.platform.machine() != "x86_64", reason="the flags are of x86-64")
@pytest.mark.parametrize(
    "flags", [("-march=x86-64-v2",), ("-march=x86-64-v3",), ("-DLANES=16", "-Wno-psabi")]
)
def test_inference_agrees_with_the_network(
    flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    library = build.load("inference", *flags)
    monkeypatch.setattr("sprat.kernels.cpu.inference.load", lambda name: library)
    for spec in (*SUPPORTED, *SPECS):
        network, images = trained(spec), torch.randn(3, 3, 20, 18)
        assert far(Inference(network)(images), network(images)) < 1e-5
