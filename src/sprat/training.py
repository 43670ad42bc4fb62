"""Trains a network: one visible loop, resumable bit for bit.

    config, dataset = load_recipe("quick"), load_dataset("cifar10")
    results = train(config, dataset, Path("runs/quick"), recipe="quick")

What is chosen when. A run trains on 90 % of the training images, judges every epoch on the
rest (val), keeps the best weights by that and never reads the test set. A `final` run trains on
all of them for its fixed length, keeps the weights its recipe names, and reads the test set
once, after the last step; what it shows on the way is accuracy on a probe of 2,000 training
images as they are.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sprat.augment.mixing import MIXERS, choose
from sprat.augment.pipeline import Pipeline
from sprat.augment.preview import Row, preview
from sprat.augment.reference import AlbumentationsPipeline, require_albumentations
from sprat.augment.transforms import normalize, resize
from sprat.augment.views import find_views
from sprat.budget import count_parameters, judge_limits, receptive_field, summarize
from sprat.checkpoint import (
    RESUME_FILE,
    Model,
    load_resume,
    save_model,
    save_resume,
    wrong_metadata,
)
from sprat.config import AugmentConfig, Config
from sprat.data import Dataset
from sprat.data.batches import Batches
from sprat.data.imageset import ImageSet, class_counts, stratified_split
from sprat.data.workers import WorkerBatches
from sprat.distill import Renormalize, Teacher, distance, load_teacher, together
from sprat.ema import EMA, reestimate_batchnorm
from sprat.errors import SpratError
from sprat.evaluate import judge, predict_probabilities, top1
from sprat.graph import Beside, CapturedStep
from sprat.inference import FrozenNetwork
from sprat.kernels import LANES, CompiledNetwork, why_not
from sprat.models import build_model, find_model
from sprat.names import MODEL_FILE
from sprat.observer import Observer
from sprat.optim import build_optimizer, restore_state
from sprat.results import (
    CONFIG_FILE,
    RESULTS_FILE,
    brief_fields,
    check_empty,
    check_free,
    locked,
    read_config,
    read_data,
    read_finished,
    sweep_run,
    write_config,
    write_json,
    write_metrics,
)
from sprat.runtime import (
    autocast,
    choose_device,
    choose_precision,
    derive_seed,
    describe_machine,
    git_state,
    keep_freed_memory,
    peak_memory,
    set_threads,
    versions,
)
from sprat.schedules import RAMPS, warmup_then
from sprat.text import visible

PROBE_IMAGES = 2_000  # training images, without augmentation, that a final run is watched on
BATCHNORM_IMAGES = 5_120  # training images that an average's statistics are estimated from
BATCHNORM_BATCH = 64  # of them at once; only full batches count


class Interrupted(Exception):
    """The run was asked to stop; it has saved itself and can be resumed."""


def split_off_val(dataset: Dataset, config: Config) -> tuple[Tensor, Tensor]:
    """Indices of the training images that a run without `final` trains on, and of its val: the
    dataset's own if it has one, else a share of each class.

    Raises:
        SpratError: val would be empty.
    """
    train_set = dataset.train
    if dataset.val is not None:
        kept = torch.ones(len(train_set), dtype=torch.bool)
        kept[dataset.val] = False
        return kept.nonzero().flatten(), dataset.val
    held_out = round(len(train_set) * config.val_fraction)
    if held_out < 1:
        raise SpratError(
            f"val_fraction is {config.val_fraction}, which holds out none of "
            f"{len(train_set)} training images; give at least {1 / len(train_set):.2g}"
        )
    return stratified_split(train_set.targets, held_out, config.split_seed)


def _fewer(train_set: ImageSet, config: Config) -> ImageSet:
    if config.train_images in (0, len(train_set)):
        return train_set
    if config.train_images > len(train_set):
        raise SpratError(
            f"train_images is {config.train_images:,}, but there are {len(train_set):,} to train "
            "on; give fewer, or 0 for all"
        )
    _, chosen = stratified_split(train_set.targets, config.train_images, config.split_seed)
    return train_set.subset(chosen)


def balanced_weights(train_set: ImageSet) -> Tensor:
    """What each class weighs in the loss, so that all together weigh the same: float32, K. The
    mean over the images is 1."""
    counts = train_set.targets.bincount(minlength=len(train_set.classes))
    return len(train_set) / ((counts > 0).sum() * counts.clamp_min(1)).float()


def check(config: Config) -> None:
    """What can be known to be wrong before any data is there.

    Raises:
        SpratError: the machine lacks what it asks for, or there is no such model, teacher or set of
            views.
    """
    find_model(config.model)
    for name in config.distill.teacher:
        load_teacher(name)
    find_views(config.tta)
    choose_precision(config.precision, choose_device(config.device))
    if config.augment.engine == "albumentations":
        require_albumentations()


def settle(config: Config, dataset: Dataset, observer: Observer = Observer()) -> Config:  # noqa: B008
    """The config with what "auto" and 0 threads stand for on this machine.

    Compiled kernels are built here if they are not yet; `observer` is told before.

    Raises:
        SpratError: the machine lacks what it asks for, or there is no such model.
    """
    check(config)
    device = choose_device(config.device)
    _check_data(config, dataset)
    precision = choose_precision(config.precision, device)
    if device.type == "cpu" and precision == "bf16" and _has_gapped_windows(config.model):
        if config.precision == "bf16":
            raise SpratError(
                f"precision is 'bf16', but on CPUs torch's bf16 gradients of {config.model}'s "
                "dilated depthwise convolutions are wrong; use --precision fp32"
            )
        precision = "fp32"
    config = dataclasses.replace(
        config,
        dataset=dataset.name,
        model=find_model(config.model).__name__,
        device=device.type,  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        threads=set_threads(config.threads),
    )
    if config.kernels == "auto":
        ways: tuple[Literal["compiled", "graph", "torch"], ...] = ("compiled", "graph", "torch")
        possible = (way for way in ways if not why_not_kernels(config, way, observer))
        return dataclasses.replace(config, kernels=next(possible))
    _check_kernels(config, observer)
    return config


def _check_data(config: Config, dataset: Dataset) -> None:
    """
    Raises:
        SpratError: the config does not fit the data, or no model's file could say what it is of.
    """
    side, classes = dataset.train.images.shape[-1], dataset.train.classes
    normalization = {"mean": dataset.normalization.mean, "std": dataset.normalization.std}
    wrong = wrong_metadata({"classes": classes, "side": side} | normalization)
    if wrong:
        raise SpratError(f"{dataset.name} cannot be trained on: {wrong}. Change the dataset.")
    _check_budget(config, dataset.train)
    if config.augment.crop >= side:
        raise SpratError(
            f"augment.crop is {config.augment.crop}, but the images are {side} px wide; give less"
        )


def _has_gapped_windows(model: str) -> bool:
    """Whether a network has dilated depthwise convolutions: torch 2.13's gradient of their weights
    in bf16, channels last, holds memory that was never written."""
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        modules = build_model(model).modules()
    return any(
        isinstance(m, torch.nn.Conv2d) and m.groups > 1 and max(m.dilation) > 1 for m in modules
    )


def _check_budget(config: Config, train_set: ImageSet) -> None:
    if not any(config.budget.limits.values()):
        return
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        network = build_model(config.model, len(train_set.classes))
    summary = summarize(network, side=train_set.images.shape[-1])
    verdicts = judge_limits(config.budget.limits, summary, config.budget.stored_as)
    broken = [f"{v.metric} {v.achieved}, limit {v.target}" for v in verdicts if not v.kept]
    if broken:
        raise SpratError(
            f"{summary.model} does not fit the budget: {'; '.join(broken)}; choose another "
            "--model, or change the recipe's [budget]"
        )


def _check_kernels(config: Config, observer: Observer) -> None:
    if reason := why_not_kernels(config, config.kernels, observer):
        raise SpratError(
            f"kernels is {config.kernels!r}, but {reason}; mend that, or start with --kernels auto"
        )


def why_not_kernels(
    config: Config,
    kernels: str,
    observer: Observer = Observer(),  # noqa: B008
) -> str | None:
    """Why a settled config's steps cannot go that way; None where they can."""
    device = torch.device(config.device)
    if kernels == "compiled":
        if config.precision == "fp16":
            return "the compiled kernels keep maps in bf16 or fp32, not in fp16"
        bf16 = config.precision == "bf16"
        model = find_model(config.model)
        return why_not(model, device, config.batch_size, bf16, observer.preparing)
    if kernels == "graph" and device.type != "cuda":
        return f"graphs are for CUDA, not {device.type}"
    if kernels == "graph" and config.precision == "fp16":
        return "a graph cannot scale the loss of fp16"
    return None


