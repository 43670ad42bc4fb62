"""Mean and spread over the seeds of a recipe, or over the folds of its training images."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from sprat.errors import SpratError
from sprat.evaluation.records import (
    RESULTS_FILE,
    SUMMARY_FILE,
    Evaluation,
    FoldPredictions,
    FoldsResult,
    RunResult,
    SeedSummary,
    Spread,
    evaluation_of,
    read_results,
    write_json,
)
from sprat.files import lock, writing
from sprat.settings.config import Config

# what all seeds of a recipe have in common
SHARED = ("recipe", "overrides", "dataset_md5", "model", "parameters", "final")


def write_summary(folder: Path) -> SeedSummary:
    """Write folder/summary.json over the finished runs in folder/seed-*/results.json; return it.

    If several processes train seeds into one folder, the last one to finish covers them all.

    Raises:
        SpratError: there are none, or they are not seeds of one recipe.
    """
    with writing(folder / SUMMARY_FILE), lock(folder / ".summary.lock", lambda holder: None):
        summary = _summarize(folder)
        write_json(folder / SUMMARY_FILE, summary)
    return summary


def _summarize(folder: Path) -> SeedSummary:
    runs = [read_results(path) for path in folder.glob(f"seed-*/{RESULTS_FILE}")]
    runs.sort(key=lambda run: run["seed"])
    if not runs:
        raise SpratError(f"{folder} contains no seed-*/{RESULTS_FILE}. Train some seeds first.")
    _check_same(runs, folder)
    last = runs[-1]
    split, evaluation = evaluation_of(last)
    evaluations = [evaluation_of(run)[1] for run in runs]
    summary: SeedSummary = {
        "recipe": last["recipe"],
        "overrides": last["overrides"],
        "dataset_md5": last["dataset_md5"],
        "model": last["model"],
        "parameters": last["parameters"],
        "final": last["final"],
        "dataset": last["dataset"],
        "side": last.get("side", 32),  # older results lack it
        "classes": len(evaluation["per_class"]),
        "split": split,
        "seeds": [run["seed"] for run in runs],
        "top1": _spread([each["top1"] for each in evaluations]),
        "tta_top1": _spread([each["tta_top1"] for each in evaluations]),
        "ece": _spread([each["ece"] for each in evaluations]),
        "seconds": _spread([run["seconds"] for run in runs]),
    }
    if last["final"]:
        summary["epochs"] = last["epochs"]
    if "network" in last:  # older results only name it
        summary["network"] = last["network"]
        summary["macs"], summary["receptive_field"] = last.get("macs"), last.get("receptive_field")
    return summary


def summarize_folds(
    runs: Sequence[RunResult],
    together: Evaluation,
    predictions: FoldPredictions | None,
    config: Config,
) -> FoldsResult:
    """Return the content of the results.json of a cross-validation.

    Args:
        runs: results of all folds, in order.
        together: evaluation of all out-of-fold predictions.
        config: the config of any of the runs.
    """
    first = runs[0]
    evaluations = [evaluation_of(run)[1] for run in runs]
    return {
        "recipe": first["recipe"],
        "overrides": first["overrides"],
        "dataset": first["dataset"],
        "dataset_md5": first["dataset_md5"],
        "group_column": config.pictures.group_column,
        "model": first["model"],
        "network": first["network"],
        "side": first["side"],
        "parameters": first["parameters"],
        "macs": first["macs"],
        "receptive_field": first["receptive_field"],
        "seed": first["seed"],
        "split_seed": config.split_seed,
        "epochs": first["epochs"],
        "weights": first["weights"],
        "folds": [
            {
                "fold": run["fold"],
                "n": evaluation["n"],
                "top1": evaluation["top1"],
                "tta_top1": evaluation["tta_top1"],
                "ece": evaluation["ece"],
                "seconds": run["seconds"],
            }
            for run, evaluation in zip(runs, evaluations, strict=True)
        ],
        "top1": _spread([each["top1"] for each in evaluations]),
        "tta_top1": _spread([each["tta_top1"] for each in evaluations]),
        "ece": _spread([each["ece"] for each in evaluations]),
        "seconds": _spread([run["seconds"] for run in runs]),
        "out_of_fold": together,
        "predictions": predictions,
    }


def _check_same(runs: Sequence[RunResult], folder: Path) -> None:
    same = SHARED + (("epochs",) if runs[0]["final"] else ())  # others may stop early
    first: Mapping[str, object] = runs[0]
    for run in runs:
        values: Mapping[str, object] = run
        if differs := [key for key in same if values[key] != first[key]]:
            raise SpratError(
                f"{folder}: seed {run['seed']} differs from seed {runs[0]['seed']} in "
                f"{', '.join(differs)}. Summarize runs that differ only in their seed."
            )


def _spread(values: Sequence[float]) -> Spread:
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }
