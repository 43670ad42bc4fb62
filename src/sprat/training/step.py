"""One optimisation step, independent of runs, folders, datasets and epochs:

    step = Step(network, config, RunSchedule(config, steps_per_epoch), normalization, 10)
    loss = step(images, labels, number)

Everything random in a step is a function of the seed and the step's number.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat import distributed
from sprat.augment.mixing import MIXERS
from sprat.augment.transforms import normalize, resize
from sprat.data.imageset import Normalization
from sprat.kernels import CompiledNetwork
from sprat.models import build_network
from sprat.optim import build_optimizer, restore_state
from sprat.runtime import autocast, derive_seed
from sprat.settings.config import Config
from sprat.training.distill import Teacher, answers_of, distance
from sprat.training.ema import EMA, reestimate_batchnorm
from sprat.training.record import CapturedStep, SideStream
from sprat.training.schedules import RunSchedule

Update = Callable[[tuple[int, str | None], Tensor, Tensor, Tensor], Tensor]


def new_network(config: Config, num_classes: int, channels: int = 3) -> nn.Module:
    """Return the config's network for images with that many channels, on its device, with initial
    weights drawn from the seed."""
    torch.manual_seed(derive_seed("weights", config.seed))
    network = build_network(config.network, num_classes, config.dropout, channels)
    return network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]


class Step:
    """Augment, mix, forward, loss, backward, update, average: one call, one step.

    Args:
        network: in training mode while it is trained; its parameters are updated in place.
        config: settled for this machine (see `prepare.settle`).
        schedule: learning rate, mixer and image side of each step.
        normalization: mean and standard deviation of the images.
        num_classes: number of classes K.
        class_weights: weight of each class in the loss, float32, K; None: all equal.
        teachers: models whose averaged predictions are learnt in addition to the labels.
    """

    def __init__(
        self,
        network: nn.Module,
        config: Config,
        schedule: RunSchedule,
        normalization: Normalization,
        num_classes: int,
        *,
        class_weights: Tensor | None = None,
        teachers: Sequence[Teacher] = (),
    ) -> None:
        self.network, self.config, self.schedule = network, config, schedule
        self.num_classes = num_classes
        self.device = torch.device(config.device)
        self.pipeline = config.augment
        self.mean = torch.tensor(normalization.mean, device=self.device)
        self.std = torch.tensor(normalization.std, device=self.device)
        self.class_weights = class_weights
        self.optimizer = build_optimizer(network, config.optim)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.ema = EMA(network, config.ema.decay) if config.ema.decay else None
        self.generator = torch.Generator(self.device)
        self.forward = fast_forward(network, config)
        self.teach = answers_of(teachers, config, normalization) if teachers else None
        self.side_stream = SideStream(self.device)
        recorded = self.device.type == "cuda" and config.kernels != "torch"
        recorded &= distributed.count() == 1  # an all-reduce cannot be captured
        self.update: Update = self._recorded() if recorded else self._update

    def __call__(self, images: Tensor, labels: Tensor, number: int) -> Tensor:
        """Take step `number` of a run, counted from 0, and return its loss.

        Args:
            images: uint8, B x C x H x W.
            labels: int64, B.
        """
        config, schedule = self.config, self.schedule
        self.generator.manual_seed(distributed.seed("augment", config.seed, number))
        if config.dropout:
            torch.manual_seed(distributed.seed("dropout", config.seed, number))
        self._set_lr(schedule.lr_share(number))
        mixer, strength = schedule.mixer(number)
        how = schedule.side(number), mixer
        loss = self.update(how, images, labels, torch.tensor(strength))
        if self.ema:
            self.ema.update(number)
        return loss

    def _update(
        self, how: tuple[int, str | None], images: Tensor, targets: Tensor, strength: Tensor
    ) -> Tensor:
        """Do the part of a step that does not depend on its number, so that it can be captured.

        Args:
            how: the images' side (0: the original side) and the mixer.
            strength: the mixer's alpha or beta, a scalar.
        """
        config, (side, mixer) = self.config, how
        if config.augment.engine == "batched":  # otherwise worker processes have augmented them
            images = self.pipeline(images, self.generator)
        images = resize(images, side) if side else images
        if config.mixing.any:
            targets = F.one_hot(targets, self.num_classes).float()  # B, K
        if mixer:
            images, targets = MIXERS[mixer](
                images, targets, strength, config.mixing.per_image, generator=self.generator
            )
        inputs = normalize(images, self.mean, self.std)

        taught = self.side_stream.begin(self.teach, inputs) if self.teach else None  # B, K
        logits = self.forward(inputs)  # B, K
        loss = F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=config.label_smoothing,
        )
        if taught is not None:
            self.side_stream.join()
            share = config.distill.weight
            loss = (1 - share) * loss + share * distance(logits, taught, config.distill.temperature)

        self.optimizer.zero_grad()
        self.scaler.scale(loss).backward()
        loss = loss.detach()
        if distributed.count() > 1:
            gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
            distributed.average([*gradients, loss])
        if config.optim.max_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), config.optim.max_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss

    def _set_lr(self, share: float) -> None:
        for group in self.optimizer.param_groups:
            lr = group["peak_lr"] * share
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _recorded(self) -> Update:
        """Return `_update` as CUDA graphs, one per image side and mixer."""
        for group in self.optimizer.param_groups:  # a graph reads the learning rate in place
            group["lr"] = torch.tensor(group["lr"], device=self.device)
        graphs: dict[tuple[int, str | None], CapturedStep] = {}
        stream = torch.cuda.Stream(self.device)

        def update(
            how: tuple[int, str | None], images: Tensor, targets: Tensor, strength: Tensor
        ) -> Tensor:
            if how not in graphs:
                step = functools.partial(self._update, how)
                graphs[how] = CapturedStep(step, stream, self.generator)
            return graphs[how](images, targets, strength.to(self.device, non_blocking=True))

        return update

    def averaged(self, batches: Iterable[Tensor]) -> nn.Module:
        """Return the moving average, with BatchNorm statistics estimated from uint8 batches."""
        assert self.ema is not None
        network: nn.Module = self.ema.network
        inputs = (normalize(images, self.mean, self.std) for images in batches)
        if self.config.kernels == "compiled" and self.device.type == "cpu":
            threads = self.config.threads
            reestimate_batchnorm(CompiledNetwork(network, bf16=False, threads=threads), inputs)
        else:
            reestimate_batchnorm(network, inputs)
        return network

    def state(self) -> dict[str, object]:
        """Return everything that a step changes, as tensors and plain values."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": self.ema.network.state_dict() if self.ema else None,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Restore a `state`.

        Raises:
            KeyError, RuntimeError, TypeError, ValueError: it is of another network or optimizer.
        """
        self.network.load_state_dict(state["network"])
        restore_state(self.optimizer, state["optimizer"]["state"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema:
            self.ema.network.load_state_dict(state["ema"])


def fast_forward(network: nn.Module, config: Config) -> Callable[[Tensor], Tensor]:
    """Return the fastest function from normalised images to logits that a settled config allows."""
    if config.kernels == "compiled":
        return CompiledNetwork(network, bf16=config.precision == "bf16", threads=config.threads)

    def through_torch(images: Tensor) -> Tensor:
        with autocast(torch.device(config.device), config.precision):
            return network(images)

    return through_torch
