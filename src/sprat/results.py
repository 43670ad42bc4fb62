"""The run's folder: who may write there, and its readable files config.json, metrics.jsonl and
results.json.

A shape that scripts can rely on: shares are fractions from 0 to 1, never percent; what was not
measured is null.
"""

import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sprat.errors import SpratError
from sprat.files import holder, lock, sweep, write_whole, writing
from sprat.readers import parse_json, read_text
from sprat.settings.config import MOST_EPOCHS, Config
from sprat.shapes import (
    ANYTHING,
    FLAG,
    MOST_CLASSES,
    NOTHING,
    POSITIVE,
    SETTING,
    SHARE,
    SIDE,
    TEXT,
    ListOf,
    Maybe,
    Shape,
    TableOf,
    mismatch,
    number,
    one_of,
    whole,
)
from sprat.text import command

CONFIG_FILE, METRICS_FILE, RESULTS_FILE = "config.json", "metrics.jsonl", "results.json"
CURVES_FILE, SUMMARY_FILE = "curves.png", "summary.json"
LOCK_FILE = ".lock"  # there while a process trains; says which
# what killed processes of an older sprat left; newer ones' leftovers are swept by what writes
_OLDER = (
    *(".config-*.json", ".metrics-*.jsonl", ".results-*.json", ".curves-*.png"),
    *(".model-*.safetensors", ".last-*.pt"),
)

# What those who read these files rely on. Keys that older runs lack may be missing.
JUDGEMENT: Shape = {
    "top1": SHARE,
    "top1_ci95": ListOf(SHARE, 2, 2),
    "tta_top1": SHARE,
    "tta_views?": whole(1),
    "tta_p?": SHARE,
    "n": whole(1),
    "per_class": TableOf(Maybe(SHARE), low=1),
    "confusion": ListOf(ListOf(whole()), 1, MOST_CLASSES),
    "ece": SHARE,
}
TEACHER: Shape = {"model": TEXT, "recipe": Maybe(TEXT)}
RESULTS: dict[str, Shape] = {
    "recipe": TEXT,
    "overrides": TableOf(SETTING),
    "dataset": TEXT,
    "dataset_md5": TEXT,
    "model": TEXT,
    "network?": TableOf(SETTING),
    "side?": SIDE,
    "parameters": whole(),
    "macs?": Maybe(whole()),
    "receptive_field?": Maybe(whole()),
    "seed": whole(),
    "final": FLAG,
    "epochs": whole(1, MOST_EPOCHS),
    "stopped_early": FLAG,
    "weights": TEXT,
    "best_epoch": Maybe(whole(1, MOST_EPOCHS)),
    "seconds": POSITIVE,
    "images_per_s": POSITIVE,
    "peak_memory_bytes?": Maybe(whole()),
    "test": Maybe(ANYTHING),
    "val": Maybe(ANYTHING),
    "machine": {
        "device": TEXT,
        "gpu": Maybe(TEXT),
        "cpu": TEXT,
        "cores": Maybe(whole()),
        "threads": whole(),
        "precision": TEXT,
        "system": TEXT,
        "kernels?": TEXT,
    },
    "versions": TableOf(TEXT),
    "git": Maybe({"commit": TEXT, "dirty": FLAG}),
    "teachers?": ListOf(TEACHER),
    "teacher?": Maybe(TEACHER),  # of an older run
}
EPOCH: Shape = {
    "epoch": whole(1, MOST_EPOCHS),
    "step": whole(1),
    "loss": number(),
    "judged_on": one_of("val", "probe"),
    "top1": Maybe(SHARE),
    "ema_top1": Maybe(SHARE),
    "probe_top1?": Maybe(SHARE),
    "lr": POSITIVE,
    "seconds": POSITIVE,
    "images_per_s": POSITIVE,
}
BEGINNING: Shape = {
    "recipe": TEXT,
    "overrides": TableOf(SETTING),
    "config": TableOf(ANYTHING),
    "data?": Maybe({"md5": TEXT, "classes": ListOf(TEXT)}),
}


@contextlib.contextmanager
def new_run(recipe: str, seed: int) -> Iterator[Path]:
    """Makes runs/RECIPE-seedN-DATE-TIME for a run that was given no folder; removes it again at
    the end of the block if nothing is in it.

    Of several that begin in the same second, each gets a folder of its own, with a number.
    """
    name = f"{Path(recipe).stem}-seed{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    folder = next(folder for name in names if _make_new(folder := Path("runs") / name))
    try:
        yield folder
    finally:
        for empty in (folder, folder.parent):
            with contextlib.suppress(OSError):
                empty.rmdir()


def _make_new(folder: Path) -> bool:
    """Makes a folder; False if there is one."""
    with writing(folder):
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if not folder.exists():  # a file is where a folder above should be
                raise
            return False
        return True


