"""Settings of a search and everything decided before its first trial: settings.json."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from sprat.errors import SpratError
from sprat.evaluation.records import Count, Ordinal, Positive, read_json, write_json
from sprat.searching.trial import trial_config
from sprat.settings.config import Config
from sprat.shapes import TEXT, ListOf, TableOf, mismatch, shape_of, whole

SEARCH_FOLDER, SETTINGS_FILE = "search", "settings.json"
TRIAL_IMAGES = 10_000  # training images of a trial, at most
FULL_IMAGES = 180_000  # images that a trial sees up to its last rung, in at most MOST_PASSES epochs
FEWEST_PASSES, MOST_PASSES = 18, 90
KEPT = 3  # one of so many trials continues at each rung, to so many times the epochs
GENERATION = 9  # trials drawn together: of so many, one reaches the last of three rungs
FINALISTS = 3
LONGER = 3  # a finalist sees so many times the images of a trial up to its last rung
FINAL_SHARE = 0.35  # of the time, for the training of the winner
FINALISTS_SHARE = 0.25  # of the rest, for the finalists
AHEAD = 4  # generations that should fit, if there is a time; trials are shortened for that


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Plan of a search.

    config: settings of the winner's training, including the limits. recipe: name of the recipe
    that they are based on. trial: settings of a trial's training without its design, settled for
    this machine. rungs: epochs after which trials are compared. generation: trials drawn together.
    trials, seconds: end of the search; 0: no such end. data: md5 of the images by their side in
    pixels. channels: of the images. classes: number of classes. images: training images of a run.
    Measured if there is a time: epoch_seconds, of an epoch of a trial; task_seconds, of each rung
    besides its epochs; ask_seconds, to draw a trial; prepared, before the first trial. sampler:
    method of drawing points. train: whether the winner is trained, for which time is reserved.
    """

    config: Config
    recipe: str
    trial: Config
    rungs: tuple[int, ...]
    generation: int
    trials: int
    seconds: float
    data: dict[int, str]
    classes: int
    images: int
    own: bool
    channels: int = 3
    epoch_seconds: float = 0.0
    task_seconds: float = 0.0
    ask_seconds: float = 0.0
    prepared: float = 0.0
    sampler: Literal["tpe", "random"] = "tpe"
    train: bool = True

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the images, largest first."""
        return tuple(self.data)

    @property
    def trials_end(self) -> float:
        """Seconds after which no further trial is trained."""
        return self.prepared + (self.finalists_end - self.prepared) * (1 - FINALISTS_SHARE)

    @property
    def finalists_end(self) -> float:
        """Seconds after which the winner is trained."""
        share = 1 - (FINAL_SHARE if self.train else 0)
        return self.prepared + (self.seconds - self.prepared) * share

    @property
    def trial_images(self) -> int:
        """Number of images of a trial's epoch."""
        return self.trial.train_images or self.images

    @property
    def pass_seconds(self) -> float:
        """Seconds of an epoch of all training images, as measured before the search."""
        return self.epoch_seconds * self.images / self.trial_images

    def rung_seconds(self, rungs: Collection[int], before: int = 0) -> float:
        """Return the seconds of a trial from `before` epochs up to these rungs, as measured before
        the search."""
        epochs = max(rungs, default=before) - before
        return len(rungs) * self.task_seconds + epochs * self.epoch_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return values | {
            "config": self.config.to_dict(),
            "trial": self.trial.to_dict(),
            "rungs": list(self.rungs),
            "data": {str(side): md5 for side, md5 in self.data.items()},
        }

    @property
    def digest(self) -> str:
        """The sha256 of everything that determines the trials."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


class Settings(TypedDict):
    """Contents of settings.json: a `Plan`."""

    config: dict[str, Any]
    recipe: str
    trial: dict[str, Any]
    rungs: Annotated[list[int], ListOf(whole(1), 1)]
    generation: Ordinal
    trials: Count
    seconds: Positive
    data: Annotated[dict[str, str], TableOf(TEXT, low=1)]
    classes: Ordinal
    images: Ordinal
    own: bool
    channels: Ordinal
    epoch_seconds: Positive
    task_seconds: Positive
    ask_seconds: Positive
    prepared: Positive
    sampler: Literal["tpe", "random"]
    train: bool


SETTINGS = shape_of(Settings)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write settings.json into the search's own folder, which has none yet.

    Raises:
        WriteError: it cannot be written.
    """
    write_json(folder / SETTINGS_FILE, plan.to_dict(), new=True)


