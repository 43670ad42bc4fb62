"""What a run can be told: frozen dataclasses, TOML recipes in, JSON out and back the same.

The string under a field is its documentation: it gives the unit and is the text that
`sprat train --help` prints. Checks happen at construction. A number that switches something
off is 0, since TOML has no null.
"""

import dataclasses
import json
import math
import os
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from sprat.errors import SpratError, did_you_mean, shown
from sprat.readers import read_toml
from sprat.threads import MOST_THREADS

MOST_EPOCHS, MOST_BATCH, MOST_IMAGES, MOST_VIEWS = 100_000, 65_536, 10**9, 1_000
MOST_SEED = 2**63 - 1
MOST_BUDGET = 2**53  # parameters, MACs or bytes; a float holds it exactly
MOST_SECONDS = 100 * 24 * 3600
LONGEST_TEXT = 4_096  # characters; no path is longer


def _check(name: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        raise SpratError(f"{name} is {shown(value)}, expected {expected}")


def _check_whole(name: str, value: int, low: int, high: int, meaning: str = "") -> None:
    """`meaning`: of the least value, if it is a special one."""
    least = f"{low} ({meaning})" if meaning else f"{low}"
    _check(name, value, low <= value <= high, f"{least} to {high:,}")


def _check_probability(name: str, value: float) -> None:
    _check(name, value, 0 <= value <= 1, "a probability, 0 to 1")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its learning rate over the run."""

    name: Literal["sgd", "muon"] = "sgd"
    """muon makes the steps of the 1x1 convolutions orthogonal; all else is SGD's."""
    muon_lr: float = 0.02
    """Muon's peak learning rate, over the run like lr."""
    lr: float = 0.25
    """Peak learning rate, for the batch size it stands beside."""
    momentum: float = 0.9
    """Share of the last step's direction that is kept."""
    nesterov: bool = True
    """Look ahead along the momentum (Nesterov)."""
    weight_decay: float = 5e-4
    """L2 penalty's factor on the decayed parameters."""
    decay_norm_and_bias: bool = False
    """Decay BatchNorm's parameters and biases too, not only the weights."""
    warmup_epochs: float = 2.0
    """Epochs of linear rise to the peak; may be a fraction."""
    schedule: Literal["cosine", "linear"] = "cosine"
    """How the learning rate falls after the warm-up, step by step."""
    max_norm: float = 0.0
    """Gradient norm above which gradients are scaled down; 0: no clipping."""

    def __post_init__(self) -> None:
        _check("optim.name", self.name, self.name in ("sgd", "muon"), "'sgd' or 'muon'")
        ok = 0 < self.muon_lr < math.inf
        _check("optim.muon_lr", self.muon_lr, ok, "a number above 0")
        _check("optim.lr", self.lr, 0 < self.lr < math.inf, "a number above 0")
        _check("optim.momentum", self.momentum, 0 <= self.momentum < 1, "a number in [0, 1)")
        ok = not self.nesterov or self.momentum > 0
        _check("optim.nesterov", self.nesterov, ok, "false, since optim.momentum is 0")
        ok = 0 <= self.weight_decay < math.inf
        _check("optim.weight_decay", self.weight_decay, ok, "a number of at least 0")
        ok = 0 <= self.warmup_epochs < math.inf
        _check("optim.warmup_epochs", self.warmup_epochs, ok, "a number of at least 0")
        ok = self.schedule in ("cosine", "linear")
        _check("optim.schedule", self.schedule, ok, "'cosine' or 'linear'")
        ok = 0 <= self.max_norm < math.inf
        _check("optim.max_norm", self.max_norm, ok, "a number of at least 0 (0: no clipping)")


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """What happens to each training image; limits and laws are Albumentations 2.0.8's."""

    engine: Literal["batched", "albumentations"] = "batched"
    """Whole batches at once; or image by image in workers, which needs sprat[albumentations]."""
    workers: int = 0
    """Worker processes of the engine albumentations; 0: one per CPU thread."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    flip_mode: Literal["random", "alternating"] = "random"
    """alternating: mirror each image every other epoch instead of by chance (airbench94)."""
    crop: int = 4
    """Pixels of padding on each side before a random crop; 0: no crop."""
    crop_mode: Literal["reflect", "constant"] = "reflect"
    """What lies beyond the border in a crop or a shift: the mirrored image, or black."""
    affine: float = 0.0
    """Probability of a shift, change of scale and rotation."""
    shift: float = 0.1
    """Largest shift, as a share of the side."""
    scale: float = 0.1
    """Largest change of scale: 0.1 for 0.9 to 1.1."""
    rotate: float = 15.0
    """Largest rotation, in degrees."""
    brightness_contrast: float = 0.0
    """Probability of a change of brightness and contrast."""
    brightness: float = 0.2
    """Largest change of brightness, as a share of full brightness."""
    contrast: float = 0.2
    """Largest change of contrast, as a share of it."""
    hue_saturation_value: float = 0.0
    """Probability of a change of hue, saturation and value."""
    hue: float = 40.0
    """Largest change of hue, in degrees (twice OpenCV's and Albumentations' unit)."""
    saturation: float = 30.0
    """Largest change of saturation, of 255."""
    value: float = 20.0
    """Largest change of value, of 255."""
    coarse_dropout: float = 0.0
    """Probability of one black rectangle inside the image."""
    hole_smallest: int = 4
    """Least height and width of that rectangle, in pixels."""
    hole_largest: int = 8
    """Greatest height and width of that rectangle, in pixels."""
    cutout: int = 0
    """Side in pixels of a black square, centred anywhere, in every image; 0: none."""
    sides: tuple[int, ...] = ()
    """Image side in pixels, epoch by epoch, the last for all that follow; none: their own."""

    def __post_init__(self) -> None:
        ok = self.engine in ("batched", "albumentations")
        _check("augment.engine", self.engine, ok, "'batched' or 'albumentations'")
        _check_whole("augment.workers", self.workers, 0, MOST_THREADS, "one per CPU thread")
        for name in ("flip", "affine", "brightness_contrast", "hue_saturation_value"):
            _check_probability(f"augment.{name}", getattr(self, name))
        _check_probability("augment.coarse_dropout", self.coarse_dropout)
        ok = self.flip_mode in ("random", "alternating")
        _check("augment.flip_mode", self.flip_mode, ok, "'random' or 'alternating'")
        ok = self.flip_mode != "alternating" or self.flip == 0.5
        _check("augment.flip", self.flip, ok, "0.5, since augment.flip_mode is 'alternating'")
        _check("augment.crop", self.crop, 0 <= self.crop <= 16, "0 to 16 pixels")
        ok = self.crop_mode in ("reflect", "constant")
        _check("augment.crop_mode", self.crop_mode, ok, "'reflect' or 'constant'")
        for name, most in (("shift", 0.5), ("scale", 0.9), ("brightness", 1), ("contrast", 1)):
            value = getattr(self, name)
            _check(f"augment.{name}", value, 0 <= value <= most, f"a share, 0 to {most}")
        _check("augment.rotate", self.rotate, 0 <= self.rotate <= 180, "0 to 180 degrees")
        _check("augment.hue", self.hue, 0 <= self.hue <= 180, "0 to 180 degrees")
        for name in ("saturation", "value"):
            value = getattr(self, name)
            _check(f"augment.{name}", value, 0 <= value <= 255, "0 to 255")
        _check_whole("augment.hole_smallest", self.hole_smallest, 1, 512)
        ok = self.hole_smallest <= self.hole_largest <= 512
        expected = f"at least augment.hole_smallest (= {self.hole_smallest}) and at most 512 pixels"
        _check("augment.hole_largest", self.hole_largest, ok, expected)
        _check("augment.cutout", self.cutout, 0 <= self.cutout <= 512, "0 to 512 pixels")
        ok = all(8 <= side <= 512 for side in self.sides)
        _check("augment.sides", self.sides, ok, "sides of 8 to 512 pixels")
        if self.engine == "albumentations":
            for name, off in (("crop", 0), ("cutout", 0), ("flip_mode", "random")):
                value = getattr(self, name)
                expected = f"{off!r}: the engine 'albumentations' does the brief's pipeline alone"
                _check(f"augment.{name}", value, value == off, expected)

    def side_of(self, epoch: int) -> int:
        """Side in pixels of the images of an epoch, counted from 0; 0: their own."""
        return self.sides[min(epoch, len(self.sides) - 1)] if self.sides else 0


@dataclass(frozen=True, kw_only=True)
class MixingConfig:
    """Which mixer a batch meets, if any, and how strongly it mixes."""

    mixup: float = 0.0
    """Probability that a batch is mixed by MixUp."""
    cutmix: float = 0.0
    """Probability that a batch is mixed by CutMix."""
    ricap: float = 0.0
    """Probability that a batch is mixed by RICAP; what the three leave stays unmixed."""
    mixup_alpha: float = 1.0
    """MixUp's share of the image itself is drawn from Beta(alpha, alpha)."""
    cutmix_alpha: float = 1.0
    """The same for CutMix."""
    ricap_beta: float = 0.3
    """RICAP's point along either side is drawn from Beta(beta, beta)."""
    per_image: bool = False
    """Draw the shares and boxes for each image, not once for a batch."""
    probability: Literal["constant", "rising", "falling"] = "constant"
    """How the probabilities go over the steps with mixing: always those above, or from or to 0."""
    strength: Literal["constant", "rising", "falling"] = "constant"
    """The same for alpha and beta."""
    off_epochs: float = 0.0
    """Epochs at the run's end without mixing; may be a fraction."""

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix", "ricap"):
            _check_probability(f"mixing.{name}", getattr(self, name))
        total = math.fsum(self.probabilities.values())
        ok = total <= 1 + 1e-9
        _check("mixing.mixup + cutmix + ricap", total, ok, "at most 1 in all")
        for name in ("mixup_alpha", "cutmix_alpha", "ricap_beta"):
            value = getattr(self, name)
            _check(f"mixing.{name}", value, 0.01 <= value <= 100, "a number from 0.01 to 100")
        for name in ("probability", "strength"):
            value, ramps = getattr(self, name), ("constant", "rising", "falling")
            _check(f"mixing.{name}", value, value in ramps, "'constant', 'rising' or 'falling'")
        ok = 0 <= self.off_epochs < math.inf
        _check("mixing.off_epochs", self.off_epochs, ok, "a number of at least 0")

    @property
    def probabilities(self) -> dict[str, float]:
        """By mixer."""
        return {"mixup": self.mixup, "cutmix": self.cutmix, "ricap": self.ricap}

    @property
    def any(self) -> bool:
        """Whether any batch is mixed."""
        return any(self.probabilities.values())

    @property
    def strengths(self) -> dict[str, float]:
        """alpha or beta, by mixer."""
        return {"mixup": self.mixup_alpha, "cutmix": self.cutmix_alpha, "ricap": self.ricap_beta}


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the weights."""

    decay: float = 0.998
    """Share of the average that one step keeps, after its own warm-up; 0: no average."""

    def __post_init__(self) -> None:
        _check("ema.decay", self.decay, 0 <= self.decay < 1, "a number in [0, 1) (0: no average)")


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Trained networks whose answers are learnt beside the labels."""

    teacher: tuple[str, ...] = ()
    """A model's file, a finished run's folder or a shipped model's name; several: the mean of their
    answers is learnt; empty: no teacher."""
    weight: float = 0.5
    """Share of the loss that the distance to the teacher's answers is; the labels have the rest."""
    temperature: float = 2.0
    """What both networks' logits are divided by for that distance; above 1 it softens them."""

    def __post_init__(self) -> None:
        _check("distill.teacher", self.teacher, all(self.teacher), "names, none of them empty")
        _check("distill.weight", self.weight, 0 < self.weight <= 1, "a share in (0, 1]")
        ok = 0.1 <= self.temperature <= 100
        _check("distill.temperature", self.temperature, ok, "a number from 0.1 to 100")


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Limits of the network; a run that would break one does not begin."""

    max_parameters: int = 0
    """Most parameters; 0: no limit, here and below."""
    max_macs: int = 0
    """Most multiply-accumulates for one image."""
    min_receptive_field: int = 0
    """Least receptive field before global pooling, in pixels."""
    max_flash: int = 0
    """Most bytes of weights, stored as below."""
    max_peak_memory: int = 0
    """Most bytes of one image's activations at their peak, stored as below."""
    stored_as: Literal["fp32", "fp16", "int8"] = "fp32"
    """What weights and activations are stored as where the network runs."""

    def __post_init__(self) -> None:
        for name, value in self.limits.items():
            _check_whole(f"budget.{name}", value, 0, MOST_BUDGET, "no limit")
        ok = self.stored_as in ("fp32", "fp16", "int8")
        _check("budget.stored_as", self.stored_as, ok, "'fp32', 'fp16' or 'int8'")

    @property
    def limits(self) -> dict[str, int]:
        """By name; 0 where there is none."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "stored_as"}


@dataclass(frozen=True, kw_only=True)
class PicturesConfig:
    """How own pictures, a folder for each class, become images and parts."""

    side: int = 32
    """Side in pixels that their middle square is resized to, 16 to 128."""
    unreadable: Literal["refuse", "skip"] = "refuse"
    """What to do if some files cannot be read as pictures; either way they are listed."""
    test_fraction: float = 0.2
    """Share of them kept apart as the test set, stratified by class, where there is no test/."""
    test_seed: int = 0
    """Decides which; apart from split_seed, so that another val is not another test set."""

    def __post_init__(self) -> None:
        _check("pictures.side", self.side, 16 <= self.side <= 128, "16 to 128 pixels")
        ok = self.unreadable in ("refuse", "skip")
        _check("pictures.unreadable", self.unreadable, ok, "'refuse' or 'skip'")
        ok = 0 < self.test_fraction <= 0.5
        _check("pictures.test_fraction", self.test_fraction, ok, "a share above 0 and at most 0.5")
        _check_whole("pictures.test_seed", self.test_seed, 0, MOST_SEED)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    dataset: str = "auto"
    """cifar10, cifar100, svhn, shapes10, auto (CIFAR-10 if it can be had, else shapes10), or a
    folder that holds a folder of pictures for each class."""
    model: str = "OptimizedCIFAR10Net200K"
    """Network, by its class name; case, - and _ do not matter."""
    dropout: float = 0.2
    """Probability of zeroing a feature before the classifier."""
    train_images: int = 0
    """Training images to train on, stratified by class, chosen by split_seed; 0: all."""
    epochs: int = 16
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes, by the loss."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced: each class weighs the same in the loss, however many images it has."""
    weights: Literal["ema", "last"] = "last"
    """Which weights the run judges and keeps: their moving average, or the raw ones."""
    judge_every: int = 1
    """Epochs from one judgement on val to the next; the last epoch is always judged."""
    patience: int = 0
    """Epochs without a better accuracy on val before stopping early; 0: never stops early."""
    final: bool = False
    """Train on all training images for the fixed length, then read the test set once."""
    tta: int = 2
    """Views of each image that the figure with test-time augmentation averages."""
    seed: int = 0
    """Decides initial weights, order of images, augmentation and dropout."""
    split_seed: int = 0
    """Decides which training images are held out as val, unless it is given; apart from seed."""
    val_fraction: float = 0.1
    """Share of the training images held out as val, stratified by class."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the first there is of cuda, mps, cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of a step; auto: bf16 where the hardware has it, else fp16 on GPUs, else fp32."""
    kernels: Literal["auto", "compiled", "graph", "torch"] = "auto"
    """What computes a training step; auto: compiled kernels, else a CUDA graph, where there are."""
    threads: int = 0
    """CPU threads; 0: one per core that it may use. Part of what makes a run repeatable bit for
    bit."""
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)

    def __post_init__(self) -> None:
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "a probability in [0, 1)")
        _check_whole("epochs", self.epochs, 1, MOST_EPOCHS)
        _check_whole("batch_size", self.batch_size, 2, MOST_BATCH)
        _check_whole("train_images", self.train_images, 0, MOST_IMAGES, "all")
        ok = 0 <= self.label_smoothing < 1
        _check("label_smoothing", self.label_smoothing, ok, "a number in [0, 1)")
        ok = self.class_weights in ("none", "balanced")
        _check("class_weights", self.class_weights, ok, "'none' or 'balanced'")
        _check("weights", self.weights, self.weights in ("ema", "last"), "'ema' or 'last'")
        ok = self.weights != "ema" or self.ema.decay > 0
        _check("weights", self.weights, ok, "'last', since ema.decay is 0")
        _check_whole("patience", self.patience, 0, MOST_EPOCHS, "never")
        _check_whole("judge_every", self.judge_every, 1, MOST_EPOCHS)
        _check_whole("tta", self.tta, 1, MOST_VIEWS)
        _check_whole("seed", self.seed, 0, MOST_SEED)
        _check_whole("split_seed", self.split_seed, 0, MOST_SEED)
        ok = 0 < self.val_fraction <= 0.5
        _check("val_fraction", self.val_fraction, ok, "a share above 0 and at most 0.5")
        ok = self.device in ("auto", "cpu", "cuda", "mps")
        _check("device", self.device, ok, "'auto', 'cpu', 'cuda' or 'mps'")
        ok = self.precision in ("auto", "bf16", "fp16", "fp32")
        _check("precision", self.precision, ok, "'auto', 'bf16', 'fp16' or 'fp32'")
        ok = self.kernels in ("auto", "compiled", "graph", "torch")
        _check("kernels", self.kernels, ok, "'auto', 'compiled', 'graph' or 'torch'")
        _check_whole("threads", self.threads, 0, MOST_THREADS, "one per core")
        ok = self.optim.warmup_epochs < self.epochs
        expected = f"fewer than epochs (= {self.epochs}): lower it or train longer"
        _check("optim.warmup_epochs", self.optim.warmup_epochs, ok, expected)
        ok = self.mixing.off_epochs <= self.epochs
        expected = f"at most epochs (= {self.epochs})"
        _check("mixing.off_epochs", self.mixing.off_epochs, ok, expected)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the configuration") -> Self:
        """Builds a config from nested plain values, as TOML and JSON give them.

        Raises:
            SpratError: an unknown key (with the nearest known one) or a value of the wrong
                type, naming `source`.
        """
        return _build(cls, values, source, prefix="")

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """The same but for some settings, by name: {"epochs": 12, "optim.lr": 0.2}.

        Raises:
            SpratError: there is no such setting, or a value does not fit.
        """
        known = _flatten(self.to_dict())
        for name in settings:
            if name not in known:
                hint = did_you_mean(str(name), known)
                raise SpratError(f"there is no setting {shown(name)}{hint}")
        return self.from_dict(_nest(known | dict(settings)))

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values as JSON has them; `from_dict` gives the same config back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# Fields that say how and on what a recipe is run, and are no departure from it.
RUN_FIELDS = frozenset({"dataset", "final", "seed", "device", "kernels", "threads"})


