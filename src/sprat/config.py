"""What a run can be told: frozen dataclasses, TOML recipes in, JSON out and back the same.

The string under a field is its documentation: it gives the unit and is the text that
`sprat train --help` prints. Checks happen at construction. A number that switches something
off is 0, since TOML has no null.
"""

import dataclasses
import difflib
import json
import math
import tomllib
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

from sprat.errors import SpratError


def _check(name: str, value: Any, ok: bool, expected: str) -> None:
    if not ok:
        raise SpratError(f"{name} is {value!r}, expected {expected}")


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
    """What happens to the training images."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    crop: int = 4
    """Pixels of padding on each side before a random crop; 0: no crop."""
    crop_mode: Literal["reflect", "constant"] = "reflect"
    """What the padding is filled with: the mirrored image, or black."""
    sides: tuple[int, ...] = ()
    """Image side in pixels, epoch by epoch, the last for all that follow; none: their own."""

    def __post_init__(self) -> None:
        _check("augment.flip", self.flip, 0 <= self.flip <= 1, "a probability, 0 to 1")
        _check("augment.crop", self.crop, 0 <= self.crop <= 16, "0 to 16 pixels")
        ok = all(8 <= side <= 512 for side in self.sides)
        _check("augment.sides", self.sides, ok, "sides of 8 to 512 pixels")
        ok = self.crop_mode in ("reflect", "constant")
        _check("augment.crop_mode", self.crop_mode, ok, "'reflect' or 'constant'")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Exponential moving average of the weights."""

    decay: float = 0.998
    """Share of the average that one step keeps, after its own warm-up; 0: no average."""

    def __post_init__(self) -> None:
        _check("ema.decay", self.decay, 0 <= self.decay < 1, "a number in [0, 1) (0: no average)")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything that decides a run."""

    dataset: str = "auto"
    """cifar10, shapes10, or auto: CIFAR-10 if it can be had, else shapes10."""
    model: str = "OptimizedCIFAR10Net200K"
    """Network, by its class name; case, - and _ do not matter."""
    dropout: float = 0.2
    """Probability of zeroing a feature before the classifier."""
    epochs: int = 16
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step."""
    label_smoothing: float = 0.0
    """Share of each target spread evenly over all classes, by the loss."""
    weights: Literal["ema", "last"] = "last"
    """Which weights the run judges and keeps: their moving average, or the raw ones."""
    judge_every: int = 1
    """Epochs from one judgement on val to the next; the last epoch is always judged."""
    patience: int = 0
    """Epochs without a better accuracy on val before stopping early; 0: never stops early."""
    final: bool = False
    """Train on all training images for the fixed length, then read the test set once."""
    seed: int = 0
    """Decides initial weights, order of images, augmentation and dropout."""
    split_seed: int = 0
    """Decides which training images are held out as val; apart from seed."""
    val_fraction: float = 0.1
    """Share of the training images held out as val, stratified by class."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train; auto takes the first there is of cuda, mps, cpu."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of a step; auto: bf16 where the hardware has it, else fp16 on GPUs, else fp32."""
    kernels: Literal["auto", "compiled", "graph", "torch"] = "auto"
    """What computes a training step; auto: compiled kernels or a CUDA graph where there are."""
    threads: int = 0
    """CPU threads; 0: one per core. Part of what makes a run repeatable bit for bit."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)

    def __post_init__(self) -> None:
        _check("dropout", self.dropout, 0 <= self.dropout < 1, "a probability in [0, 1)")
        _check("epochs", self.epochs, self.epochs >= 1, "at least 1")
        _check("batch_size", self.batch_size, self.batch_size >= 2, "at least 2 images")
        ok = 0 <= self.label_smoothing < 1
        _check("label_smoothing", self.label_smoothing, ok, "a number in [0, 1)")
        _check("weights", self.weights, self.weights in ("ema", "last"), "'ema' or 'last'")
        ok = self.weights != "ema" or self.ema.decay > 0
        _check("weights", self.weights, ok, "'last', since ema.decay is 0")
        _check("patience", self.patience, self.patience >= 0, "0 (never) or a number of epochs")
        _check("judge_every", self.judge_every, self.judge_every >= 1, "at least 1 epoch")
        _check("seed", self.seed, 0 <= self.seed < 2**63, "0 or a positive number")
        _check("split_seed", self.split_seed, 0 <= self.split_seed < 2**63, "0 or above")
        ok = 0 < self.val_fraction <= 0.5
        _check("val_fraction", self.val_fraction, ok, "a share above 0 and at most 0.5")
        ok = self.device in ("auto", "cpu", "cuda", "mps")
        _check("device", self.device, ok, "'auto', 'cpu', 'cuda' or 'mps'")
        ok = self.precision in ("auto", "bf16", "fp16", "fp32")
        _check("precision", self.precision, ok, "'auto', 'bf16', 'fp16' or 'fp32'")
        ok = self.kernels in ("auto", "compiled", "graph", "torch")
        _check("kernels", self.kernels, ok, "'auto', 'compiled', 'graph' or 'torch'")
        _check("threads", self.threads, self.threads >= 0, "0 (one per core) or a number")
        ok = self.optim.warmup_epochs < self.epochs
        expected = f"fewer than epochs (= {self.epochs}): lower it or train longer"
        _check("optim.warmup_epochs", self.optim.warmup_epochs, ok, expected)

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the configuration") -> Self:
        """Builds a config from nested plain values, as TOML and JSON give them.

        Raises:
            SpratError: an unknown key (with the nearest known one) or a value of the wrong
                type, naming `source`.
        """
        return _build(cls, values, source, prefix="")

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values as JSON has them; `from_dict` gives the same config back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# Fields that say how and on what a recipe is run, and are no departure from it.
RUN_FIELDS = frozenset({"dataset", "final", "seed", "device", "kernels", "threads"})


def overrides(config: Config, recipe: Config) -> dict[str, Any]:
    """Where `config` departs from the recipe it began from: {"optim.lr": 0.4, …}."""
    ours, theirs = _flatten(config.to_dict()), _flatten(recipe.to_dict())
    return {k: v for k, v in ours.items() if k not in RUN_FIELDS and v != theirs[k]}


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    folder = resources.files("sprat") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if ".toml" in f.name)


def recipe_path(recipe: str) -> Path:
    """The file of a shipped recipe's name, or of a path that ends in .toml.

    Raises:
        SpratError: there is no such recipe or file.
    """
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise SpratError(f"there is no recipe file {path}; write one or name a shipped recipe")
        return path
    if recipe not in recipe_names():
        hint = _suggest(recipe, recipe_names())
        names = ", ".join(recipe_names())
        raise SpratError(
            f"there is no recipe {recipe!r}{hint}; there are {names}, or give the path of a .toml"
        )
    return Path(str(resources.files("sprat") / "recipes" / f"{recipe}.toml"))


def load_recipe(recipe: str) -> Config:
    """Reads a recipe by its shipped name ("quick") or by its path ("my.toml").

    Raises:
        SpratError: no such recipe, not TOML, or a key or value it may not have.
    """
    path = recipe_path(recipe)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpratError(f"{path} is not valid TOML: {error}") from error
    return Config.from_dict(values, source=str(path))


def _build(cls: Any, values: Any, source: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise SpratError(f"{source}: {prefix[:-1]} is {values!r}, expected a table of settings")
    hints = typing.get_type_hints(cls)
    kwargs = {}
    for key, value in values.items():
        if key not in hints:
            hint = _suggest(key, list(hints))
            raise SpratError(f"{source}: there is no setting {prefix + key!r}{hint}")
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
        _check(name, value, isinstance(value, list | tuple), "a list")
        return tuple(_typed(typing.get_args(hint)[0], item, name) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}
    ok = isinstance(value, hint) and not (hint is int and isinstance(value, bool))
    _check(name, value, ok, words[hint])
    return value


def _flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _suggest(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
