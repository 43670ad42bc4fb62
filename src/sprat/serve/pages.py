"""Static content: the page, its style and script, sample pictures, and the documentation."""

from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader

from sprat.checkpoint import Model
from sprat.errors import SpratError
from sprat.evaluation.records import (
    EVALUATION,
    RESULTS_FILE,
    Evaluation,
    Split,
    evaluation_of,
    read_json,
    read_results,
)
from sprat.names import CARD_FILE
from sprat.serve.samples import draw_samples
from sprat.serve.uploads import png
from sprat.shapes import mismatch
from sprat.text import visible

PAGE = Path(__file__).parent / "page"
SHOWN = 10  # most probable classes on the page


class Fixed(NamedTuple):
    """A static response."""

    content: bytes
    media_type: str


def fixed_answers(
    model: Model, place: Path, openapi: dict[str, Any], explains: bool = True
) -> dict[str, Fixed]:
    """Return all static responses by path.

    Args:
        model: served model, read from `place`, a file or a run's folder.
        openapi: description of the API, shown under /docs.
        explains: whether the model can be explained.
    """
    templates = Environment(loader=FileSystemLoader(PAGE), autoescape=True)
    samples = {name: png(pixels) for name, pixels in draw_samples(model.classes).items()}
    index = templates.get_template("index.html").render(
        model=visible(model.name),
        classes=[visible(name) for name in model.classes[:SHOWN]],
        class_count=len(model.classes),
        side=model.side,
        explains=explains,
        facts=facts(model, place),
        samples=list(samples),
    )
    docs = templates.get_template("docs.html").render(openapi=openapi)
    return {
        "/": Fixed(index.encode(), "text/html"),
        "/docs": Fixed(docs.encode(), "text/html"),
        "/page.css": Fixed((PAGE / "page.css").read_bytes(), "text/css"),
        "/page.js": Fixed((PAGE / "page.js").read_bytes(), "text/javascript"),
        "/icon.svg": Fixed((PAGE / "icon.svg").read_bytes(), "image/svg+xml"),
        **{f"/samples/{name}.png": Fixed(data, "image/png") for name, data in samples.items()},
    }


def facts(model: Model, place: Path) -> dict[str, str]:
    """Return the facts about a model for the page: its size, and its accuracy if measured."""
    known = {"parameters": f"{sum(p.numel() for p in model.network.parameters()):,}"}
    folder = place if place.is_dir() else place.parent
    split: Split = "test"
    evaluation: Evaluation | None = None
    if (folder / CARD_FILE).exists():
        card = read_json(folder / CARD_FILE)
        if wrong := mismatch(card, {"test": EVALUATION}):
            raise SpratError(f"{folder / CARD_FILE} is not a card of sprat: {wrong}. Remove it.")
        evaluation = card["test"]
    elif place.is_dir():
        split, evaluation = evaluation_of(read_results(folder / RESULTS_FILE))
    if evaluation:
        low, high = (100 * share for share in evaluation["top1_ci95"])
        known["accuracy"] = f"{100 * evaluation['top1']:.2f} %"
        known["95 % interval"] = f"{low:.2f} to {high:.2f} %"
        dataset = visible(model.about.get("dataset", "its dataset"))
        known["measured on"] = f"{evaluation['n']:,} images of {dataset} ({split})"
    return known
