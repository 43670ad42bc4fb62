"""A search's plan, made from what was asked for, the data and this machine."""

import dataclasses
import math
import time

from sprat.data import Dataset
from sprat.errors import SpratError
from sprat.searching.cost import Counter
from sprat.searching.plan import (
    FINAL_SHARE,
    TRIAL_IMAGES,
    Plan,
    epochs_for,
    epochs_within,
    rungs_of,
)
from sprat.searching.space import Space
from sprat.searching.trial import trial_config
from sprat.settings.config import Config
from sprat.training.images import split_off_val
from sprat.training.observer import Observer
from sprat.training.pace import measure
from sprat.training.start import settle_for

OTHER_SECONDS = 2.0  # drawings, the page, the recipe


def prepare(
    config: Config,
    dataset: Dataset,
    data: dict[int, str],
    *,
    recipe: str,
    trials: int,
    seconds: float,
    began: float,
    trial_images: int,
    trial_epochs: int,
    generation: int,
    threads: int,
    observer: Observer,
    train: bool = True,
) -> Plan:
    """Return the plan of a search.

    Args:
        config: what the winner is trained by, with the limits.
        dataset: at the largest of the sides in pixels that `data` has md5s of.
        recipe: name of the recipe that `config` began as.
        trials: number of trials to train; 0: as many as there is time for.
        seconds: of the whole search, from `began`, a moment of `time.perf_counter`; 0: no limit.
        trial_images: training images of a trial; 0: 10,000, or all if there are fewer.
        trial_epochs: of a trial that is trained to its last rung; 0: by the number of images, and
            fewer if the time is short.
        generation: trials that are asked together.
        threads: of a trial.
        observer: hears what takes long.
        train: whether some of the time is for the winner's training.

    Raises:
        SpratError: the limits leave nothing, there are too few images, the config does not fit the
            data or the machine, or the time is too short.
    """
    classes, own = len(dataset.train.classes), dataset.own is not None
    counter = Counter(config.budget, classes, dataset.channels)
    space = Space(config, tuple(data))
    space.check(counter)
    images = len(split_off_val(dataset, config)[0])
    images = min(images, config.train_images or images)
    if trial_images > images:
        raise SpratError(
            f"--trial-images is {trial_images:,}, but there are {images:,} to train on. Give fewer."
        )
    of_trial = trial_images or min(TRIAL_IMAGES, images)
    shown = 0 if of_trial == images and not config.train_images else of_trial
    epochs = trial_epochs or epochs_for(of_trial)
    design, _ = space.design(space.family()[0], counter)

    def trial(epochs: int) -> Config:
        return design.apply(trial_config(config, epochs, shown), own=own)

    asked = dataclasses.replace(trial(epochs), threads=threads)
    settled = settle_for(asked, dataset, observer)
    plan = Plan(
        config=dataclasses.replace(config, dataset=dataset.name),
        recipe=recipe,
        trial=settled,
        rungs=rungs_of(epochs),
        generation=generation,
        trials=trials,
        seconds=max(0.0, seconds - OTHER_SECONDS) if seconds else 0.0,
        data=data,
        classes=classes,
        images=images,
        own=own,
        channels=dataset.channels,
        train=train,
    )
    if not seconds:
        return plan
    pace = measure(settled, dataset, seconds)
    cost = pace.epoch + pace.checkpoint + pace.evaluation / 2
    _check_time(plan, pace.epoch, cost, time.perf_counter() - began)
    if not trial_epochs:
        left = plan.trials_end - (time.perf_counter() - began)
        epochs = epochs_within(epochs, generation, cost, left)
    return dataclasses.replace(
        plan, trial=settled.in_proportion(epochs), rungs=rungs_of(epochs), epoch_seconds=cost
    )


def _check_time(plan: Plan, epoch: float, cost: float, spent: float) -> None:
    """Check that the time is enough for one trial, and an epoch of the winner's training.

    Args:
        epoch: seconds of an epoch of a trial, and `cost` with what comes with it.
        spent: seconds so far.
    """
    trials_share = plan.trials_end / plan.seconds if plan.seconds else 1.0
    needed = (spent + cost) / trials_share
    if plan.train:
        needed = max(needed, 1.5 * epoch * plan.images / plan.trial_images / FINAL_SHARE)
    if needed > plan.seconds:
        raise SpratError(
            f"--time is too short: an epoch of a trial takes {cost:.1f} seconds here, and one of "
            f"all training images {epoch * plan.images / plan.trial_images:.1f}. Give at least "
            f"--time {math.ceil(1.1 * (needed + OTHER_SECONDS))}s."
        )
