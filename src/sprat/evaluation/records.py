"""Typed records of runs (metrics.jsonl, results.json and summary.json), and how they are read and
written.

Scripts rely on these formats: accuracies are fractions from 0 to 1, not percent, and what was not
measured is null. Each key is declared once, with its type and bounds: mypy rejects a misspelt key,
and reading rejects a damaged file. Keys that older runs lack are NotRequired.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from sprat.errors import SpratError
from sprat.files import write_whole
from sprat.readers import parse_json, read_text
from sprat.runtime import GitState, Machine
from sprat.settings.config import MOST_EPOCHS
from sprat.shapes import (
    ANYTHING,
    MOST_CLASSES,
    NOTHING,
    POSITIVE,
    SETTING,
    SHARE,
    SIDE,
    ListOf,
    Maybe,
    TableOf,
    mismatch,
    shape_of,
    whole,
)

METRICS_FILE, RESULTS_FILE, SUMMARY_FILE = "metrics.jsonl", "results.json", "summary.json"

Split = Literal["test", "val"]
Evaluated = Literal["test", "val", "all"]  # all: every one of your own pictures, whatever its part
Share = Annotated[float, SHARE]
Positive = Annotated[float, POSITIVE]  # seconds, a learning rate, images per second
Count = Annotated[int, whole()]
Ordinal = Annotated[int, whole(1)]
Epoch = Annotated[int, whole(1, MOST_EPOCHS)]
Side = Annotated[int, SIDE]
Channels = Annotated[int, whole(1, 3)]
Overrides = dict[str, Annotated[Any, SETTING]]
NetworkSpec = dict[str, Annotated[Any, SETTING]]  # name and settings of a network


class Accuracy(TypedDict):
    """Accuracy with a single view of each image, its 95 % interval, and accuracy by class.

    Classes without images have no accuracy: null.
    """

    top1: Share
    top1_ci95: Annotated[list[float], ListOf(SHARE, 2, 2)]
    per_class: Annotated[dict[str, float | None], TableOf(Maybe(SHARE), low=1)]


class Evaluation(Accuracy):
    """Evaluation of a network on one set of images.

    tta_top1: accuracy of the mean of tta_views views. tta_p: McNemar's p-value of its difference
    from top1. confusion: counts, with a row per true class and a column per predicted class. ece:
    expected calibration error.
    """

    tta_top1: Share
    tta_views: NotRequired[Ordinal]
    tta_p: NotRequired[Share]
    n: Ordinal
    confusion: Annotated[list[list[int]], ListOf(ListOf(whole()), 1, MOST_CLASSES)]
    ece: Share


class Scores(TypedDict):
    """Accuracy at the end of an epoch; null if the epoch was not evaluated.

    top1, ema_top1: with the raw and the averaged weights, on val or the probe. probe_top1: with the
    kept weights, on the probe, which are training images without augmentation and mixing.
    """

    top1: Share | None
    ema_top1: Share | None
    probe_top1: NotRequired[Share | None]


class EpochRow(Scores):
    """A line of metrics.jsonl: one epoch.

    step: optimizer steps so far. loss: mean over the epoch. lr: learning rate of the last step.
    seconds: of training only.
    """

    epoch: Epoch
    step: Ordinal
    loss: float
    evaluated_on: Literal["val", "probe"]
    lr: Positive
    seconds: Positive
    images_per_s: Positive


class ModelRecord(TypedDict):
    """A trained model that a run used. sha256: of its file without ranges of activations, which may
    be added to it later."""

    model: str
    parameters: NotRequired[Annotated[int, ANYTHING]]
    sha256: NotRequired[Annotated[str, ANYTHING]]
    recipe: str | None
    seed: NotRequired[Annotated[int | None, ANYTHING]]
    val_top1: NotRequired[Annotated[float | None, ANYTHING]]
    test_top1: NotRequired[Annotated[float | None, ANYTHING]]


class StartRecord(ModelRecord):
    """The model that a run started from.

    taken, new: names of the tensors that started with the model's values, and of those that started
    as in a run from scratch. classifier: whether it was taken, taken with its classes reordered, or
    is new. *_parameters: numbers of trained values, without statistics.
    """

    dataset: str | None
    classifier: Literal["kept", "reordered", "new"]
    taken: list[str]
    taken_parameters: Count
    new: list[str]
    new_parameters: Count


class OriginalClaims(TypedDict):
    """The figures that the original project reports, for this run; the reason for each null is
    given."""

    total_parameters: int
    receptive_field: int | None
    training_accuracy: float
    best_test_accuracy: float | None
    peak_test_accuracy: float | None
    test_accuracy: float | None
    tta_accuracy: float | None
    training_time_hours: float
    reasons: dict[str, str]


class RunResult(TypedDict):
    """Content of results.json: how a finished run went, and the evaluation at its end.

    test: evaluation of a final run, else null. val: of any other run. fold, folds: if val is one of
    several folds, where no weights are chosen. seconds: of the whole run, including evaluations.
    overrides: settings that differ from the recipe. macs: multiply-accumulates per image; null,
    like receptive_field (pixels), if they cannot be counted; the latter also if it covers the whole
    image.
    """

    recipe: str
    overrides: Overrides
    dataset: str
    dataset_md5: str
    train_per_class: NotRequired[Annotated[dict[str, int], ANYTHING]]
    model: str
    network: NotRequired[NetworkSpec]
    side: NotRequired[Side]
    channels: NotRequired[Channels]
    parameters: Count
    macs: NotRequired[Count | None]
    receptive_field: NotRequired[Count | None]
    seed: Count
    final: bool
    folds: NotRequired[Count]
    fold: NotRequired[Count]
    epochs: Epoch
    stopped_early: bool
    weights: str
    best_epoch: Epoch | None
    seconds: Positive
    images_per_s: Positive
    peak_memory_bytes: NotRequired[Count | None]
    test: Evaluation | None
    val: Evaluation | None
    machine: Machine
    versions: dict[str, str]
    git: GitState | None
    teachers: NotRequired[list[ModelRecord]]
    teacher: NotRequired[ModelRecord | None]  # of older runs, which had at most one
    original_claims: NotRequired[Annotated[OriginalClaims, ANYTHING]]
    brief: NotRequired[Annotated[OriginalClaims, ANYTHING]]  # its name in older runs
    start: NotRequired[StartRecord | None]  # null: from scratch


class Spread(TypedDict):
    """Mean and spread of one figure over `n` runs. std: sample standard deviation, null for one
    run."""

    n: int
    mean: float
    std: float | None
    median: float
    min: float
    max: float


class SeedSummary(TypedDict):
    """Content of summary.json: the seeds of a recipe, with mean and spread of each figure.

    split: what the figures were measured on. epochs: of final runs only, since others may stop
    early.
    """

    recipe: str
    overrides: Overrides
    dataset_md5: str
    model: str
    network: NotRequired[NetworkSpec]
    parameters: int
    macs: NotRequired[int | None]
    receptive_field: NotRequired[int | None]
    final: bool
    epochs: NotRequired[int]
    dataset: str
    side: int
    classes: int
    split: Split
    seeds: list[int]
    top1: Spread
    tta_top1: Spread
    ece: Spread
    seconds: Spread


class FoldRecord(TypedDict):
    """The run of one fold: its accuracy on the `n` images of the fold, on which it was not
    trained."""

    fold: Ordinal
    n: Ordinal
    top1: Share
    tta_top1: Share
    ece: Share
    seconds: Positive


class FoldPredictions(TypedDict):
    """Prediction of each image by the run that held it out, as lists in the order of the images.

    image: its path, or train/ and its number. fold: from 1. label, predicted: classes.
    label_probability, predicted_probability: of these two classes.
    """

    image: list[str]
    fold: list[int]
    label: list[str]
    predicted: list[str]
    label_probability: list[float]
    predicted_probability: list[float]


class FoldsResult(TypedDict):
    """Content of the results.json of a cross-validation: its folds, mean and spread of each figure,
    and the evaluation of all out-of-fold predictions together.

    weights: which weights each fold's run kept, after its last epoch. predictions: null if there
    are too many to list.
    """

    recipe: str
    overrides: Overrides
    dataset: str
    dataset_md5: str
    group_column: str
    model: str
    network: NetworkSpec
    side: Side
    parameters: Count
    macs: Count | None
    receptive_field: Count | None
    seed: Count
    split_seed: Count
    epochs: Epoch
    weights: str
    folds: list[FoldRecord]
    top1: Spread
    tta_top1: Spread
    ece: Spread
    seconds: Spread
    out_of_fold: Evaluation
    predictions: FoldPredictions | None


EVALUATION, EPOCH_ROW, RUN_RESULT = map(shape_of, (Evaluation, EpochRow, RunResult))


def evaluation_of(results: RunResult) -> tuple[Split, Evaluation]:
    """Return the split on which a run was evaluated at its end, and that evaluation."""
    split: Split = "test" if results["final"] else "val"
    evaluation = results[split]
    assert evaluation is not None  # `read_results` checks it
    return split, evaluation


def teachers_of(results: RunResult) -> list[ModelRecord]:
    """Return the records of the teachers of a run."""
    if "teachers" in results:
        return results["teachers"]
    teacher = results.get("teacher")
    return [teacher] if teacher else []


def original_claims(
    parameters: int,
    receptive_field: int | None,
    training_top1: float,
    test: Evaluation | None,
    seconds: float,
) -> OriginalClaims:
    """Return for a run the figures that the original project reports, or why one is missing."""
    during = "would need the test set read during training, which a run never does"
    reasons = {"best_test_accuracy": during, "peak_test_accuracy": during}
    if test is None:
        reading = "the test set is read by a --final run only, or by sprat evaluate --split test"
        reasons |= {"test_accuracy": reading, "tta_accuracy": reading}
    return {
        "total_parameters": parameters,
        "receptive_field": receptive_field,
        "training_accuracy": training_top1,
        "best_test_accuracy": None,
        "peak_test_accuracy": None,
        "test_accuracy": test["top1"] if test else None,
        "tta_accuracy": test["tta_top1"] if test else None,
        "training_time_hours": seconds / 3600,
        "reasons": reasons,
    }


def write_json(path: Path, value: Any, *, new: bool = False) -> None:
    """Write indented JSON, completely or not at all; `new` refuses a file that exists."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n", new=new)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file: plain values, with numbers finite and within 64 bits.

    Raises:
        SpratError: the file is missing or damaged.
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError as error:
        raise _missing(path) from error
    except SpratError:
        raise
    except ValueError as error:
        raise SpratError(
            f"{path} cannot be read as JSON: {error}. Name the folder of a run."
        ) from error


