"""Tests of compressed model files."""

import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Here as CommandLine

from sprat import model_file
from sprat.checkpoint import load_model
from sprat.errors import SpratError
from sprat.model_file import file_of, read_model, write_model
from sprat.zoo import ZOO, is_model

SHIPPED = ZOO / "SpratS" / "model.safetensors.xz"


def test_a_compressed_file_is_smaller_and_has_the_same_content(tmp_path: Path) -> None:
    content = read_model(SHIPPED)
    for name in ("model.safetensors", "model.safetensors.xz"):
        write_model(tmp_path / name, content)
        assert read_model(tmp_path / name) == content
    plain, packed = (tmp_path / name for name in ("model.safetensors", "model.safetensors.xz"))
    assert plain.read_bytes() == content
    assert packed.stat().st_size < 0.8 * len(content)
    assert load_model(packed).about == load_model(plain).about == load_model(SHIPPED).about


def test_folder_resolves_to_its_model_file(tmp_path: Path) -> None:
    assert file_of(SHIPPED.parent) == SHIPPED == file_of(SHIPPED)
    assert file_of(tmp_path) == tmp_path / "model.safetensors"
    assert is_model(str(SHIPPED))
    assert is_model(str(SHIPPED.parent))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:-40], "is cut short"),
        (lambda content: b"", "is cut short"),
        (lambda content: content + b"more", "bytes follow its end"),
        (lambda content: content[:1000] + b"\0" + content[1001:], "is damaged or not an xz file"),
        (lambda content: b"no such thing" + content, "is damaged or not an xz file"),
        (lambda content: lzma.compress(b"no model"), "is damaged or not a safetensors file"),
    ],
)
def test_a_damaged_file_is_refused(
    change: Callable[[bytes], bytes], message: str, here: CommandLine, tmp_path: Path
) -> None:
    path = tmp_path / SHIPPED.name
    path.write_bytes(change(SHIPPED.read_bytes()))
    done = here("evaluate", path)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in " ".join(done.stderr.split())


def test_unpacking_stops_at_the_size_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "MODEL_BYTES", 1 << 20)
    path = tmp_path / "model.safetensors.xz"
    path.write_bytes(lzma.compress(bytes(2 << 20)))
    with pytest.raises(SpratError, match="holds more than 1,048,576 bytes"):
        read_model(path)
