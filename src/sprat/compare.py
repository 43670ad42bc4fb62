"""Results of runs beside published figures: accuracy for what a network costs."""

import functools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sprat.errors import SpratError
from sprat.results import RESULTS_FILE, SUMMARY_FILE, read_json
from sprat.shapes import (
    MOST_CLASSES,
    SHARE,
    SIDE,
    TEXT,
    ListOf,
    Maybe,
    Shape,
    TableOf,
    mismatch,
    one_of,
    whole,
)
from sprat.text import markdown

if TYPE_CHECKING:
    from sprat.budget import Summary

PUBLISHED_FILE = Path(__file__).parent / "published.toml"
PUBLISHED_DATASET = "cifar10"

# What is read of each kind of result.
JUDGED: dict[str, Shape] = {
    "top1": SHARE,
    "top1_ci95": ListOf(SHARE, 2, 2),
    "per_class": TableOf(Maybe(SHARE), low=1),
}
NAMED: dict[str, Shape] = {"model": TEXT, "dataset": TEXT, "recipe?": Maybe(TEXT), "side?": SIDE}
SPLIT = one_of("test", "val")
EVALUATED: Shape = NAMED | JUDGED | {"split": SPLIT}
RUN: Shape = NAMED | {"test": Maybe(JUDGED), "val": Maybe(JUDGED)}
SEEDS: Shape = NAMED | {
    "split": SPLIT,
    "seeds": ListOf(whole(), 1),
    "classes?": whole(1, MOST_CLASSES),
    "top1": {"n": whole(1), "mean": SHARE, "std": Maybe(SHARE)},
}

Standing = Literal["measured", "published", "claimed"]


@dataclass(frozen=True)
class Entry:
    """One network with one accuracy.

    macs, receptive_field: None where they are not known; the latter too where it is the whole
        image.
    top1: a fraction; of several seeds the mean.
    ci95: of one run, over the images it was judged on. std, n: over seeds, where there are several.
    standing: "measured" by sprat, "published" elsewhere, or merely "claimed".
    split: "test", or "val" of a run that has not read the test set.
    protocol: how the figure came about. source: the file, or who says so.
    parameters_sign, top1_sign: "<", ">" or "~" where the figure is but a bound or about that.
    """

    name: str
    parameters: int
    macs: int | None
    receptive_field: int | None
    top1: float
    protocol: str
    source: str
    standing: Standing = "measured"
    split: str = "test"
    ci95: tuple[float, float] | None = None
    std: float | None = None
    n: int = 1
    parameters_sign: str = ""
    top1_sign: str = ""

    @property
    def can_lead(self) -> bool:
        """Whether it may stand on the Pareto front: a figure of the test set, and no claim."""
        return self.standing != "claimed" and self.split == "test"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def read_entries(paths: Sequence[Path], published: bool = True) -> list[Entry]:
    """Entries of results and, if asked for, of all published figures, by parameters.

    Args:
        paths: run folders, folders with a summary.json over seeds, or such files, or what
            `sprat evaluate --json` printed.

    Raises:
        SpratError: a file is missing, damaged or of another kind, or the datasets differ.
    """
    entries: list[Entry] = []
    datasets: dict[str, Path] = {}
    for path in paths:
        file = _file_of(path)
        values = read_json(file)
        if wrong := _mismatch(values):
            raise SpratError(
                f"{file} is no result of sprat's: {wrong}; give the folder of a run or of a "
                "recipe's seeds, or what sprat evaluate --json printed"
            )
        datasets.setdefault(values["dataset"], file)
        entries.append(_measured(values, file))
    if published:
        datasets.setdefault(PUBLISHED_DATASET, PUBLISHED_FILE)
        entries += read_published()
    if len(datasets) > 1:
        found = ", ".join(f"{name} ({file})" for name, file in datasets.items())
        remedy = "; leave published figures out by --no-published" if published else ""
        raise SpratError(f"results on different datasets cannot be compared: {found}{remedy}")
    return sorted(entries, key=lambda entry: (entry.parameters, entry.top1))


def read_published() -> list[Entry]:
    """The figures of published.toml."""
    entries = []
    for values in tomllib.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))["network"]:
        costs = {"macs": None, "receptive_field": None}
        if model := values.pop("model", None):
            costs |= _costs(model, 10, 32)
        claimed = values.pop("claimed", False)
        standing: Standing = "claimed" if claimed else "published"
        entries.append(Entry(**costs | values, standing=standing))
    return entries