def overrides(config: Config, recipe: Config) -> dict[str, Any]:
    """Where `config` departs from the recipe it began from: {"optim.lr": 0.4, …}."""
    ours, theirs = _flatten(config.to_dict()), _flatten(recipe.to_dict())
    return {k: v for k, v in ours.items() if k not in RUN_FIELDS and v != theirs[k]}


def parse_time(text: str) -> float:
    """Seconds of a time as people write it: 90s, 5m, 1h30m.

    Raises:
        SpratError: it is none, 0, or above 100 days.
    """
    parts = re.fullmatch(r"(?=\d)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text)
    hours, minutes, rest = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= MOST_SECONDS:
        raise SpratError(
            f"time is {shown(text)}, expected hours, minutes and seconds, above 0 and at most 100 "
            "days: 90s, 5m or 1h30m"
        )
    return float(seconds)


def to_toml(config: Config) -> str:
    """A recipe's file with all of a config's settings but those that say how and on what it is
    run."""
    values = {key: value for key, value in config.to_dict().items() if key not in RUN_FIELDS}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in values.items() if key not in tables]
    for name, table in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in table.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # as in JSON but for one character
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("sprat") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if ".toml" in f.name)


def recipe_path(recipe: str) -> Path:
    """The file of a shipped recipe's name, or of a path that ends in .toml.

    Raises:
        SpratError: no recipe of that name ships.
    """
    if recipe.endswith(".toml"):
        return Path(recipe)
    if recipe not in recipe_names():
        hint = did_you_mean(recipe, recipe_names())
        names = ", ".join(recipe_names())
        raise SpratError(
            f"there is no recipe {shown(recipe)}{hint}; there are {names}, or give the path of a "
            ".toml"
        )
    return Path(str(resources.files("sprat") / "recipes" / f"{recipe}.toml"))


