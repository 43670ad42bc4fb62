"""Pretrained models: each is a folder with weights, card and curves."""

import hashlib
import json
from pathlib import Path
from typing import NotRequired, TypedDict

from sprat.data import title_of
from sprat.errors import SpratError, did_you_mean, plain, shown
from sprat.evaluation.records import Evaluation, ModelRecord, Overrides, Spread
from sprat.model_file import ENDINGS, file_of, read_model
from sprat.names import CARD_FILE, MODEL_FILE, PACKED_FILE
from sprat.runtime import GitState, Machine
from sprat.text import code, markdown

CARD_TEXT_FILE = "CARD.md"
ZOO = Path(__file__).parent


class Int8(TypedDict):
    """Accuracy in int8. calibrated_on: number of training images."""

    top1: float
    calibrated_on: int


class Memory(TypedDict):
    """Memory plan in int8, in bytes; see sprat.budget.plan."""

    arena: int
    image: int
    weights: int


class Compiled(TypedDict):
    """Sizes of the model compiled from C; see sprat.deploy.c.compiler.Compiled."""

    compiler: str
    flags: str
    stack: int
    chain: list[str]
    library: list[str]
    code: int
    constants: int
    arena: int


class Robustness(TypedDict):
    """Accuracy on corrupted test images, 0 to 1. clean: without corruption. top1: by type and
    severity."""

    images: int
    clean: float
    mean: float
    top1: dict[str, list[float]]


class Training(TypedDict):
    """Training of a shipped model.

    images: number of training images. chosen: how its weights were chosen, a sentence. seeds:
    accuracy over seeds of its recipe, if there are several. The others are as in results.json.
    """

    recipe: str
    overrides: Overrides
    seed: int
    epochs: int
    seconds: float
    machine: Machine
    versions: dict[str, str]
    git: GitState | None
    teachers: list[ModelRecord]
    images: int
    chosen: str
    seeds: Spread | None


class Card(TypedDict):
    """Contents of a shipped model's card.json. test: evaluation of the shipped file."""

    name: str
    sha256: str
    dataset: str
    side: int
    parameters: int
    macs: int
    receptive_field: int | None
    memory: Memory | None
    compiled: NotRequired[Compiled | None]
    test: Evaluation
    int8: Int8
    robustness: Robustness
    training: Training


class Listed(TypedDict):
    """An entry of the list of shipped models. bytes, sha256: of its uncompressed file."""

    name: str
    parameters: int
    test_top1: float
    bytes: int
    sha256: str


def cards() -> list[Card]:
    """Return the cards of all shipped models, the most accurate first."""
    found: list[Card] = [
        json.loads(path.read_text(encoding="utf-8")) for path in ZOO.glob(f"*/{CARD_FILE}")
    ]
    return sorted(found, key=lambda card: (-card["test"]["top1"], card["parameters"]))


