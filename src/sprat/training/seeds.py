"""One recipe trained with several seeds, and a summary of the results."""

import dataclasses
from pathlib import Path
from typing import Unpack

from sprat.data import Dataset
from sprat.evaluation.records import SeedSummary
from sprat.evaluation.summary import write_summary
from sprat.settings.config import Config
from sprat.training.several import Apart, Ended, How, train_each


def train_seeds(
    config: Config,
    dataset: Dataset,
    folder: Path,
    count: int,
    ended: Ended | None = None,
    apart: Apart | None = None,
    **how: Unpack[How],
) -> SeedSummary:
    """Train with `count` seeds from config.seed on, each into folder/seed-N; return the content of
    folder/summary.json, which covers all finished seeds there.

    Finished seeds are kept and an interrupted one is resumed.

    Raises:
        SpratError: as `train_each`.
        Interrupted: `should_stop` returned true; the same call resumes.
    """
    seeds = range(config.seed, config.seed + count)
    members = {folder / f"seed-{seed}": dataclasses.replace(config, seed=seed) for seed in seeds}
    train_each(members, dataset, ended, apart, **how)
    return write_summary(folder)