def read_results(path: Path) -> RunResult:
    """Return the content of a run's results.json.

    Raises:
        SpratError: the file is missing, damaged or not a run's.
    """
    results: RunResult = read_json(path)
    wrong = mismatch(results, RUN_RESULT)
    if not wrong:
        split: Split = "test" if results["final"] else "val"
        other: Split = "val" if results["final"] else "test"
        wrong = mismatch(results[split], EVALUATION, split)
        wrong = wrong or mismatch(results[other], NOTHING, other)
        wrong = wrong or _wrong_confusion(*evaluation_of(results))
    if wrong:
        raise SpratError(
            f"{path} is not a file that a run of sprat writes: {wrong}. Name the folder of a "
            "finished run."
        )
    return results


def read_finished(run: Path) -> RunResult | None:
    """Return the content of a run's results.json, or None if the run is not finished.

    Raises:
        SpratError: the file is damaged.
    """
    if not (run / RESULTS_FILE).exists():
        return None
    return read_results(run / RESULTS_FILE)


def _wrong_confusion(split: Split, evaluation: Evaluation) -> str | None:
    """Return what is wrong with a confusion matrix unless it has a row and a column per class."""
    rows, classes = evaluation["confusion"], len(evaluation["per_class"])
    if len(rows) == classes and all(len(row) == classes for row in rows):
        return None
    return f"{split}.confusion has {len(rows)} rows, expected {classes} of {classes} counts each"


