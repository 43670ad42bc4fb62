"""Options that several commands have, and what is refused of them before torch is loaded."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sprat import names
from sprat.errors import SpratError
from sprat.models import code, find_name
from sprat.settings.config import Config

DataDir = Annotated[
    Path | None,
    Parameter(
        help="Folder of the dataset; by default $SPRAT_DATA, the user's cache or a download."
    ),
]
ModelName = Annotated[
    str,
    Parameter(
        help="A model.safetensors, the folder of a finished run, or the name of a shipped model."
    ),
]
Code = Annotated[
    tuple[str, ...],
    Parameter(
        help="Python file, or module, with a network of your own that the model is made with; it "
        "is run."
    ),
]
JsonOutput = Annotated[
    bool, Parameter(name="--json", negative=(), help="Print one line of JSON instead of text.")
]


def use_code(*sources: str) -> None:
    """Run the user's code that was named on the command line."""
    for source in sources:
        code.use(source)


def check_names(config: Config) -> None:
    """Check whatever names something in a config, before torch is loaded."""
    from sprat.zoo import locate

    names.check_dataset(config.dataset)
    find_name(config.model)
    names.check_views(config.tta)
    for teacher in config.distill.teacher:
        locate(teacher)


def check_png(path: Path | None, option: str) -> None:
    if path is not None and path.suffix.lower() != ".png":
        raise SpratError(f"{option} is {path}, expected a name that ends in .png")


def check_picture(output: Path | None, columns: int) -> None:
    check_png(output, "--output")
    if not 1 <= columns <= 100:
        raise SpratError(f"--columns is {columns}, expected 1 to 100")
