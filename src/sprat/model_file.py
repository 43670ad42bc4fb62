"""Files of models: model.safetensors, or model.safetensors.xz, as pretrained models ship, because
xz compresses weights better than a wheel does."""

import lzma
from pathlib import Path

from sprat.errors import SpratError
from sprat.files import write_whole
from sprat.names import MODEL_FILE, PACKED_FILE, check_one_run
from sprat.readers import MODEL_BYTES, read_bytes

ENDINGS = (".safetensors", ".safetensors.xz")
# each value has two bytes, the second of which varies little
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 1, "pb": 1}]
MOST_MEMORY = 256 << 20  # bytes of memory for unpacking, besides the content


def file_of(path: Path) -> Path:
    """Return a model's file, given the file itself or its folder."""
    if not path.is_dir():
        return path
    shipped = path / PACKED_FILE
    return shipped if shipped.exists() else path / MODEL_FILE


def write_model(path: Path, content: bytes) -> None:
    """Write a model's file, compressed if its name ends in .xz."""
    if path.suffix == ".xz":
        content = lzma.compress(content, filters=FILTERS)
    write_whole(path, content)


def read_model(path: Path) -> bytes:
    """Return the content of a model's file, uncompressed.

    Raises:
        SpratError: there is no such file, it cannot be read, or it is damaged.
    """
    try:
        content = read_bytes(path, MODEL_BYTES)
    except FileNotFoundError as error:
        check_one_run(path.parent)
        raise SpratError(
            f"There is no model at {path}. Name a {MODEL_FILE}, or the folder of a finished run."
        ) from error
    return _uncompressed(path, content) if path.suffix == ".xz" else content


def _uncompressed(path: Path, content: bytes) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, MOST_MEMORY)
    try:
        found = decompressor.decompress(content, MODEL_BYTES)
    except lzma.LZMAError as error:
        wrong = f"is damaged or not an xz file: {error}"
    else:
        if decompressor.eof and not decompressor.unused_data:
            return found
        whole = "is damaged: bytes follow its end" if decompressor.eof else "is cut short"
        wrong = whole if len(found) < MODEL_BYTES else f"holds more than {MODEL_BYTES:,} bytes"
    raise SpratError(f"{path} {wrong}. Copy it again, or install sprat again.")