def why_torch(config: Config) -> str | None:
    """Why a settled config's steps go through plain torch; None where they do not."""
    if config.kernels != "torch":
        return None
    return why_not_kernels(config, "compiled") or "it was asked for"


def make_pipeline(augment: AugmentConfig) -> Pipeline:
    """What the augmentation does by chance to each image."""
    named = {field.name: getattr(augment, field.name) for field in dataclasses.fields(Pipeline)}
    if augment.flip_mode == "alternating":  # the batches do it
        named["flip"] = 0.0
    return Pipeline(**named)


def preview_augmentation(config: Config, train_set: ImageSet, columns: int) -> list[Row]:
    """What augmentation and mixing of `config` do to training images, `columns` of as many
    classes, row by row (see augment/preview.py)."""
    # the nth image of the nth class, over and over
    members = [(train_set.targets == label).nonzero() for label in range(len(train_set.classes))]
    chosen = [
        of_class[column % len(of_class)].item()
        for column, of_class in zip(range(columns), itertools.cycle(members), strict=False)
    ]
    shown = train_set.subset(torch.tensor(chosen))
    return preview(
        shown.images[:],
        shown.targets.tolist(),
        train_set.classes,
        pipeline=make_pipeline(config.augment),
        mixers={
            name: config.mixing.strengths[name]
            for name, probability in config.mixing.probabilities.items()
            if probability
        },
        generator=torch.Generator().manual_seed(config.seed),
    )


