"""A run: the loop over epochs, and its state between steps."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from sprat import distributed
from sprat.checkpoint import RESUME_FILE
from sprat.data import Dataset
from sprat.data.imageset import ImageSet
from sprat.errors import Diverged
from sprat.errors import Interrupted as Interrupted
from sprat.evaluation.evaluate import predict_probabilities, top1
from sprat.evaluation.records import EpochRow, Scores, StartRecord, write_metrics
from sprat.runtime import GitState, git_state, keep_freed_memory, set_threads
from sprat.settings.config import Config
from sprat.training.distill import Teacher
from sprat.training.head_start import HeadStart
from sprat.training.images import RunImages, balanced_weights
from sprat.training.observer import Observer
from sprat.training.saving import save
from sprat.training.schedules import RunSchedule
from sprat.training.step import Step, new_network


class Best(TypedDict):
    """Epoch with the best accuracy on val, and its weights."""

    epoch: int
    top1: float
    weights: dict[str, Tensor]


@dataclass
class Progress:
    """Progress of a run.

    epoch: finished epochs. batch: finished batches of the current epoch, whose losses are kept.
    epoch_seconds: training time in that epoch. seconds: time of the run up to its latest weights,
    including evaluations before. history: a row of metrics.jsonl for each epoch.
    """

    losses: Tensor
    epoch: int = 0
    batch: int = 0
    epoch_seconds: float = 0.0
    seconds: float = 0.0
    history: list[EpochRow] = field(default_factory=list)
    best: Best | None = None


@dataclass
class Origin:
    """Origin of a run: its recipe's name and changes to it, the state of the code, and the model
    that it started from."""

    recipe: str = "custom"
    overrides: dict[str, Any] = field(default_factory=dict)
    git: GitState | None = field(default_factory=git_state)  # now: files may be edited later
    start: StartRecord | None = None


class Run:
    """One training and its folder.

    Args:
        config: settled for this machine.
        dataset: what to learn.
        folder: where it is saved.
        origin: recorded in the results.
        start: model whose weights it starts from; None if it starts from scratch or is restored.

    Raises:
        SpratError: there are too few images, or a teacher or `start` is missing or unsuitable.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        folder: Path,
        origin: Origin | None = None,
        start: HeadStart | None = None,
    ) -> None:
        self.config, self.dataset, self.folder = config, dataset, folder
        self.origin = origin or Origin()
        self.is_ours: Callable[[], bool] = lambda: True  # whether it still holds the folder
        set_threads(config.threads)
        keep_freed_memory()
        self.images = RunImages.of(dataset, config)
        self.teachers = [Teacher.load(name) for name in config.distill.teacher]
        for teacher in self.teachers:
            teacher.check(dataset, config.final)
        batches, classes = self.images.batches, len(dataset.train.classes)
        network = new_network(config, classes, dataset.channels)
        if start:
            start.check(dataset, config.final)
            self.origin.start = start.give(network, config.network, dataset.train.classes)
        weights = None
        if config.class_weights == "balanced":
            weights = balanced_weights(batches.dataset).to(config.device)
        self.step = Step(
            network,
            config,
            RunSchedule(config, len(batches)),
            dataset.normalization,
            classes,
            class_weights=weights,
            teachers=self.teachers,
        )
        self.progress = Progress(torch.zeros(len(batches), device=config.device))
        self.clock = time.perf_counter()  # time is counted up to here

    @property
    def steps_taken(self) -> int:
        """Number of optimizer steps taken."""
        return self.progress.epoch * len(self.images.batches) + self.progress.batch

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.step.schedule.total_steps

    @property
    def final_images(self) -> ImageSet:
        """Images of the final evaluation: val, or the test set in a final run."""
        return self.dataset.test if self.images.val is None else self.images.val

    @property
    def chooses(self) -> bool:
        """Return whether accuracy on val decides which epoch's weights are kept, and when to stop.

        Not if val is a fold, which measures what a `final` run achieves on unseen images.
        """
        return self.images.val is not None and not self.config.fold

    @property
    def finished(self) -> bool:
        """Return whether no epoch is left, or the run has stopped early."""
        return self.progress.epoch >= self.config.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Return whether accuracy on val has not improved for `patience` epochs."""
        best, epoch, patience = self.progress.best, self.progress.epoch, self.config.patience
        if not patience or not best:
            return False
        return epoch - best["epoch"] >= patience and epoch < self.config.epochs

    def train(
        self, observer: Observer, should_stop: Callable[[], bool], until: int | None = None
    ) -> None:
        """Train until the run is finished. Each epoch ends with an evaluation and a checkpoint.

        Args:
            until: number of epochs after which to return early; None to train to the end.

        Raises:
            Interrupted: `should_stop` returned true after a step; the run is saved.
            Diverged: the loss or a weight is no longer finite.
            SpratError: a file cannot be written.
        """
        progress, batches = self.progress, self.images.batches
        # reading the loss synchronises a GPU, so there it is checked once per epoch
        look_every = 1 if self.config.device == "cpu" else len(batches)
        observer.started(self)
        self.clock = time.perf_counter()
        last = self.config.epochs if until is None else until
        while not distributed.any_of(self.finished or progress.epoch >= last):
            self.step.network.train()
            for images, labels in batches.epoch(progress.epoch, start=progress.batch):
                progress.losses[progress.batch] = self.step(images, labels, self.steps_taken)
                progress.batch += 1
                if progress.batch % look_every == 0:
                    self._check_losses()
                observer.stepped(self)
                progress.epoch_seconds += self._count()
                if distributed.any_of(should_stop()):
                    self._check_losses()
                    self._check_weights()
                    save(self)
                    raise Interrupted(self.folder)
            progress.epoch, progress.batch = progress.epoch + 1, 0
            self._check_weights()
            distributed.share(self.step.network.parameters())  # machines may round differently
            if distributed.is_first():
                row = self.end_epoch()
                self._count()
                save(self)
                write_metrics(self.folder, progress.history)
                observer.epoch_ended(self, row)

    def end_epoch(self) -> EpochRow:
        """Evaluate the finished epoch, keep its weights if they are the best, return its row."""
        progress, batches = self.progress, self.images.batches
        scores = self._scores()
        row: EpochRow = {
            "epoch": progress.epoch,
            "step": self.steps_taken,
            "loss": progress.losses.cpu().double().mean().item(),
            "evaluated_on": self.images.evaluated[0],
            **scores,
            "lr": self.step.schedule.lr(self.steps_taken - 1),
            "seconds": progress.epoch_seconds,
            "images_per_s": len(batches) * self.config.batch_size / progress.epoch_seconds,
        }
        progress.history.append(row)
        score = scores[self._kept_score]
        best = progress.best["top1"] if progress.best else -1.0
        if self.chooses and score is not None and score > best:
            weights = {k: v.cpu().clone() for k, v in self.kept_network().state_dict().items()}
            progress.best = {"epoch": progress.epoch, "top1": score, "weights": weights}
        progress.epoch_seconds = 0.0
        return row

    def _scores(self) -> Scores:
        """Return the accuracies at the end of an epoch."""
        progress, images = self.progress, self.images
        scores: Scores = {"top1": None, "ema_top1": None, "probe_top1": None}
        last = progress.epoch == self.config.epochs
        if progress.epoch % self.config.evaluate_every and not last:
            return scores
        _, evaluated = images.evaluated
        scores["top1"] = self.top1(self.step.network, evaluated)
        if self.step.ema:
            averaged = self.step.averaged(images.batchnorm_batches())
            scores["ema_top1"] = self.top1(averaged, evaluated)
        on_probe = images.val is None
        scores["probe_top1"] = (
            scores[self._kept_score] if on_probe else self.top1(self.kept_network(), images.probe)
        )
        return scores

    @property
    def _kept_score(self) -> Literal["top1", "ema_top1"]:
        """Name of the accuracy of the weights that the recipe keeps."""
        return "ema_top1" if self.step.ema and self.config.weights == "ema" else "top1"

    def kept_network(self) -> nn.Module:
        """Return the network with the weights that the recipe keeps, as last evaluated."""
        ema = self.step.ema
        return ema.network if ema and self._kept_score == "ema_top1" else self.step.network

    def top1(self, network: nn.Module, images: ImageSet) -> float:
        """Return the accuracy of a network on images."""
        probabilities = predict_probabilities(network, images.images, self.dataset.normalization)
        return top1(probabilities, images.targets)

    def _check_losses(self) -> None:
        progress = self.progress
        losses = progress.losses[: progress.batch].cpu()
        if not losses.isfinite().all():
            batch = int((~losses.isfinite()).nonzero()[0])
            step = self.steps_taken - progress.batch + batch
            raise self._not_finite(f"the loss became {losses[batch].item()}", step)

    def _check_weights(self) -> None:
        """Check that the last update left all weights finite, as no loss has shown that yet."""
        values = self.step.network.state_dict().values()
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise self._not_finite("a weight became infinite or not a number", self.steps_taken - 1)

    def _not_finite(self, what: str, step: int) -> Diverged:
        saved, schedule = self.folder / RESUME_FILE, self.step.schedule
        good = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint yet"
        return Diverged(
            f"{what} at step {step} (epoch {step // schedule.steps_per_epoch + 1}) with learning "
            f"rate {schedule.lr(step):.4g}; {good}. Start again with a lower --optim.lr, a longer "
            "--optim.warmup-epochs or --optim.max-norm 1."
        )

    def _count(self) -> float:
        """Add the seconds since the last call to the run's time, and return them."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        self.progress.seconds += elapsed
        return elapsed
