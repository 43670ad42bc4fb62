"""Training of a trial up to a rung: a function of values that can be sent to any process.

    rung = train_rung(task, source)

A task contains the state of the rung before, so a trial can continue in any process.
"""

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass

from sprat.checkpoint import RESUME_FILE
from sprat.errors import Diverged, Interrupted, lacks_memory
from sprat.files import temporary_folder, write_whole
from sprat.pools.source import Source
from sprat.settings.config import (
    MOST_EPOCHS,
    AugmentConfig,
    BudgetConfig,
    Config,
    DistillConfig,
    EMAConfig,
    MixingConfig,
)
from sprat.training.observer import Observer
from sprat.training.prepare import check, check_fit, check_kernels
from sprat.training.run import Origin, Run
from sprat.training.saving import restore

# A trial is stopped while its learning rate is high and its weights are noisy. So their moving
# average is evaluated instead, which is as good as weights after the learning rate has fallen.
AVERAGED = 0.98


@dataclass(frozen=True)
class Task:
    """Next task of a trial.

    key: identifies the trial. config: settled for this machine; its threads are the trial's. until:
    number of epochs to reach. state: a checkpoint, if the trial has begun. seconds: time after
    which it is given up; 0: never.
    """

    key: str
    config: Config
    until: int
    state: bytes | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Rung:
    """Result of a task.

    val: accuracy on val; 0 if training diverged, None if the trial was given up. seconds: duration
    of the task. state: the checkpoint to continue from.
    """

    key: str
    until: int
    val: float | None
    seconds: float
    diverged: bool = False
    state: bytes = b""


def trial_config(config: Config, epochs: int, images: int) -> Config:
    """Return a recipe's settings for short trials: its optimiser, batches and smoothing, without
    what helps only late in training. Random choices are the same in every trial.

    Args:
        epochs: epochs of a trial that is trained to its last rung.
        images: number of training images; 0: all.
    """
    augment = AugmentConfig(
        flip=config.augment.flip,
        flip_mode=config.augment.flip_mode,
        crop=config.augment.crop,
        crop_mode=config.augment.crop_mode,
    )
    return dataclasses.replace(
        config.in_proportion(epochs),
        train_images=images,
        final=False,
        dropout=0.0,
        weights="ema",
        ema=EMAConfig(decay=AVERAGED),
        evaluate_every=MOST_EPOCHS,
        patience=0,
        tta=1,
        augment=augment,
        mixing=MixingConfig(),
        distill=DistillConfig(),
        budget=BudgetConfig(),  # counted before
    )


def limit(task: Task) -> tuple[float, Rung]:
    """Return the time limit of a task in seconds, 0 for none, and its result if it exceeds that."""
    return task.seconds, Rung(task.key, task.until, None, task.seconds)


def train_rung(task: Task, source: Source, should_stop: Callable[[], bool] = lambda: False) -> Rung:
    """Train a trial up to a rung. Except for its seconds, the result depends on the task and the
    images only.

    Raises:
        Interrupted: `should_stop`, which is called after every step, returned true.
        SpratError: the dataset is not available or has changed, or the machine does not support
            the config.
    """
    began = time.perf_counter()
    config = task.config
    dataset = source.load(config.pictures.side)
    network = check(config, len(dataset.train.classes), dataset.channels)
    check_fit(config, network, dataset)
    check_kernels(config, network, Observer())

    def taken() -> float:
        return time.perf_counter() - began

    def give_up() -> bool:
        return should_stop() or bool(task.seconds and taken() > task.seconds)

    with temporary_folder() as folder:
        run = Run(config, dataset, folder, Origin("search", {}, git=None))
        try:
            if task.state is not None:
                write_whole(folder / RESUME_FILE, task.state)
                restore(run)
            run.train(Observer(), give_up, task.until)
            val = run.progress.history[-1]["ema_top1"]
            if val is None:  # not the last epoch
                averaged = run.step.averaged(run.images.batchnorm_batches())
                val = run.top1(averaged, run.final_images)
            state = (folder / RESUME_FILE).read_bytes()
        except Diverged:
            return Rung(task.key, task.until, 0.0, taken(), diverged=True)
        except Interrupted:
            if should_stop():
                raise
            return Rung(task.key, task.until, None, taken())
        except (MemoryError, RuntimeError) as error:
            if not lacks_memory(error):
                raise
            return Rung(task.key, task.until, None, taken())  # smaller networks may fit
        finally:
            run.images.batches.close()
    return Rung(task.key, task.until, val, taken(), state=state)