def pareto_front(entries: Iterable[Entry]) -> list[Entry]:
    """Those that no other surpasses with as few parameters, by parameters. Claims and figures of
    val are left aside."""
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.parameters, -entry.top1)):
        if entry.can_lead and (not front or entry.top1 > front[-1].top1):
            front.append(entry)
    return front


def comparison_table(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """A head and a row an entry, as words; those on the Pareto front are marked."""
    front = pareto_front(entries)
    head = ("network", "parameters", "MACs", "field", "accuracy", "how", "source", "front")
    return [head, *((*_words(entry), "●" if entry in front else "") for entry in entries)]


def to_markdown(table: Sequence[Sequence[str]]) -> str:
    """A table as Markdown, its first row the head."""
    head, *rows = ("| " + " | ".join(map(markdown, row)) + " |" for row in table)
    return "\n".join([head, "| " + " | ".join("---" for _ in table[0]) + " |", *rows])


def _words(entry: Entry) -> tuple[str, ...]:
    accuracy = f"{100 * entry.top1:.2f} %"
    if entry.std is not None:
        accuracy = f"{100 * entry.top1:.2f} ± {100 * entry.std:.2f} %"
    elif entry.ci95 is not None:
        low, high = (100 * share for share in entry.ci95)
        accuracy += f" ({low:.2f} to {high:.2f})"
    elif entry.top1_sign:
        accuracy = f"{entry.top1_sign} {100 * entry.top1:.0f} %"
    return (
        entry.name,
        f"{entry.parameters_sign} {entry.parameters:,}".strip(),
        "" if entry.macs is None else f"{entry.macs:,}",
        "" if entry.receptive_field is None else f"{entry.receptive_field} px",
        accuracy,
        entry.protocol if entry.standing == "measured" else f"{entry.standing}: {entry.protocol}",
        entry.source,
    )


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in (RESULTS_FILE, SUMMARY_FILE):
        if (path / name).exists():
            return path / name
    raise SpratError(
        f"{path} holds neither {RESULTS_FILE} nor {SUMMARY_FILE}; is the run finished?"
    )


def _mismatch(values: Any) -> str | None:
    if isinstance(values, dict) and "seeds" in values:
        return mismatch(values, SEEDS)
    if isinstance(values, dict) and "split" in values:
        wrong, judgement = mismatch(values, EVALUATED), values
    else:
        wrong = mismatch(values, RUN)
        judgement = {} if wrong else values["test"] or values["val"]
    if not wrong and not judgement:
        return "test and val are both null"
    if not wrong and len(judgement["per_class"]) > MOST_CLASSES:
        return f"per_class names more than {MOST_CLASSES:,} classes"
    return wrong


def _measured(values: dict[str, Any], file: Path) -> Entry:
    """Of a summary.json over seeds, a run's results.json, or the JSON of `sprat evaluate`."""
    named = {"source": str(file), "name": values["model"]}
    if recipe := values.get("recipe"):
        named["name"] += f", {recipe}"
    if "seeds" in values:
        top1 = values["top1"]
        costs = _costs(values["model"], values.get("classes", 10), values.get("side", 32))
        runs = "one run" if top1["n"] == 1 else f"{top1['n']} seeds"
        return Entry(
            **named,
            **costs,
            top1=top1["mean"],
            std=top1["std"],
            n=top1["n"],
            split=values["split"],
            protocol=f"{values['split']}, {runs}",
        )
    split = values.get("split") or ("test" if values["test"] else "val")
    judgement = values if "split" in values else values[split]
    return Entry(
        **named,
        **_costs(values["model"], len(judgement["per_class"]), values.get("side", 32)),
        top1=judgement["top1"],
        ci95=tuple(judgement["top1_ci95"]),
        split=split,
        protocol=f"{split}, one run",
    )


def _costs(model: str, classes: int, side: int) -> dict[str, Any]:
    summary = _summary(model, classes, side)
    return {
        "parameters": summary.parameters,
        "macs": summary.macs,
        "receptive_field": summary.receptive_field,
    }


@functools.cache
def _summary(model: str, classes: int, side: int) -> "Summary":
    from sprat.budget import summarize
    from sprat.models import draft_network

    return summarize(draft_network(model, classes), side)
