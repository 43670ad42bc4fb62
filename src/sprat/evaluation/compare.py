"""Results of runs compared with published ones: accuracy against the cost of a network."""

import functools
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NotRequired, TypedDict, cast

from sprat.errors import SpratError
from sprat.evaluation.records import (
    RESULTS_FILE,
    SUMMARY_FILE,
    Accuracy,
    Count,
    Evaluated,
    NetworkSpec,
    Ordinal,
    Share,
    Side,
    Split,
    read_json,
)
from sprat.models import NetworkConfig
from sprat.shapes import MOST_CLASSES, ListOf, mismatch, shape_of, whole
from sprat.text import markdown

if TYPE_CHECKING:
    from sprat.budget import Costs

PUBLISHED_FILE = Path(__file__).parent / "published.toml"
PUBLISHED_DATASET = "cifar10"


# The keys that are read from each kind of result, new or old.


class _Named(TypedDict):
    """A network, its data and its costs, which older results lack."""

    model: str
    dataset: str
    recipe: NotRequired[str | None]
    side: NotRequired[Side]
    network: NotRequired[NetworkSpec]
    parameters: NotRequired[Count]
    macs: NotRequired[Count | None]
    receptive_field: NotRequired[Count | None]


class _Evaluated(_Named, Accuracy):
    """An evaluation, as `sprat evaluate --json` prints it."""

    split: Evaluated


class _Finished(_Named):
    """A run's results.json."""

    test: Accuracy | None
    val: Accuracy | None


class _Mean(TypedDict):
    n: Ordinal
    mean: Share
    std: Share | None


class _Seeds(_Named):
    """A summary.json of several seeds."""

    split: Split
    seeds: Annotated[list[int], ListOf(whole(), 1)]
    classes: NotRequired[Annotated[int, whole(1, MOST_CLASSES)]]
    top1: _Mean


class _Folds(_Named):
    """A results.json of several folds."""

    top1: _Mean
    out_of_fold: Accuracy


EVALUATED, FINISHED, SEEDS, FOLDS = map(shape_of, (_Evaluated, _Finished, _Seeds, _Folds))

Standing = Literal["measured", "published", "claimed"]


@dataclass(frozen=True)
class Entry:
    """One network with one accuracy."""

    name: str
    parameters: int
    macs: int | None
    """Multiply-accumulates per image; None if not published."""
    receptive_field: int | None
    """Pixels; None if not published, or if it covers the whole image."""
    top1: float
    """A fraction; the mean if there are several seeds or folds."""
    protocol: str
    """Protocol by which the accuracy was measured."""
    source: str
    """File or publication that the accuracy is from."""
    standing: Standing = "measured"
    """Status: "measured" by sprat, "published" elsewhere, or only "claimed"."""
    split: Evaluated = "test"
    """Images: "test"; "val" for folds or if the test set was not read; "all" for others."""
    ci95: tuple[float, float] | None = None
    """95 % interval of a single run, over the images it was evaluated on."""
    std: float | None = None
    """Standard deviation over several seeds or folds."""
    n: int = 1
    """Number of seeds or folds."""
    parameters_sign: str = ""
    """Sign "<", ">" or "~" if the parameters are a bound or approximate."""
    top1_sign: str = ""
    """Sign "<", ">" or "~" if the accuracy is a bound or approximate."""

    @property
    def can_lead(self) -> bool:
        """Return whether it may be on the Pareto front: measured on the test set, not just
        claimed."""
        return self.standing != "claimed" and self.split == "test"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def read_entries(paths: Sequence[Path], published: bool = True) -> list[Entry]:
    """Return the entries of results, sorted by parameters.

    Args:
        paths: run folders, folders with a summary.json of seeds or a results.json of folds, such
            files, or files with the output of `sprat evaluate --json`.
        published: whether to add all published results.

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
                f"{file} is not a result of sprat: {wrong}. Give the folder of a run, of a "
                "recipe's seeds or of its folds, or a file with the output of sprat evaluate "
                "--json."
            )
        datasets.setdefault(values["dataset"], file)
        entries.append(_measured(values, file))
    if published:
        datasets.setdefault(PUBLISHED_DATASET, PUBLISHED_FILE)
        entries += read_published()
    if len(datasets) > 1:
        found = ", ".join(f"{name} ({file})" for name, file in datasets.items())
        hint = ", or leave published figures out with --no-published" if published else ""
        raise SpratError(
            f"Results on different datasets cannot be compared: {found}. Give results on one "
            f"dataset{hint}."
        )
    return sorted(entries, key=lambda entry: (entry.parameters, entry.top1))


def read_published() -> list[Entry]:
    """Return the entries in published.toml."""
    entries = []
    for values in tomllib.loads(PUBLISHED_FILE.read_text(encoding="utf-8"))["network"]:
        costs: dict[str, Any] = {"macs": None, "receptive_field": None}
        if model := values.pop("model", None):
            costs |= {**_costs(NetworkConfig(name=model), 10, 32)}
        claimed = values.pop("claimed", False)
        standing: Standing = "claimed" if claimed else "published"
        entries.append(Entry(**costs | values, standing=standing))
    return entries


def pareto_front(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries that no entry with as few or fewer parameters surpasses, sorted by
    parameters.

    Claims and results on val are left out.
    """
    front: list[Entry] = []
    for entry in sorted(entries, key=lambda entry: (entry.parameters, -entry.top1)):
        if entry.can_lead and (not front or entry.top1 > front[-1].top1):
            front.append(entry)
    return front


