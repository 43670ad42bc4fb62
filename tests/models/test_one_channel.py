"""Tests of all networks with grey images (one channel); of some in compiled kernels and in C."""

from pathlib import Path

import pytest
import torch
from compiled_c import integer_of, noise_images, program_of, scores_by
from torch import nn
from twins import SPECS, built, far, far_from_twin, needs_kernels

from sprat.budget import memory_plan, summarize
from sprat.data.imageset import Normalization
from sprat.deploy.c import reference
from sprat.kernels import Inference, why_not
from sprat.kernels.cpu.plan import CPUTrunk
from sprat.models import NETWORKS, build_network, draft_network

# both families as they are, a stem with an odd number of channels, and one with another stride
COMPUTED = ["OptimizedCIFAR10Net200K", "SpratT", SPECS[1], SPECS[4]]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_learns_from_one_channel(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, 7, in_channels=1).train()
    answers = network(torch.randn(4, 1, 32, 24))
    assert answers.shape == (4, 7)
    answers.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())
    stem = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    coloured = draft_network(name, 7)
    both = [sum(p.numel() for p in each.parameters()) for each in (coloured, network)]
    assert both[0] - both[1] == 2 * stem.weight.numel() > 0
    with pytest.raises(ValueError, match="expected B x 1 x H x W"):
        network(torch.zeros(1, 3, 32, 32))


def test_macs_and_memory_count_one_channel() -> None:
    grey, coloured = (summarize(draft_network("SpratT", in_channels=n), 16) for n in (1, 3))
    assert (grey.channels, grey.image_bytes, coloured.image_bytes) == (1, 256, 768)
    assert coloured.macs - grey.macs == 2 * 9 * 16 * 16 * 16  # in the stem, 16 channels wide
    plan = memory_plan(draft_network("SpratT", in_channels=1), 16)
    assert plan.image == 256
    assert coloured.plan is not None
    assert coloured.plan.weights - plan.weights == 2 * 9 * 16


@needs_kernels
@pytest.mark.parametrize("spec", COMPUTED, ids=str)
def test_compiled_kernels_match_plain_twin(spec: str) -> None:
    network = built(spec, in_channels=1)
    assert why_not(network, torch.device("cpu"), 16) is None
    trunk = CPUTrunk(network, bf16=False, threads=2)
    for _ in range(3):  # a draw may have a value within rounding of ReLU's 0
        network.zero_grad()
        found = far_from_twin(network, trunk, torch.randn(16, 1, 17, 20), least=0.01)
        if max(found.values()) < 1e-4:
            break
    else:
        pytest.fail(f"far from the plain twin: {found}")
    network.eval().requires_grad_(False)
    images = torch.randn(5, 1, 19, 24)
    fast = Inference(network)
    assert far(fast(images), network(images)) < 1e-5
    with pytest.raises(ValueError, match="expected B x 1 x H x W"):
        fast(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="images of 1 channels"):
        trunk(torch.zeros(16, 3, 16, 16))


@pytest.mark.parametrize("layout", ["planes", "hwc"])
def test_c_equals_reference_byte_for_byte(layout: str, tmp_path: Path) -> None:
    network, images = built(SPECS[0], in_channels=1).eval(), noise_images(20, 16, channels=1)
    integer = integer_of(network, images, Normalization((0.4,), (0.2,)))
    program = program_of(integer, layout=layout)
    given = scores_by(program, images, tmp_path)
    assert (given == reference.scores(integer, images.numpy())).all()
    assert len(set(given.flatten().tolist())) > 10
    header = (tmp_path / "model.h").read_text()
    assert "#define MODEL_INPUT 256 " in header
    assert "green" not in header
