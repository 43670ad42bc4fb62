"""Tests that every network can be exported and run in onnxruntime; each takes seconds."""

from pathlib import Path

import pytest
import torch

from sprat.checkpoint import Model
from sprat.data.imageset import ImageSet, Normalization
from sprat.deploy.writing import export
from sprat.models import NETWORKS, build_network

SIDE, CLASSES = 24, tuple("abcdefg")


def noise(count: int) -> ImageSet:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % len(CLASSES), CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_runs_in_onnxruntime(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs sprat[export]")
    monkeypatch.setattr("sprat.deploy.agreement.TIMED_SECONDS", 0.0)
    torch.manual_seed(0)
    network = build_network(name, num_classes=len(CLASSES)).eval()
    model = Model(network, name, CLASSES, Normalization((0.5,) * 3, (0.25,) * 3), SIDE, {})
    file = export(model, tmp_path / "net.onnx", compared=noise(8))
    session = onnxruntime.InferenceSession(
        file.path.read_bytes(), providers=["CPUExecutionProvider"]
    )
    (said,) = session.run(None, {"images": noise(3).images[:].numpy()})
    assert said.shape == (3, len(CLASSES))
    assert said.sum(1) == pytest.approx(1, abs=1e-5)
