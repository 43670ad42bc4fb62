"""Files of a search's outcome: outcome.json and trials.json, and the winner's recipe."""

import dataclasses
from pathlib import Path
from typing import Annotated, TypedDict

from sprat import __version__
from sprat.errors import SpratError
from sprat.evaluation.records import Count, Ordinal, Positive, Share, read_json, write_json
from sprat.files import write_whole
from sprat.searching.driver import Decision, Driver
from sprat.searching.journal import importance
from sprat.searching.plan import Plan
from sprat.searching.trials import RECORD, TrialRecord
from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, to_toml
from sprat.shapes import SHARE, ListOf, TableOf, mismatch, shape_of, whole
from sprat.text import visible

OUTCOME_FILE, TRIALS_FILE, RECIPE_FILE = "outcome.json", "trials.json", "winner.toml"
PARETO_FILE, PAGE_FILE = "pareto.png", "report.html"


class FinalistRecord(TypedDict):
    """One of the best trials, and its accuracy on val after `epochs` of all training images.
    epochs: 0 if it was not trained for longer. val: None if there was no time to try any
    network."""

    number: Count
    epochs: Count
    val: Share | None


class Outcome(TypedDict):
    """Contents of outcome.json.

    asked: trials that were drawn: trained, refused or untried. seconds: up to the decision. limits:
    limits given; flash and RAM in bytes, stored as stored_as. trial_images: training
    images of a trial; rungs: epochs after which trials were compared. winner: the number of its
    trial. finalists: best first. importance: importance of each choice for the accuracy after the
    first rung, as a share; empty if there were too few trials.
    """

    asked: Count
    trained: Count
    refused: Count
    diverged: Count
    generations: Ordinal
    seconds: Positive
    limits: Annotated[dict[str, int], TableOf(whole())]
    stored_as: str
    trial_images: Ordinal
    rungs: Annotated[list[int], ListOf(whole(1), 1)]
    winner: Count
    finalists: list[FinalistRecord]
    importance: Annotated[dict[str, float], TableOf(SHARE)]


OUTCOME = shape_of(Outcome)


def outcome_of(decision: Decision, driver: Driver) -> Outcome:
    """Return the record of a decision."""
    plan, states = driver.plan, [trial.state for trial in decision.trials]
    return {
        "asked": len(states),
        "trained": len(states) - states.count("refused") - states.count("untried"),
        "refused": states.count("refused"),
        "diverged": states.count("diverged"),
        "generations": decision.trials[-1].generation + 1,
        "seconds": decision.seconds,
        "limits": {name: int(limit) for name, limit in driver.counter.limits.items()},
        "stored_as": plan.config.budget.stored_as,
        "trial_images": plan.trial_images,
        "rungs": list(plan.rungs),
        "winner": decision.winner.number,
        "finalists": [
            {"number": each.trial.number, "epochs": each.epochs, "val": each.val}
            for each in decision.finalists
        ],
        "importance": importance(decision.trials, driver.space),
    }


def write_trials(folder: Path, decision: Decision) -> list[TrialRecord]:
    """Write trials.json, and return its contents."""
    records = [trial.to_record() for trial in decision.trials]
    write_json(folder / TRIALS_FILE, records)
    return records


def read_trials(folder: Path, outcome: Outcome) -> list[TrialRecord]:
    """Return the contents of trials.json.

    Raises:
        SpratError: it is missing or damaged, or lacks a trial that the outcome names.
    """
    path = folder / TRIALS_FILE
    trials: list[TrialRecord] = read_json(path)
    wrong = mismatch(trials, ListOf(RECORD, 1), "trial")
    if not wrong:
        named = {outcome["winner"], *(each["number"] for each in outcome["finalists"])}
        if not named <= {trial["number"] for trial in trials if trial["state"] != "refused"}:
            wrong = f"it lacks a trial of {OUTCOME_FILE}"
        if not all(epochs.isdecimal() for trial in trials for epochs in trial["rungs"]):
            wrong = "a rung is not a number of epochs"
    if wrong:
        raise SpratError(f"{path} is damaged: {wrong}. Put back a copy of it.")
    return trials


def winning_config(plan: Plan, decision: Decision) -> Config:
    """Return the settings of the winner's training: the final recipe with the winner's design."""
    return decision.winner.design.apply(plan.config, own=plan.own)


def write_recipe(folder: Path, config: Config, outcome: Outcome) -> Path:
    """Write the winner as a recipe that anyone can train; return its path."""
    path = folder / RECIPE_FILE
    limits = ", ".join(f"{name} {limit:,}" for name, limit in outcome["limits"].items())
    head = (
        f"# Found by sprat {__version__} search on {visible(config.dataset)}: the best of "
        f"{outcome['trained']:,} networks that were tried\n# within the limits: {limits or 'none'}."
        "\n\n"
    )
    write_whole(path, head + to_toml(config))
    return path


def read_recipe(folder: Path, plan: Plan) -> Config:
    """Return the settings of the winner's recipe, to be run the way the search was."""
    config = load_recipe(str(folder / RECIPE_FILE))
    how = {name: getattr(plan.config, name) for name in ("dataset", "final", "seed", "device")}
    how |= {name: getattr(plan.config, name) for name in ("kernels", "threads")}
    return dataclasses.replace(config, **how)


def read_outcome(folder: Path) -> Outcome | None:
    """Return the contents of outcome.json, or None before the search has decided.

    Raises:
        SpratError: it is damaged.
    """
    path = folder / OUTCOME_FILE
    if not path.exists():
        return None
    outcome: Outcome = read_json(path)
    if wrong := mismatch(outcome, OUTCOME):
        raise SpratError(
            f"{path} is damaged: {wrong}. Delete it, and resume the search to write it again."
        )
    return outcome
