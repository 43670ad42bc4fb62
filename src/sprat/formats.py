"""The formats of an export, and what is refused before a model is loaded."""

import importlib.util
import math
from pathlib import Path
from typing import Literal, get_args

from sprat.errors import SpratError

Format = Literal["onnx", "onnx-int8", "pt2", "pth"]

ENDINGS: dict[Format, str] = {
    "onnx": ".onnx", "onnx-int8": "-int8.onnx", "pt2": ".pt2", "pth": ".pth",
}  # fmt: skip
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_options(format: Format, raw: bool, max_drop: float) -> None:
    """Check the options of an export that are wrong whatever the model and the file.

    Raises:
        SpratError: the format is none of sprat's, a package is missing, or an option has no meaning
            there.
    """
    if format not in get_args(Format):
        raise SpratError(f"there is no format {format!r}; there are {', '.join(get_args(Format))}")
    if raw and format == "pth":
        raise SpratError("pth holds weights alone, which know no --raw; leave it out")
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise SpratError(f"--max-drop is {max_drop}, expected percentage points, 0 or more")
    if format.startswith("onnx"):
        missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
        if missing:
            raise SpratError(
                f"the format {format} needs {', '.join(missing)}, not installed here; install all "
                "it needs with pip install 'sprat[export]'"
            )


def check_output(path: Path, format: Format, overwrite: bool) -> None:
    """Check the file that an export is to write.

    Raises:
        SpratError: its ending is another format's, or it exists already.
    """
    suffix = "." + ENDINGS[format].rpartition(".")[2]
    if path.suffix != suffix:
        raise SpratError(f"--output is {path}, expected a name that ends in {suffix}")
    if path.is_dir():
        raise SpratError(f"{path} is a folder; give another --output")
    if path.exists() and not overwrite:
        raise SpratError(
            f"{path} exists already and is not overwritten; give another --output, or --overwrite"
        )