def load_recipe(recipe: str) -> Config:
    """Reads a recipe by its shipped name ("quick") or by its path ("my.toml").

    Raises:
        SpratError: no such recipe, not TOML, or a key or value it may not have.
    """
    path = recipe_path(recipe)
    try:
        values = read_toml(path)
    except FileNotFoundError as error:
        raise SpratError(
            f"there is no recipe file {path}; write one or name a shipped recipe"
        ) from error
    return Config.from_dict(values, source=str(path))


def _build(cls: Any, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        name = prefix[:-1] or "the configuration"
        raise SpratError(f"{source}: {name} is {shown(values)}, expected a table of settings")
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key, value in values.items():
        if key not in hints:
            hint = did_you_mean(str(key), list(hints))
            raise SpratError(f"{source}: there is no setting {shown(f'{prefix}{key}')}{hint}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            kwargs[key] = _build(hint, value, source, prefix=f"{prefix}{key}.")
        else:
            kwargs[key] = _typed(hint, value, f"{source}: {prefix}{key}")
    try:
        return cls(**kwargs)
    except SpratError as error:
        raise SpratError(f"{source}: {error}") from error


def _typed(hint: Any, value: Any, name: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        _check(name, value, value in choices, " or ".join(map(repr, choices)))
        return value
    if typing.get_origin(hint) is tuple:
        if isinstance(value, str):  # one alone, or none
            value = [value] if value else []
        _check(name, value, isinstance(value, list | tuple), "a list")
        return tuple(_typed(typing.get_args(hint)[0], item, name) for item in value)
    if hint is float and type(value) is int and abs(value) <= MOST_BUDGET:
        return float(value)
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: f"a string of at most {LONGEST_TEXT:,} characters that can name a file",
    }
    ok = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    _check(name, value, ok and (hint is not str or _can_name_a_file(value)), words[hint])
    return value


def _can_name_a_file(text: str) -> bool:
    try:
        return len(text) <= LONGEST_TEXT and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair
        return False


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `_flatten`."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        *tables, key = name.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        table[key] = value
    return values
