"""Report of a search, one HTML page: the winner, the trials, and the importance of each choice."""

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
# descriptions of the search space's choices
CHOICES = {
    "width": "width relative to the widest that fits", "stem": "stem width relative to stage 1",
    "stem_stride": "stem stride", "depth1": "blocks in stage 1", "depth2": "blocks in stage 2",
    "depth3": "blocks in stage 3", "ratio2": "width of stage 2 relative to stage 1",
    "ratio3": "width of stage 3 relative to stage 2", "stride2": "stride of stage 2",
    "stride3": "stride of stage 3", "kernels": "kernel sizes", "widening": "widening",
    "shortcut": "shortcut", "side": "image side", "optim.lr": "learning rate",
    "optim.muon_lr": "Muon's learning rate", "optim.weight_decay": "weight decay",
}  # fmt: skip


def write_search_page(
    folder: Path, plan: Plan, outcome: Outcome, results: RunResult | None
) -> None:
    """Write the page into the search's folder; it needs no network, no script and no other file.

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
    """Return the last rung that a trial reached, and its accuracy there."""
    last = max(map(int, trial["rungs"]))
    return last, trial["rungs"][str(last)]