def write_metrics(run: Path, history: list[EpochRow]) -> None:
    """Write metrics.jsonl: one line of JSON for each epoch so far.

    The whole file is written each time: after a kill it must not be ahead of the checkpoint.
    """
    write_whole(run / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in history))


def read_metrics(run: Path) -> list[EpochRow]:
    """Return the content of a run's metrics.jsonl: a row for each epoch.

    Raises:
        SpratError: the file is missing or damaged.
    """
    path = run / METRICS_FILE
    try:
        rows = [parse_json(line) for line in read_text(path).removesuffix("\n").split("\n")]
    except FileNotFoundError as error:
        raise _missing(path) from error
    except SpratError:
        raise
    except ValueError as error:
        raise SpratError(f"{path} cannot be read: {error}. Name the folder of a run.") from error
    rows = with_names_of_today(rows)
    if wrong := wrong_history(rows):
        raise SpratError(
            f"{path} is not a file that a run of sprat writes: {wrong}. Name the folder of a run."
        )
    return rows


def with_names_of_today(rows: list[Any]) -> list[Any]:
    """Return rows of metrics.jsonl by the current names; older runs have `judged_on`."""
    return [
        {"evaluated_on" if key == "judged_on" else key: value for key, value in row.items()}
        if isinstance(row, dict)
        else row
        for row in rows
    ]


def wrong_history(rows: Any) -> str | None:
    """Return what is wrong with the rows of metrics.jsonl; None if there is one for each epoch."""
    if wrong := mismatch(rows, ListOf(EPOCH_ROW, high=MOST_EPOCHS), "epoch"):
        return wrong
    for epoch, row in enumerate(rows, 1):
        if row["epoch"] != epoch or row["evaluated_on"] != rows[0]["evaluated_on"]:
            return (
                f"line {epoch} is about epoch {row['epoch']} (evaluated on {row['evaluated_on']})"
            )
    return None


def _missing(path: Path) -> SpratError:
    return SpratError(f"There is no {path}. Name the folder of a run.")