@contextlib.contextmanager
def locked(run: Path) -> Iterator[Callable[[], bool]]:
    """Keeps a run's folder, which is made if need be, to this process; gives a function that says
    whether it still does.

    Raises:
        SpratError: another process has it.
    """

    def refuse(holder: str) -> None:
        raise _in_use(run, holder)

    with contextlib.ExitStack() as stack:
        with writing(run / LOCK_FILE):
            run.mkdir(parents=True, exist_ok=True)
            held = stack.enter_context(lock(run / LOCK_FILE, refuse))
        yield held


def check_free(run: Path) -> None:
    """Checks that no other process trains in a folder.

    Raises:
        SpratError: one does.
    """
    if found := holder(run / LOCK_FILE):
        raise _in_use(run, found)


def _in_use(run: Path, holder: str) -> SpratError:
    return SpratError(
        f"{run} is in use: {holder} is training there. Wait until it ends, or stop it first."
    )


def check_empty(run: Path) -> None:
    """Checks that a run can begin in a folder: there is none, or nothing but a recipe is in it.

    Raises:
        SpratError: it holds something.
    """
    sweep_run(run)
    if run.exists() and (not run.is_dir() or any(map(_of_a_run, run.iterdir()))):
        begun = (run / CONFIG_FILE).exists()
        hint = f", or resume it: {command('sprat', 'train', '--resume', run)}" if begun else ""
        raise SpratError(
            f"{run} exists already and is not overwritten; give another --output{hint}"
        )


def _of_a_run(path: Path) -> bool:
    return path.name != LOCK_FILE and path.suffix != ".toml"


def sweep_run(run: Path) -> None:
    """Removes what killed processes left in a run's folder."""
    sweep(run)
    for pattern in _OLDER:
        sweep(run, pattern)


def write_json(path: Path, value: Any, *, new: bool = False) -> None:
    """Writes indented JSON, whole or not at all; `new` refuses a file that exists."""
    write_whole(path, json.dumps(value, indent=2, allow_nan=False) + "\n", new=new)


def read_json(path: Path) -> Any:
    """Reads a JSON file: plain values, its numbers finite and within 64 bits.

    Raises:
        SpratError: there is none, or it is damaged.
    """
    try:
        return parse_json(read_text(path))
    except FileNotFoundError as error:
        raise SpratError(f"there is no {path}; is {path.parent} the folder of a run?") from error
    except SpratError:
        raise
    except ValueError as error:
        raise SpratError(f"{path} cannot be read as JSON: {error}") from error


def read_results(path: Path) -> dict[str, Any]:
    """Reads a run's results.json, which then has the shape that it was written with.

    Raises:
        SpratError: there is none, it is damaged, or it is no run's.
    """
    results: dict[str, Any] = read_json(path)
    wrong = mismatch(results, RESULTS)
    if not wrong:
        split, other = ("test", "val") if results["final"] else ("val", "test")
        wrong = mismatch(results[split], JUDGEMENT, split) or _uneven(results[split], split)
        wrong = wrong or mismatch(results[other], NOTHING, other)
    if wrong:
        raise SpratError(
            f"{path} is not what a run of sprat writes: {wrong}. Name the folder of a finished run."
        )
    return results


def _uneven(judgement: dict[str, Any], split: str) -> str | None:
    """What is wrong if the confusion matrix does not have a row and a column for each class."""
    rows, classes = judgement["confusion"], len(judgement["per_class"])
    if len(rows) == classes and all(len(row) == classes for row in rows):
        return None
    return f"{split}.confusion has {len(rows)} rows, expected {classes} of {classes} counts each"


def write_config(
    run: Path, config: Config, recipe: str, changed: dict[str, Any], data: dict[str, Any]
) -> None:
    """Writes what was decided: the recipe's name, what departs from it, the whole config.

    data: what identifies the images, wherever they are: their "md5" and "classes".

    Raises:
        SpratError: the folder has such a file, or it cannot be written.
    """
    values = {"recipe": recipe, "overrides": changed, "config": config.to_dict(), "data": data}
    write_json(run / CONFIG_FILE, values, new=True)


def read_config(run: Path) -> tuple[Config, str, dict[str, Any]]:
    """What `write_config` wrote: config, recipe's name, overrides.

    Raises:
        SpratError: there is no such file, or it is damaged.
    """
    path = run / CONFIG_FILE
    if run.is_dir() and all(found.name.startswith(".") for found in run.iterdir()):
        raise SpratError(
            f"{run} holds no run yet: it was ended before it began. Start it again into the same "
            f"folder: {command('sprat', 'train', '--output', run)}, with its recipe and settings."
        )
    values = read_json(path)
    if wrong := mismatch(values, BEGINNING):
        raise SpratError(
            f"{path} is not what a run of sprat writes: {wrong}. Name the folder of a run."
        )
    config = Config.from_dict(values["config"], source=str(path))
    return config, values["recipe"], values["overrides"]