def read_plan(folder: Path) -> Plan:
    """Return the plan of the search in its own folder.

    Raises:
        SpratError: there is none, or it is damaged.
    """
    path = folder / SETTINGS_FILE
    if not path.exists():
        raise SpratError(
            f"There is no search in {folder.parent}: {path} is missing. Name the folder of a "
            "search, or start one there."
        )
    values = read_json(path)
    wrong = mismatch(values, SETTINGS)
    if not wrong and not all(re.fullmatch("[0-9]{1,6}", side) for side in values["data"]):
        wrong = f"data is {list(values['data'])}, expected sides in pixels"
    if wrong:
        raise SpratError(f"{path} is damaged: {wrong}. Start a new search.")
    known = {each.name: values[each.name] for each in dataclasses.fields(Plan)}
    return Plan(**known | {
        "config": Config.recorded(values["config"], source=str(path)),
        "trial": Config.recorded(values["trial"], source=str(path)),
        "rungs": tuple(values["rungs"]),
        "data": {int(side): md5 for side, md5 in values["data"].items()},
    })  # fmt: skip


def rungs_of(epochs: int) -> tuple[int, ...]:
    """Return the epochs after which trials of so many epochs are compared: a ninth, a third, all
    of them."""
    return tuple(sorted({max(1, epochs // KEPT**2), max(1, epochs // KEPT), epochs}))


def epochs_for(images: int) -> int:
    """Return the epochs of a trial on so many images: the fewer images, the more epochs."""
    return min(MOST_PASSES, max(FEWEST_PASSES, round(FULL_IMAGES / images)))


def epochs_within(
    epochs: int, generation: int, cost: float, seconds: float, task: float = 0.0
) -> int:
    """Return the epochs of a trial, at most `epochs`, with which several generations fit into a
    time; at least 1, and not so few that they are not worth the overhead of their tasks.

    Args:
        cost: seconds of an epoch of a trial.
        task: seconds of each rung besides its epochs.
    """

    def fits() -> bool:
        of_epochs = generation_seconds(rungs_of(epochs), generation, cost)
        whole = generation_seconds(rungs_of(epochs), generation, cost, task)
        return AHEAD * whole <= seconds or of_epochs < whole - of_epochs

    while epochs > 1 and not fits():
        epochs = max(1, round(epochs * 2 / 3) if epochs > 3 else epochs - 1)
    return epochs


def generation_seconds(rungs: tuple[int, ...], count: int, cost: float, task: float = 0.0) -> float:
    """Return the seconds of a generation of `count` trials, one after another; one in three
    continues at each rung.

    Args:
        cost: seconds of an epoch.
        task: seconds of each rung besides its epochs.
    """
    seconds, before = 0.0, 0
    for epochs in rungs:
        seconds += count * (task + (epochs - before) * cost)
        count, before = survivors(count), epochs
    return seconds


def survivors(count: int) -> int:
    """Return how many of so many trials continue at a rung."""
    return max(1, count // KEPT)


def plan_of(config: Config, *, epochs: int, images: int, **rest: Any) -> Plan:
    """Return the plan with trials of so many epochs on so many images (0: all)."""
    trial = trial_config(config, epochs, images)
    return Plan(config=config, trial=trial, rungs=rungs_of(epochs), **rest)