class Training:
    """A run in progress: everything that changes from step to step, and the loop.

    Args:
        config: what to do, settled for this machine.
        dataset: what to learn.
        run: the folder to save into.
        recipe: name of the recipe that `config` is or began as.
        overrides: where `config` departs from it.
    """

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        run: Path,
        recipe: str = "custom",
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.dataset, self.run = config, dataset, run
        self.recipe, self.overrides = recipe, overrides or {}
        self.run_is_ours: Callable[[], bool] = lambda: True
        self.device = choose_device(config.device)
        set_threads(config.threads)
        keep_freed_memory()
        self.git = git_state()  # now: the files may be edited while it runs

        train_set, self.val_set = dataset.train, None
        if not config.final:
            kept, held_out = split_off_val(dataset, config)
            self.val_set = train_set.subset(held_out).to(self.device)
            train_set = train_set.subset(kept)
        train_set = _fewer(train_set, config)
        images = min(PROBE_IMAGES, len(train_set))
        probe = stratified_split(train_set.targets, images, config.split_seed)[1]
        self.probe_set = train_set.subset(probe).to(self.device)
        images = min(BATCHNORM_IMAGES, len(train_set))
        images -= images % BATCHNORM_BATCH if images > BATCHNORM_BATCH else 0
        chosen = stratified_split(train_set.targets, images, config.split_seed)[1]
        self.batchnorm_images = train_set.subset(chosen).to(self.device).images
        self.pipeline = make_pipeline(config.augment)
        self.batches = self._make_batches(train_set)
        normalization = dataset.normalization
        self.mean = torch.tensor(normalization.mean, device=self.device)
        self.std = torch.tensor(normalization.std, device=self.device)
        self.class_weights: Tensor | None = None  # K
        if config.class_weights == "balanced":
            self.class_weights = balanced_weights(train_set).to(self.device)

        torch.manual_seed(derive_seed("weights", config.seed))
        network = build_model(config.model, len(dataset.train.classes), config.dropout)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(self.network, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.ema = EMA(self.network, config.ema.decay) if config.ema.decay else None
        self.generator = torch.Generator(self.device)
        self.forward = self._fast_forward()
        self.teachers = [load_teacher(name) for name in config.distill.teacher]
        if self.teachers:
            for teacher in self.teachers:
                teacher.check(dataset, config.final)
            self.teach = self._teaching([self._teacher(each) for each in self.teachers])
            self.beside = Beside(self.device)
        recorded = self.device.type == "cuda" and config.kernels != "torch"
        self.update = self._recorded_update() if recorded else self._update

        self.epoch = 0  # finished
        self.batch = 0  # finished in the epoch under way
        self.losses = torch.zeros(len(self.batches), device=self.device)  # of that epoch
        self.epoch_seconds = 0.0  # of training in that epoch
        self.seconds = 0.0  # of the run up to its last weights, judging on the way included
        self.clock = time.perf_counter()  # counted up to here
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None  # epoch, top1 on val, weights

    def _make_batches(self, train_set: ImageSet) -> Batches:
        config, augment = self.config, self.config.augment
        if augment.engine == "batched":
            return Batches(
                train_set.to(self.device),
                config.batch_size,
                config.seed,
                alternating_flip=augment.flip_mode == "alternating",
            )
        return WorkerBatches(
            train_set,
            config.batch_size,
            config.seed,
            augment=AlbumentationsPipeline(self.pipeline),
            workers=augment.workers or config.threads,
            device=self.device,
        )

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.epoch * len(self.batches) + self.batch

    @property
    def total_steps(self) -> int:
        return self.config.epochs * len(self.batches)

    @property
    def finished(self) -> bool:
        return self.epoch >= self.config.epochs or self.stopped_early

    @property
    def stopped_early(self) -> bool:
        """Whether val has not improved for `patience` epochs."""
        patience = self.config.patience
        return bool(
            patience
            and self.best
            and self.epoch - self.best["epoch"] >= patience
            and self.epoch < self.config.epochs
        )

    def lr(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.config.optim.lr * self._share_of_peak(step)

    def _share_of_peak(self, step: int) -> float:
        optim = self.config.optim
        warmup_steps = round(optim.warmup_epochs * len(self.batches))
        return warmup_then(optim.schedule, step, self.total_steps, warmup_steps)

    def _set_lr(self) -> None:
        share = self._share_of_peak(self.step)
        for group in self.optimizer.param_groups:
            lr = group["peak_lr"] * share
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _mixer(self) -> tuple[str | None, Tensor]:
        """The mixer that this step's batch meets, and its alpha or beta."""
        mixing = self.config.mixing
        with_mixing = self.total_steps - round(mixing.off_epochs * len(self.batches))
        if not mixing.any or self.step >= with_mixing:
            return None, torch.ones(())
        share = RAMPS[mixing.probability](self.step, with_mixing)
        probabilities = {name: p * share for name, p in mixing.probabilities.items()}
        draw = random.Random(derive_seed("mixer", self.config.seed, self.step)).random()
        name = choose(probabilities, draw)
        strength = mixing.strengths[name] if name else 1.0
        return name, torch.tensor(strength * RAMPS[mixing.strength](self.step, with_mixing))

    def training_step(self, images: Tensor, targets: Tensor) -> Tensor:
        """One step on images uint8 B x 3 x H x W and targets int64 B; returns the loss."""
        self._seed_step()
        self._set_lr()
        mixer, strength = self._mixer()
        loss = self.update(
            (self.config.augment.side_of(self.epoch), mixer), images, targets, strength
        )
        if self.ema:
            self.ema.update(self.step)
        return loss

    def _update(
        self, how: tuple[int, str | None], images: Tensor, targets: Tensor, strength: Tensor
    ) -> Tensor:
        """What of a step does not depend on its number, and so can be recorded on a GPU.

        Args:
            how: the images' side, or 0 for their own, and the mixer.
            strength: its alpha or beta, without dimensions.
        """
        config, (side, mixer) = self.config, how
        if config.augment.engine == "batched":  # else the workers have done it
            images = self.pipeline(images, self.generator)
        images = resize(images, side) if side else images
        if config.mixing.any:
            targets = F.one_hot(targets, len(self.dataset.train.classes)).float()  # B, K
        if mixer:
            images, targets = MIXERS[mixer](
                images, targets, strength, config.mixing.per_image, generator=self.generator
            )
        inputs = normalize(images, self.mean, self.std)

        taught = self.beside.begin(self.teach, inputs) if self.teachers else None  # B, K
        logits = self.forward(inputs)  # B, K
        loss = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=config.label_smoothing,
        )
        if taught is not None:
            self.beside.join()
            share = config.distill.weight
            to_teacher = distance(logits, taught, config.distill.temperature)
            loss = (1 - share) * loss + share * to_teacher
        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        if config.optim.max_norm:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.optim.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach()

    def _fast_forward(self) -> Callable[[Tensor], Tensor]:
        """From normalised images to logits, the fastest way the config allows."""
        config = self.config
        if config.kernels == "compiled":
            bf16 = config.precision == "bf16"
            return CompiledNetwork(self.network, bf16=bf16, threads=config.threads)

        def through_torch(images: Tensor) -> Tensor:
            with autocast(self.device, config.precision):
                return self.network(images)

        return through_torch

    def _teacher(self, teacher: Teacher) -> Callable[[Tensor], Tensor]:
        """From the student's normalised images to the teacher's logits."""
        config, network = self.config, teacher.model.network.eval().requires_grad_(False)
        network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        bf16 = config.precision == "bf16"
        answer: Callable[[Tensor], Tensor] = network
        if config.kernels == "compiled" and self.device.type == "cpu" and not bf16:
            answer = FrozenNetwork(network)
            answer.expect(len(self.batches) * config.batch_size * config.epochs)
        elif config.kernels == "compiled" and not why_not(type(network), self.device, LANES, bf16):
            answer = CompiledNetwork(network, bf16=bf16, threads=config.threads, frozen=True).eval()
        renormalize = Renormalize(self.dataset.normalization, teacher.model.normalization)
        renormalize.to(self.device)
        return lambda images: answer(renormalize(images))

    def _teaching(self, networks: list[Callable[[Tensor], Tensor]]) -> Callable[[Tensor], Tensor]:
        """From the student's normalised images to what it is taught, as logits."""

        def teach(images: Tensor) -> Tensor:
            with torch.no_grad(), autocast(self.device, self.config.precision):
                answers = [network(images) for network in networks]
                return together(answers, self.config.distill.temperature)

        return teach

    def _recorded_update(self) -> Callable[..., Tensor]:
        """`_update` by CUDA graphs, one for each side of the images and each mixer."""
        for group in self.optimizer.param_groups:  # a graph reads it where it lies
            group["lr"] = torch.tensor(group["lr"], device=self.device)
        graphs: dict[tuple[int, str | None], CapturedStep] = {}

        def update(
            how: tuple[int, str | None], images: Tensor, targets: Tensor, strength: Tensor
        ) -> Tensor:
            if how not in graphs:
                graphs[how] = CapturedStep(partial(self._update, how), self.generator)
            return graphs[how](images, targets, strength.to(self.device, non_blocking=True))

        return update

    def train_epoch(self, observer: Observer, should_stop: Callable[[], bool]) -> None:
        """The rest of the epoch under way; saves and raises `Interrupted` when asked to stop."""
        self.network.train()
        # reading the loss makes a GPU wait, so there it is looked at once an epoch
        look_every = 1 if self.device.type == "cpu" else len(self.batches)
        for images, targets in self.batches.epoch(self.epoch, start=self.batch):
            self.losses[self.batch] = self.training_step(images, targets)
            self.batch += 1
            if self.batch % look_every == 0:
                self._check_losses()
            observer.stepped(self)
            self.epoch_seconds += self._count()
            if should_stop():
                self._check_losses()
                self._check_weights()
                self.save()
                raise Interrupted
        self.epoch, self.batch = self.epoch + 1, 0

    def end_epoch(self) -> dict[str, Any]:
        """Judges the epoch just finished, notes its line of metrics, keeps the best, saves."""
        self._check_weights()
        judged_on = "probe" if self.val_set is None else "val"
        scores = self._judge_on_the_way()
        row = {
            "epoch": self.epoch,
            "step": self.step,
            "loss": self.losses.cpu().double().mean().item(),
            "judged_on": judged_on,
            **scores,
            "lr": self.lr(self.step - 1),
            "seconds": self.epoch_seconds,
            "images_per_s": len(self.batches) * self.config.batch_size / self.epoch_seconds,
        }
        self.history.append(row)
        score = scores[self._kept_score]
        best = self.best["top1"] if self.best else -1.0
        if self.val_set is not None and score is not None and score > best:
            weights = {k: v.cpu().clone() for k, v in self.kept_network().state_dict().items()}
            self.best = {"epoch": self.epoch, "top1": score, "weights": weights}
        self.epoch_seconds = 0.0
        self._count()
        self.save()
        write_metrics(self.run, self.history)
        return row

    def check_run(self) -> None:
        """Checks that the run's folder is still there and this process's, before each write.

        Raises:
            SpratError: it was removed or moved, and may be another run's by now.
        """
        if not self.run_is_ours():
            raise SpratError(
                f"{self.run} was removed or moved while this run trained; nothing more is written "
                "there. Resume the run where it is now, or start it again."
            )

    @property
    def _kept_score(self) -> str:
        """Which score is that of the weights that the recipe keeps."""
        return "ema_top1" if self.ema and self.config.weights == "ema" else "top1"

    def _judge_on_the_way(self) -> dict[str, float | None]:
        """Accuracy of the raw and of the averaged weights on val, or on the probe, and that of
        the kept ones on the probe: training images neither augmented nor mixed."""
        last = self.epoch == self.config.epochs
        scores: dict[str, float | None] = dict.fromkeys(("top1", "ema_top1", "probe_top1"))
        if self.epoch % self.config.judge_every and not last:
            return scores
        networks = {"top1": self.network}
        if self.ema:
            networks["ema_top1"] = self.averaged_network()
        judged = self.probe_set if self.val_set is None else self.val_set
        scores |= {name: self._top1(network, judged) for name, network in networks.items()}
        kept = self._kept_score
        on_probe = self.val_set is None
        scores["probe_top1"] = (
            scores[kept] if on_probe else self._top1(networks[kept], self.probe_set)
        )
        return scores

    def averaged_network(self) -> torch.nn.Module:
        """The moving average, with BatchNorm statistics estimated for it from training images."""
        assert self.ema is not None
        batches = (
            normalize(batch, self.mean, self.std)
            for batch in self.batchnorm_images.split(BATCHNORM_BATCH)
        )
        network = self.ema.network
        if self.config.kernels != "compiled" or self.device.type == "cuda":
            reestimate_batchnorm(network, batches)
        else:
            compiled = CompiledNetwork(network, bf16=False, threads=self.config.threads)
            reestimate_batchnorm(compiled, batches)
        return network

    def kept_network(self) -> torch.nn.Module:
        """The network whose weights the recipe keeps, as it stood when its epoch was judged."""
        return self.ema.network if self.ema and self._kept_score == "ema_top1" else self.network

    def save(self) -> None:
        """Writes the state needed to resume from this step."""
        self.check_run()
        save_resume(
            self.run / RESUME_FILE,
            {
                "epoch": self.epoch,
                "batch": self.batch,
                "losses": self.losses,
                "epoch_seconds": self.epoch_seconds,
                "seconds": self.seconds,
                "history": self.history,
                "best": self.best,
                "config": self.config.to_dict(),
                "recipe": self.recipe,
                "overrides": self.overrides,
                "dataset_md5": self.dataset.md5,
                "classes": list(self.dataset.train.classes),
                "teacher": self._taught_by,
                "git": self.git,
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": self.ema.network.state_dict() if self.ema else None,
            },
        )

    @property
    def _taught_by(self) -> str | None:
        """The teachers' sha256s, in their order."""
        return "+".join(teacher.sha256 for teacher in self.teachers) or None

    def restore(self) -> None:
        """Goes back to what `save` wrote.

        Raises:
            SpratError: there is no such file, or it is damaged or of another dataset.
        """
        path = self.run / RESUME_FILE
        state = load_resume(path)
        try:
            # by way of Config: a sprat that knows more settings has the old behaviour by default
            if Config.from_dict(state["config"], source=str(path)) != self.config:
                raise SpratError(
                    f"{self.run}/config.json was changed after the run began; put it back, or "
                    "start a new run with the new settings"
                )
            # an older sprat wrote no classes
            began_on = {"md5": state["dataset_md5"], "classes": state.get("classes")}
            check_data(self.run, self.dataset, began_on)
            if self.teachers and state["teacher"] != self._taught_by:
                names = ", ".join(map(visible, self.config.distill.teacher))
                raise SpratError(
                    f"{self.run} was taught by another model than {names} is now; put that back, "
                    "or start a new run"
                )
            self._check_place(state)
            if state["best"]:  # a fit that is seen now, rather than at the end; replaced below
                self.kept_network().load_state_dict(state["best"]["weights"])
            self.network.load_state_dict(state["network"])
            restore_state(self.optimizer, state["optimizer"]["state"])
            self.scaler.load_state_dict(state["scaler"])
            if self.ema:
                self.ema.network.load_state_dict(state["ema"])
            self.losses.copy_(state["losses"])
            self.epoch, self.batch = state["epoch"], state["batch"]
            self.epoch_seconds, self.seconds = state["epoch_seconds"], state["seconds"]
            self.history, self.best = state["history"], state["best"]
            self.recipe = state.get("recipe", self.recipe)
            self.overrides = state.get("overrides", self.overrides)
            if self.git != state["git"]:  # trained by more than one state of the code
                self.git = state["git"] and state["git"] | {"dirty": True}
        except SpratError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise SpratError(f"{path} does not fit its config.json: {error}") from error
        write_metrics(self.run, self.history)

    def _check_place(self, state: dict[str, Any]) -> None:
        """
        Raises:
            ValueError: no run of this config and data can have come to where `state` is.
        """
        place = f"epoch {state['epoch']}, batch {state['batch']}"
        if state["epoch"] > self.config.epochs or state["batch"] > len(self.batches):
            raise ValueError(f"it stands at {place}")
        if len(state["history"]) != state["epoch"] or state["losses"].shape != self.losses.shape:
            raise ValueError(f"it stands at {place}, but its history is of another length")
        best = state["best"]
        if best and (self.val_set is None or best["epoch"] > state["epoch"]):
            raise ValueError(f"it stands at {place}, but was best at epoch {best['epoch']}")

    def _seed_step(self) -> None:
        """Makes the step's randomness (augmentation, dropout) a function of (seed, step)."""
        self.generator.manual_seed(derive_seed("augment", self.config.seed, self.step))
        if self.config.dropout:
            torch.manual_seed(derive_seed("dropout", self.config.seed, self.step))

    def _check_losses(self) -> None:
        losses = self.losses[: self.batch].cpu()
        if losses.isfinite().all():
            return
        batch = int((~losses.isfinite()).nonzero()[0])
        step = self.step - self.batch + batch
        raise self._not_finite(f"the loss became {losses[batch].item()}", step)

    def _check_weights(self) -> None:
        """The last update may have spoilt what no loss has seen yet."""
        values = self.network.state_dict().values()
        if not torch.stack([value.isfinite().all() for value in values]).all():
            raise self._not_finite("a weight became infinite or not a number", self.step - 1)

    def _not_finite(self, what: str, step: int) -> SpratError:
        saved = self.run / RESUME_FILE
        good = f"the last good checkpoint is {saved}" if saved.exists() else "no checkpoint yet"
        return SpratError(
            f"{what} at step {step} (epoch {step // len(self.batches) + 1}) with learning rate "
            f"{self.lr(step):.4g}; {good}. Start anew with a lower --optim.lr, a longer "
            "--optim.warmup-epochs or --optim.max-norm 1"
        )

    def _top1(self, network: torch.nn.Module, dataset: ImageSet) -> float:
        probabilities = predict_probabilities(network, dataset.images, self.dataset.normalization)
        return top1(probabilities, dataset.targets)

    def _count(self) -> float:
        """Adds the seconds since the last count to the run's, and gives them."""
        now = time.perf_counter()
        elapsed, self.clock = now - self.clock, now
        self.seconds += elapsed
        return elapsed


def train(
    config: Config,
    dataset: Dataset,
    run: Path,
    *,
    recipe: str,
    overrides: dict[str, Any] | None = None,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Trains from scratch into the new folder `run`; returns what results.json holds.

    Args:
        recipe: name of the recipe that `config` is or began as.
        overrides: where `config` departs from it.
        observer: is told how it goes.
        should_stop: asked after every step; true saves and raises Interrupted.

    Raises:
        SpratError: `run` holds something already or another process trains there, the config
            does not fit the data or the machine, the loss is no longer finite, or a file cannot
            be written (a WriteError; `resume` goes on once there is room).
        Interrupted: `should_stop` said so; `resume` goes on.
    """
    check_free(run)
    check_empty(run)
    observer = observer or Observer()
    training = Training(settle(config, dataset, observer), dataset, run, recipe, overrides)
    try:
        with locked(run) as training.run_is_ours:
            check_empty(run)
            write_config(run, training.config, recipe, training.overrides, identity(dataset))
            return _go_on(training, observer, should_stop)
    finally:
        with contextlib.suppress(OSError):
            run.rmdir()  # if nothing came of it


def resume(
    run: Path,
    dataset: Dataset,
    *,
    observer: Observer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Resumes the run in the folder `run` from its last checkpoint, if it has one.

    Of a finished run it gives the results and does nothing. `dataset` may have moved since the
    run began, but must have the same images, labels and classes.

    Same arguments, result and errors as `train`. On the CPU with the same threads, the weights
    are bit for bit those of a run that was never interrupted.
    """
    config, recipe, overrides = read_config(run)
    with locked(run) as run_is_ours:  # of a finished run too: a kill may have left the lock there
        if finished := read_finished(run):
            return finished
        sweep_run(run)
        observer = observer or Observer()
        if "auto" in (config.device, config.precision, config.kernels) or not config.threads:
            raise SpratError(
                f"{run / CONFIG_FILE} is not what a run of sprat writes: it does not say which "
                "device, precision, kernels and threads it began with. Start a new run with its "
                "settings."
            )
        check(config)
        _check_data(config, dataset)
        if began_on := read_data(run):
            check_data(run, dataset, began_on)
        _check_kernels(config, observer)
        training = Training(config, dataset, run, recipe, overrides)
        training.run_is_ours = run_is_ours
        if (run / RESUME_FILE).exists():
            training.restore()
        return _go_on(training, observer, should_stop)


def identity(dataset: Dataset) -> dict[str, Any]:
    """What identifies a dataset wherever it is: images and labels by their md5, and classes."""
    return {"md5": dataset.md5, "classes": list(dataset.train.classes)}


def check_data(run: Path, dataset: Dataset, began_on: dict[str, Any]) -> None:
    """Checks that a dataset is, wherever it is now, the one that a run began with.

    Raises:
        SpratError: its images, labels or classes are others.
    """
    known = {key: value for key, value in began_on.items() if value is not None}
    if not known.items() <= identity(dataset).items():
        raise SpratError(
            f"{run} was trained on other images than this {dataset.name}; resume it with the data "
            "it began with"
        )


def _go_on(
    training: Training, observer: Observer, should_stop: Callable[[], bool]
) -> dict[str, Any]:
    observer.started(training)
    training.clock = time.perf_counter()
    try:
        while not training.finished:
            training.train_epoch(observer, should_stop)
            observer.epoch_ended(training, training.end_epoch())
    finally:
        training.batches.close()
    return finish(training, observer)


@functools.cache
def _receptive_field(model: str, side: int) -> int | None:
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn
        return receptive_field(build_model(model), side)


def finish(training: Training, observer: Observer) -> dict[str, Any]:
    """Settles the weights, judges them, writes model.safetensors and results.json."""
    config, dataset = training.config, training.dataset
    network = training.kept_network()
    if training.best is not None:
        network.load_state_dict(training.best["weights"])
    judged = dataset.test if training.val_set is None else training.val_set
    judgement = judge(network, judged, dataset.normalization, config.tta, observer.judging)
    test, val = (judgement, None) if config.final else (None, judgement)
    machine = describe_machine(training.device, config.precision, config.threads)
    machine["kernels"] = config.kernels
    if reason := why_torch(config):
        machine["kernels_because"] = reason
    parameters, side = count_parameters(network), dataset.train.images.shape[-1]
    images = training.epoch * len(training.batches) * config.batch_size
    training_seconds = math.fsum(row["seconds"] for row in training.history)
    results = {
        "recipe": training.recipe,
        "overrides": training.overrides,
        "dataset": dataset.name,
        "dataset_md5": dataset.md5,
        "train_per_class": class_counts(training.batches.dataset),
        "model": config.model,
        "side": side,
        "parameters": parameters,
        "seed": config.seed,
        "final": config.final,
        "epochs": training.epoch,
        "stopped_early": training.stopped_early,
        "weights": config.weights,
        "best_epoch": training.best["epoch"] if training.best else None,
        "seconds": training.seconds,
        "images_per_s": images / training_seconds,
        "peak_memory_bytes": peak_memory(),
        "test": test,
        "val": val,
        "machine": machine,
        "versions": versions(),
        "git": training.git,
        "teachers": [teacher.about for teacher in training.teachers],
        "brief": brief_fields(
            parameters,
            _receptive_field(config.model, side),
            training._top1(network, training.probe_set),
            test,
            training.seconds,
        ),
    }
    kept = ("recipe", "overrides", "dataset", "dataset_md5", "seed", "epochs", "weights")
    about = {key: results[key] for key in kept}
    about |= {"test_top1": test and test["top1"], "val_top1": val and val["top1"]}
    if dataset.own:  # the test part must stay the same where the model is judged again
        about["pictures"] = dataclasses.asdict(dataset.own)
    model = Model(
        network=network,
        name=config.model,
        classes=dataset.train.classes,
        normalization=dataset.normalization,
        side=side,
        about=about,
    )
    training.check_run()
    save_model(training.run / MODEL_FILE, model)
    write_json(training.run / RESULTS_FILE, results)
    return results