def comparison_table(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Return a header row and a row of text for each entry; the Pareto front is marked."""
    front = pareto_front(entries)
    head = ("network", "parameters", "MACs", "field", "accuracy", "how", "source", "front")
    return [head, *((*_words(entry), "●" if entry in front else "") for entry in entries)]


def to_markdown(table: Sequence[Sequence[str]]) -> str:
    """Return a table, whose first row is the header, as Markdown."""
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
        f"{path} contains neither {RESULTS_FILE} nor {SUMMARY_FILE}. Give the folder of a finished "
        "run, of a recipe's seeds or of its folds."
    )


def _mismatch(values: Any) -> str | None:
    if isinstance(values, dict) and "seeds" in values:
        return mismatch(values, SEEDS)
    if isinstance(values, dict) and "split" in values:
        wrong, accuracy = mismatch(values, EVALUATED), values
    elif isinstance(values, dict) and "out_of_fold" in values:
        wrong = mismatch(values, FOLDS)
        accuracy = {} if wrong else values["out_of_fold"]
    else:
        wrong = mismatch(values, FINISHED)
        accuracy = {} if wrong else values["test"] or values["val"]
    if not wrong and not accuracy:
        return "test and val are both null"
    if not wrong and len(accuracy["per_class"]) > MOST_CLASSES:
        return f"per_class names more than {MOST_CLASSES:,} classes"
    return wrong


def _measured(values: dict[str, Any], file: Path) -> Entry:
    """Return the entry of a result of any kind."""
    if "seeds" in values:
        return _of_seeds(cast(_Seeds, values), file)
    if "out_of_fold" in values:
        return _of_folds(cast(_Folds, values), file)
    if "split" in values:
        evaluated = cast(_Evaluated, values)
        return _of_one(evaluated, evaluated["split"], evaluated, file)
    finished = cast(_Finished, values)
    split: Split = "test" if finished["test"] else "val"
    accuracy = finished[split]
    assert accuracy is not None  # `_mismatch` checks it
    return _of_one(finished, split, accuracy, file)


def _of_seeds(summary: _Seeds, file: Path) -> Entry:
    top1, split = summary["top1"], summary["split"]
    return Entry(
        **_named(summary, file, summary.get("classes", 10)),
        top1=top1["mean"],
        std=top1["std"],
        n=top1["n"],
        split=split,
        protocol=f"{split}, one run" if top1["n"] == 1 else f"{split}, {top1['n']} seeds",
    )


def _of_folds(results: _Folds, file: Path) -> Entry:
    top1 = results["top1"]
    return Entry(
        **_named(results, file, len(results["out_of_fold"]["per_class"])),
        top1=top1["mean"],
        std=top1["std"],
        n=top1["n"],
        split="val",
        protocol=f"cross-validation, {top1['n']} folds",
    )


def _of_one(result: _Named, split: Evaluated, accuracy: Accuracy, file: Path) -> Entry:
    low, high = accuracy["top1_ci95"]
    return Entry(
        **_named(result, file, len(accuracy["per_class"])),
        top1=accuracy["top1"],
        ci95=(low, high),
        split=split,
        protocol=f"{split}, one run",
    )


def _named(result: _Named, file: Path, classes: int) -> dict[str, Any]:
    """Return an entry's name, source and costs: as recorded in the result or, if it is older, as
    computed from the network it names."""
    network = NetworkConfig.recorded(result.get("network", {"name": result["model"]}))
    recipe = Path(result.get("recipe") or "").name  # without folders, if it is a file
    name = f"{network}, {recipe}" if recipe else str(network)
    if "macs" in result and "parameters" in result:
        counted = {key: result.get(key) for key in ("parameters", "macs", "receptive_field")}
    else:
        seen = result.get("side", 32), result.get("channels", 3)
        counted = {**_costs(network, classes, *seen)}
    return {"name": name, "source": str(file)} | counted


@functools.cache
def _costs(network: NetworkConfig, classes: int, side: int, channels: int = 3) -> "Costs":
    from sprat.budget import costs
    from sprat.models import draft_network

    return costs(draft_network(network, classes, channels), side)
