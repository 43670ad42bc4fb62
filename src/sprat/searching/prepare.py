"""Planning of a search, by what the user asked for, the data and the speed of this machine."""

import dataclasses
import math
import time

from sprat.data import Dataset
from sprat.data.batches import check_batch_size
from sprat.errors import SpratError
from sprat.searching.cost import Counter
from sprat.searching.plan import (
    FINAL_SHARE,
    FINALISTS_SHARE,
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

DRAWS = 2  # designs that are counted for each that meets the limits
OTHER_SECONDS = 2.0  # charts, report, recipe
AT_MOST_SLOWER = 2.0  # an epoch of the winner may take so many times as long as measured


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
        config: settings of the winner's training, with the limits.
        dataset: dataset at the largest side of `data`.
        data: md5 of the images by their side in pixels.
        recipe: name of the recipe that `config` is based on.
        trials: number of trials to train; 0: as many as there is time for.
        seconds: time of the whole search since `began`, in `time.perf_counter`'s; 0: no limit.
        trial_images: training images of a trial; 0: 10,000, or all if there are fewer.
        trial_epochs: epochs of a trial that is trained to its last rung; 0: depends on the number
            of images, and fewer if the time is short.
        generation: trials drawn together.
        threads: CPU threads of a trial.
        observer: notified of what takes long.
        train: whether to reserve time for the winner's training.

    Raises:
        SpratError: no network meets the limits, there are too few images, the config does not fit
            the data or the machine, or the time is too short.
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
    check_batch_size(config.batch_size, of_trial)
    shown = 0 if of_trial == images and not config.train_images else of_trial
    epochs = trial_epochs or epochs_for(of_trial)
    began_design = time.perf_counter()
    design, _ = space.design(space.family()[0], counter)
    ask_seconds = DRAWS * (time.perf_counter() - began_design)

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
    measure(settled, dataset, 0.0)  # a process's first steps take far longer and are not timed
    pace = measure(settled, dataset, seconds)
    plan = dataclasses.replace(
        plan,
        epoch_seconds=pace.epoch + pace.checkpoint,
        task_seconds=pace.start + pace.evaluation,
        ask_seconds=ask_seconds,
        prepared=time.perf_counter() - began,
    )
    _check_time(plan)
    if trial_epochs:
        return plan
    left = plan.trials_end - plan.prepared
    epochs = epochs_within(epochs, generation, plan.epoch_seconds, left, plan.task_seconds)
    return dataclasses.replace(plan, trial=settled.in_proportion(epochs), rungs=rungs_of(epochs))


def _check_time(plan: Plan) -> None:
    """Check that there is time for one trial, and for an epoch of the winner's training even if
    that is slower than measured."""
    one_trial, one_pass = plan.rung_seconds([1]), plan.task_seconds + plan.pass_seconds
    left = max(0.0, plan.seconds - plan.prepared)
    share = 1 - FINAL_SHARE if plan.train else 1.0
    needed = one_trial / (share * (1 - FINALISTS_SHARE))
    if plan.train:
        needed = max(needed, AT_MOST_SLOWER * one_pass / FINAL_SHARE)
    if needed > left:
        raise SpratError(
            f"--time is too short: one epoch of a trial takes {one_trial:.1f} seconds here, one of "
            f"all training images {one_pass:.1f}, and {plan.prepared:.1f} have passed. Give at "
            f"least --time {math.ceil(1.2 * (plan.prepared + needed + OTHER_SECONDS))}s."
        )
