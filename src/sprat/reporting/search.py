"""One HTML page about a search: the winner, what was tried, and what mattered."""

import base64
from pathlib import Path
from typing import Any

from sprat import __version__
from sprat.data import caution_for
from sprat.evaluation.records import RunResult, evaluation_of
from sprat.files import write_whole
from sprat.models import NetworkConfig
from sprat.reporting import make_environment
from sprat.searching.cost import LIMITED
from sprat.searching.outcome import (
    PAGE_FILE,
    PARETO_FILE,
    RECIPE_FILE,
    Outcome,
    read_trials,
)
from sprat.searching.plan import Plan
from sprat.searching.trials import TrialRecord
from sprat.text import command

COST_NAMES = {
    "parameters": "parameters",
    "macs": "MACs",
    "receptive_field": "receptive field, px",
    "flash": "flash, bytes",
    "ram": "RAM, bytes",
}
MOST_ROWS = 500  # trials that the table lists, best first
# what each choice of the space is, in words
CHOICES = {
    "width": "width, of the widest that fits", "stem": "stem's width, of the first stage's",
    "stem_stride": "stem's stride", "depth1": "blocks of stage 1", "depth2": "blocks of stage 2",
    "depth3": "blocks of stage 3", "ratio2": "stage 2's width, of stage 1's",
    "ratio3": "stage 3's width, of stage 2's", "stride2": "stage 2's stride",
    "stride3": "stage 3's stride", "kernels": "windows", "widening": "widening",
    "shortcut": "shortcut", "side": "image side", "optim.lr": "learning rate",
    "optim.muon_lr": "Muon's learning rate", "optim.weight_decay": "weight decay",
}  # fmt: skip


def write_search_page(
    folder: Path, plan: Plan, outcome: Outcome, results: RunResult | None
) -> None:
    """Write the page into the search's own folder; it needs no network, no script, no other file.

    Args:
        results: of the winner's run; None while it is not finished.

    Raises:
        SpratError: trials.json is missing or damaged, or the page cannot be written.
    """
    trials = read_trials(folder, outcome)
    by_number = {trial["number"]: trial for trial in trials}
    winner = by_number[outcome["winner"]]
    tried = [trial for trial in trials if trial["rungs"]]
    ranked = sorted(tried, key=lambda trial: (-_rung(trial)[0], -_rung(trial)[1], trial["number"]))
    cost: dict[str, Any] = dict(winner["cost"])
    limits = {LIMITED[name]: (name, limit) for name, limit in outcome["limits"].items()}
    words = ("sprat", "train", "--recipe")
    environment = make_environment()
    environment.filters |= {"network": lambda spec: str(NetworkConfig.from_dict(spec))}
    page = environment.get_template("search.html").render(
        dataset=Path(plan.config.dataset).name,
        caution=caution_for(plan.config.dataset),
        outcome=outcome,
        winner=winner,
        evaluation=evaluation_of(results) if results else None,
        costs=[
            (name, cost[key], *limits.get(key, (None, None))) for key, name in COST_NAMES.items()
        ],
        finalists=[(each, by_number[each["number"]]) for each in outcome["finalists"]],
        importance=[
            (CHOICES.get(name, name), share) for name, share in outcome["importance"].items()
        ],
        trials=[(trial, *_rung(trial)) for trial in ranked[:MOST_ROWS]],
        all=len(ranked),
        pareto=base64.b64encode((folder / PARETO_FILE).read_bytes()).decode(),
        minutes=f"{outcome['seconds'] / 60:.1f}",
        train=command(*words, folder / RECIPE_FILE, "--dataset", plan.config.dataset, "--final"),
        version=__version__,
    )
    write_whole(folder / PAGE_FILE, page)


def _rung(trial: TrialRecord) -> tuple[int, float]:
    """Return the last rung that a trial came to, and its accuracy there."""
    last = max(map(int, trial["rungs"]))
    return last, trial["rungs"][str(last)]
