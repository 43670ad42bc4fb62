"""The export formats by name, and the checks before a model is loaded.

A new format is a `Format` in a file of its own and a line of the table here; its own options are
added to `Options`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from sprat.deploy.c import C
from sprat.deploy.format import Format
from sprat.deploy.int8 import ONNX_INT8
from sprat.deploy.onnx import ONNX
from sprat.deploy.pytorch import PT2, PTH
from sprat.errors import SpratError, did_you_mean, shown
from sprat.files import check_folder
from sprat.settings.field import BYTES, COUNT, Table, limit, refused, setting

__all__ = [
    "CHOICES",
    "DEFAULT",
    "FORMATS",
    "Format",
    "Options",
    "check_options",
    "check_output",
    "find_format",
]

FORMATS: dict[str, Format] = {
    format.name: format
    for format in (
        ONNX,
        ONNX_INT8,
        PT2,
        PTH,
        C,
    )
}

CHOICES = "; ".join(f"{format.name}: {format.about}" for format in FORMATS.values())
DEFAULT = ONNX.name


@dataclass(frozen=True, kw_only=True)
class Options(Table):
    """Options of an export; `Format.takes` lists those that only some formats support."""

    raw: bool = setting(
        False,
        "Export a file that takes normalised float32 images and returns logits, not one that takes "
        "uint8 images (0 to 255) and returns probabilities",
    )
    max_drop: float = setting(
        2.0,
        "Maximum loss of accuracy in a format of lower precision, on the compared images",
        at_least=0,
        unit="percentage points",
    )
    max_class_drop: float = setting(
        5.0,
        "Maximum loss of accuracy of any class in a format of lower precision, beyond what chance "
        "explains",
        at_least=0,
        at_most=100,
        unit="percentage points",
    )
    layout: str = setting(
        "planes",
        "Layout of an image for C: planes (red, green, blue), or hwc (pixel by pixel)",
        choices=("planes", "hwc"),
    )
    prefix: str = setting(
        "model", "Prefix of every C name and file name, so that one program can contain two models"
    )
    verify: bool = setting(
        False, "Compile the C code and run its self-test, if there is a C compiler (CC, or cc)"
    )
    compile: bool = setting(
        False,
        "Compile the C code (CC with CFLAGS; cc with -O2) and report stack, code and constants",
    )
    max_parameters: int = limit("Maximum number of parameters", scale=COUNT)
    max_macs: int = limit("Maximum number of multiply-accumulates per image", scale=COUNT)
    max_flash: int = limit(
        "Maximum bytes of weights, or of constants and code with --compile", scale=BYTES
    )
    max_ram: int = limit(
        "Maximum bytes of arena, or of arena and stack with --compile", scale=BYTES
    )

    def check_together(self) -> None:
        if not re.fullmatch("[A-Za-z][A-Za-z0-9_]{0,39}", self.prefix) or self.prefix == "main":
            raise refused(
                "prefix",
                self.prefix,
                "1 to 40 letters, digits and _ without accents, a letter first, and not main",
                "The default is 'model'.",
            )


def find_format(name: str) -> Format:
    """Return the format of that name.

    Raises:
        SpratError: there is no such format.
    """
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS) or "."
        raise SpratError(f"Unknown format {shown(name)}{hint} Available: {', '.join(FORMATS)}.")
    return FORMATS[name]


def check_options(name: str, options: Options) -> None:
    """Check everything that depends neither on the model nor on the file.

    Raises:
        SpratError: there is no such format, a package is missing, or the format does not support
            an option.
    """
    format = find_format(name)
    own = {option for each in FORMATS.values() for option in each.takes}
    for option in sorted(own.difference(format.takes)):
        if getattr(options, option) != options.settings[option].default:
            others = [each.name for each in FORMATS.values() if option in each.takes]
            raise SpratError(
                f"The format {name} does not take --{option.replace('_', '-')}. Leave it out, or "
                f"choose a format that does: {', '.join(others)}."
            )
    format.require_packages()


def check_output(path: Path, name: str, overwrite: bool, options: Options) -> None:
    """Check the file or folder that an export is to write.

    Raises:
        SpratError: it has the wrong ending, exists already, or is a folder that also contains other
            files.
    """
    format = FORMATS[name]
    suffix = format.suffix
    if format.names is None and path.suffix != suffix:
        raise SpratError(
            f"--output is {path}, expected a name that ends in {suffix}. Rename it, or leave it "
            "out for the default."
        )
    if format.names is None and path.is_dir():
        raise SpratError(f"{path} is a folder. Give another --output.")
    if format.names is not None and path.exists() and not path.is_dir():
        raise SpratError(f"{path} is a file, expected a folder. Give another --output.")
    if path.exists() and not overwrite:
        raise SpratError(
            f"{path} exists already and is not overwritten. Give another --output, or --overwrite."
        )
    if format.names is not None:
        check_folder(path, format.names(options))
