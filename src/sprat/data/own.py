"""Forms that your own pictures can have, and the settings to read them with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sprat.settings.field import MOST_SEED, Table, setting

Form = Literal["table", "archive", "parquet"]
FORMS: dict[str, Form] = {
    ".csv": "table", ".tsv": "table", ".jsonl": "table", ".ndjson": "table",
    ".zip": "archive", ".tar": "archive", ".tgz": "archive", ".tbz2": "archive",
    ".txz": "archive", ".tar.gz": "archive", ".tar.bz2": "archive", ".tar.xz": "archive",
    ".parquet": "parquet",
}  # fmt: skip
OWN = (
    "a folder of your own pictures, a table of them (.csv, .tsv, .jsonl), an archive (.zip, .tar, "
    ".tar.gz, .tar.bz2, .tar.xz) or a .parquet file"
)


def form_of(name: str) -> Form | None:
    """Return the form of your own pictures that a file name stands for; None for any other file."""
    return next((form for ending, form in FORMS.items() if name.lower().endswith(ending)), None)


COLUMNS = ("path_column", "label_column", "group_column")  # settings that name a column


def is_own(path: Path) -> bool:
    """Return whether a path may be your own pictures: a folder, or a file in one of the forms."""
    return path.is_dir() or (path.is_file() and form_of(path.name) is not None)


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(Table, name="pictures"):
    """Settings for turning your own pictures into images, labels and splits."""

    side: int = setting(
        32,
        "Side that the central square of each picture is resized to",
        at_least=16,
        at_most=128,
        unit="pixels",
    )
    channels: Literal["auto", 1, 3] = setting(
        "auto", "Channels to train with; auto: 1 if all pictures are grey, else 3"
    )
    unreadable: Literal["refuse", "skip"] = setting(
        "refuse", "Refuse or skip files that are missing or not pictures; both list them"
    )
    path_column: str = setting(
        "",
        "Column with the paths of the pictures, or with the pictures themselves in parquet files",
    )
    label_column: str = setting("", "Column of a table or of parquet files with the labels")
    group_column: str = setting(
        "",
        "Column of a table or of parquet files that groups pictures (by patient, place, video); "
        "a group is never split between training, val, test and folds",
    )
    test_fraction: float = setting(
        0.2,
        "Fraction of each class to hold out as the test set, if there is no test part",
        above=0,
        at_most=0.5,
    )
    test_seed: int = setting(
        0,
        "Seed of the test split, separate from split_seed: changing val leaves test unchanged",
        at_least=0,
        at_most=MOST_SEED,
    )