def read_data(run: Path) -> dict[str, Any] | None:
    """What identifies the images that a run began with; None for a run of an older sprat."""
    found: dict[str, Any] | None = read_json(run / CONFIG_FILE).get("data")
    return found


def read_finished(run: Path) -> dict[str, Any] | None:
    """What results.json of a finished run holds; None if the run is not finished.

    Raises:
        SpratError: the file is damaged.
    """
    if not (run / RESULTS_FILE).exists():
        return None
    return read_results(run / RESULTS_FILE)


def teachers_of(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What a run's results tell of each network that taught it; an older run had one at most."""
    if "teachers" in results:
        return results["teachers"]
    return [results["teacher"]] if results.get("teacher") else []


def resume_finished(run: Path) -> dict[str, Any] | None:
    """The results of a finished run, whose folder is rid of what a kill at its end left there; None
    if the run is not finished.

    Raises:
        SpratError: results.json is damaged.
    """
    results = read_finished(run)
    if results is not None:
        sweep_run(run)
        sweep(run, LOCK_FILE)
    return results


def write_metrics(run: Path, history: list[dict[str, Any]]) -> None:
    """Writes one line of JSON for each epoch so far.

    The whole file each time: after a kill it must hold what the checkpoint holds, no more.
    """
    write_whole(run / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in history))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """One dict for each epoch.

    Raises:
        SpratError: there is no such file, or it is damaged.
    """
    path = run / METRICS_FILE
    try:
        rows = [parse_json(line) for line in read_text(path).removesuffix("\n").split("\n")]
    except FileNotFoundError as error:
        raise SpratError(f"there is no {path}; is {run} the folder of a run?") from error
    except SpratError:
        raise
    except ValueError as error:
        raise SpratError(f"{path} cannot be read: {error}") from error
    if wrong := wrong_history(rows):
        raise SpratError(
            f"{path} is not what a run of sprat writes: {wrong}. Name the folder of a run."
        )
    return rows


def wrong_history(rows: Any) -> str | None:
    """What is wrong with the lines of metrics.jsonl; None if there is one for each epoch."""
    if wrong := mismatch(rows, ListOf(EPOCH, high=MOST_EPOCHS), "epoch"):
        return wrong
    for epoch, row in enumerate(rows, 1):
        if row["epoch"] != epoch or row["judged_on"] != rows[0]["judged_on"]:
            return f"line {epoch} is of epoch {row['epoch']} (judged on {row['judged_on']})"
    return None


def write_summary(folder: Path) -> dict[str, Any]:
    """Writes folder/summary.json over the finished runs in folder/seed-*/results.json.

    Of several processes that train seeds into one folder, the last to end writes it over all.

    Returns:
        The recipe, dataset, model, side and classes, seeds, and "split" (what was judged on, "test"
        or "val"); n,
        mean, standard deviation (of a sample, null for one seed), median, least and greatest of
        each figure.

    Raises:
        SpratError: there are none, or they are not seeds of one recipe.
    """
    with writing(folder / SUMMARY_FILE), lock(folder / ".summary.lock", lambda holder: None):
        return _write_summary(folder)


def _write_summary(folder: Path) -> dict[str, Any]:
    runs = [read_results(path) for path in folder.glob(f"seed-*/{RESULTS_FILE}")]
    runs.sort(key=lambda run: run["seed"])
    if not runs:
        raise SpratError(f"{folder} holds no seed-*/{RESULTS_FILE}; train some first")
    same = ["recipe", "overrides", "dataset_md5", "model", "parameters", "final"]
    same += ["epochs"] if runs[0]["final"] else []  # else early stopping has a say
    for run in runs:
        if differs := [key for key in same if run[key] != runs[0][key]]:
            raise SpratError(
                f"{folder}: seed {run['seed']} differs in {', '.join(differs)}; a summary is over "
                "seeds alone"
            )
    split = "test" if runs[0]["final"] else "val"
    figures = {key: [run[split][key] for run in runs] for key in ("top1", "tta_top1", "ece")}
    figures["seconds"] = [run["seconds"] for run in runs]
    summary = {key: runs[-1][key] for key in (*same, "dataset")}
    summary["side"] = runs[-1].get("side", 32)  # older results do not say
    summary["classes"] = len(runs[-1][split]["per_class"])
    summary |= {"split": split, "seeds": [run["seed"] for run in runs]}
    summary |= {name: _spread(values) for name, values in figures.items()}
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _spread(values: list[float]) -> dict[str, Any]:
    return {
        "n": len(values),
        "mean": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
    }


def original_claims(
    parameters: int,
    receptive_field: int | None,
    training_top1: float,
    test: dict[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    """Return the figures that the original project reports of a run, or why one is missing."""
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
