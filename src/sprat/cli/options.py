"""Options that several commands share, and checks of them before torch is loaded."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from sprat import names
from sprat.errors import SpratError

DataDir = Annotated[
    Path | None,
    Parameter(help="Folder of the dataset; by default $SPRAT_DATA, your cache or a download."),
]
ModelName = Annotated[
    str,
    Parameter(
        help="A model.safetensors, the folder of a finished run, or the name of a pretrained model."
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    Parameter(help="Device to run the network on; auto: the first available of cuda, mps, cpu."),
]
Threads = Annotated[int, Parameter(help="CPU threads; 0: one per usable core.")]
Code = Annotated[
    tuple[str, ...],
    Parameter(
        help="Python file or module that defines the model's network, if that is your own. The "
        "file is run. May be given more than once.",
        consume_multiple=False,
    ),
]
JsonOutput = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print one line of JSON instead of text.")
]
Flag = Annotated[bool, Parameter(negative=())]


def check_picture(output: Path | None, columns: int) -> None:
    """Check the options of a command that draws a sheet of pictures.

    Raises:
        SpratError: the file does not end in .png, or there are too few or too many columns.
    """
    names.check_png(output, "--output")
    if not 1 <= columns <= 100:
        raise SpratError(f"--columns is {columns}, expected 1 to 100. Give another number.")
