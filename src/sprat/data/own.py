"""The settings by which a folder of your own pictures is read."""

from dataclasses import dataclass
from typing import Literal

from sprat.settings.field import MOST_SEED, Table, setting


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(Table, name="pictures"):
    """How your own pictures, a folder for each class, become images and splits."""

    side: int = setting(
        32,
        "Side that each picture's central square is resized to",
        at_least=16,
        at_most=128,
        unit="pixels",
    )
    unreadable: Literal["refuse", "skip"] = setting(
        "refuse", "Whether to refuse or skip files that are no pictures; both list them"
    )
    test_fraction: float = setting(
        0.2,
        "Fraction of each class held out as the test set, unless there is a folder test/",
        above=0,
        at_most=0.5,
    )
    test_seed: int = setting(
        0,
        "Seed of the test split, separate from split_seed: changing val leaves test unchanged",
        at_least=0,
        at_most=MOST_SEED,
    )