def listed(card: Card) -> Listed:
    """Return a shipped model's entry, with the actual size and sha256 of its file."""
    content = read_model(ZOO / card["name"] / PACKED_FILE)
    return {
        "name": card["name"],
        "parameters": card["parameters"],
        "test_top1": card["test"]["top1"],
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def find_card(name: str) -> Card:
    """Return the card of the shipped model of that name; case, "-" and "_" do not matter.

    Raises:
        SpratError: there is no such model.
    """
    by_plain_name = {plain(card["name"]): card for card in cards()}
    if plain(name) in by_plain_name:
        return by_plain_name[plain(name)]
    names = [card["name"] for card in by_plain_name.values()]
    raise SpratError(
        f"Unknown pretrained model {shown(name)}{did_you_mean(name, names) or '.'} Available: "
        f"{', '.join(names)}."
    )


def best() -> Path:
    """Return the file of the most accurate shipped model."""
    return ZOO / cards()[0]["name"] / PACKED_FILE


def is_model(word: str) -> bool:
    """Return whether a word names a model (file, run or shipped model) rather than a picture."""
    path = Path(word)
    if path.name.endswith(ENDINGS) or (path.is_dir() and file_of(path).exists()):
        return True
    return not path.exists() and plain(word) in {plain(card["name"]) for card in cards()}


def locate(model: str) -> Path:
    """Return the file or folder of a model, given by its path or, if there is no such path, by a
    shipped model's name.

    Raises:
        SpratError: it is neither.
    """
    path = Path(model)
    if path.exists():
        return path
    try:
        return ZOO / find_card(model)["name"] / PACKED_FILE
    except SpratError as error:
        raise SpratError(
            f"There is no model at {model}. Name a {MODEL_FILE}, the folder of a finished run, or "
            f"a pretrained model. {error}"
        ) from error


def card_text(card: Card) -> str:
    """Return a card as Markdown."""
    test, robustness, training = card["test"], card["robustness"], card["training"]
    low, high = (100 * share for share in test["top1_ci95"])
    classes = [markdown(name) for name in test["per_class"]]
    dataset = markdown(title_of(card["dataset"]))
    processor = markdown(training["machine"]["gpu"] or training["machine"]["cpu"])
    seeds = training["seeds"]
    changed = ", ".join(
        f"{code(key)} {markdown(value)}" for key, value in training["overrides"].items()
    )
    recipe = code(training["recipe"]) + (f" with {changed}" if changed else "")
    spread = (
        f"{seeds['n']} seeds: {100 * seeds['mean']:.2f} ± {100 * seeds['std']:.2f} %"
        if seeds and seeds["std"] is not None
        else "one run; the spread over seeds has not been measured"
    )
    seconds = training["seconds"]
    teachers = [
        f"{markdown(teacher['model'])} ({code(teacher['recipe'])})"
        for teacher in training["teachers"]
    ]
    memory, compiled = [], card.get("compiled")
    if plan := card["memory"]:
        memory = [
            f"Memory in int8, as planned by sprat: {plan['arena']:,} bytes of RAM for activations "
            f"and {plan['weights']:,} bytes of flash for weights. The image ({plan['image']:,} "
            "bytes), the stack and the code need additional memory.",
            "",
        ]
    if compiled:
        uncounted = f"; not counted: {code(', '.join(compiled['library']))}"
        memory += [
            f"In C, compiled by {markdown(compiled['compiler'])} with {code(compiled['flags'])}: "
            f"{compiled['stack']:,} bytes of stack for the deepest calls "
            f"({code(' > '.join(compiled['chain']))}), {compiled['code']:,} bytes of code and "
            f"{compiled['constants']:,} bytes of constants, including the weights"
            f"{uncounted if compiled['library'] else ''}.",
            "",
        ]
    taught = f", taught by {' and '.join(teachers)}" if teachers else ""
    time = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    lines = [
        f"# {markdown(card['name'])}",
        "",
        f"{card['parameters']:,} parameters, {card['macs']:,} multiply-accumulates per image, "
        f"receptive field {card['receptive_field']} px, input {card['side']} x {card['side']} px. "
        f"Classes: {', '.join(classes)}.",
        "",
        *memory,
        f"## On the test set of {dataset}",
        "",
        f"Measured on the model as it ships, in fp16, with {test['n']:,} images:",
        "",
        "| | |",
        "| --- | --- |",
        f"| accuracy, single view | {100 * test['top1']:.2f} % (95 % interval {low:.2f} to "
        f"{high:.2f}) |",
        f"| accuracy, with the mirrored view | {100 * test['tta_top1']:.2f} % |",
        f"| in int8 (ONNX, calibrated on {card['int8']['calibrated_on']} training images) | "
        f"{100 * card['int8']['top1']:.2f} % |",
        f"| the recipe over seeds | {spread} |",
        f"| expected calibration error | {100 * test['ece']:.2f} % |",
        "",
        "| class | accuracy |",
        "| --- | --- |",
        *(
            f"| {name} | {'no image' if share is None else f'{100 * share:.2f} %'} |"
            for name, share in zip(classes, test["per_class"].values(), strict=True)
        ),
        "",
        "Confusion matrix, with true classes in rows and predicted classes in columns:",
        "",
        "| | " + " | ".join(classes) + " |",
        "| --- " * (1 + len(classes)) + "|",
        *(
            f"| {name} | " + " | ".join(map(str, row)) + " |"
            for name, row in zip(classes, test["confusion"], strict=True)
        ),
        "",
        "## Robustness to corrupted images",
        "",
        f"Accuracy in % on the first {robustness['images']:,} test images, by type and severity "
         "of corruption. The corruptions approximate CIFAR-10-C but are not that dataset. The "
         f"accuracy is {100 * robustness['clean']:.1f} without corruption, and "
         f"{100 * robustness['mean']:.1f} on average over the table:",
        "",
        "| | 1 | 2 | 3 | 4 | 5 |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"
            for name, shares in robustness["top1"].items()
        ),
        "",
        "## How it was trained",
        "",
        f"Recipe {recipe}, seed {training['seed']}, {training['epochs']} epochs on "
        f"{training['images']:,} images{taught}, in {time} on "
        f"{processor}. {training['chosen']}",
        "",
        "![Loss, accuracy and learning rate by epoch](curves.png)",
        "",
        "## Limits",
        "",
        f"The model assigns one of its {len(classes)} classes to every picture, often with high "
        "confidence, whatever the picture shows. Larger pictures are cropped to their central "
        f"square and scaled down. Accuracy was measured on {dataset} only.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)
