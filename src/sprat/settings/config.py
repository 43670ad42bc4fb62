"""The tables of settings that determine a run.

A table is defined next to the code that it configures: NetworkConfig in models/, OptimConfig in
optim/, AugmentConfig and MixingConfig in augment/, PicturesConfig in data/; the others are here. A
number that switches something off is 0, since TOML has no null.
"""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from sprat.augment.mixing import MixingConfig
from sprat.augment.pipeline import AugmentConfig
from sprat.data import ACCEPTED
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError, did_you_mean, shown
from sprat.models.registry import NetworkConfig
from sprat.names import VIEWS, WIDTHS
from sprat.optim import OptimConfig
from sprat.option import Group, Parameter
from sprat.settings.field import BYTES, COUNT, MOST_SEED, Table, limit, refused, setting
from sprat.threads import MOST_THREADS

__all__ = [
    "AugmentConfig",
    "BudgetConfig",
    "Config",
    "DistillConfig",
    "EMAConfig",
    "MixingConfig",
    "NetworkConfig",
    "OptimConfig",
    "PicturesConfig",
]

MOST_EPOCHS, MOST_BATCH, MOST_IMAGES, MOST_FOLDS = 100_000, 65_536, 10**9, 1_000

# the groups of `sprat train --help`, in this order
COMMON, RUN = Group("Most used", sort_key=0), Group("Run", sort_key=1)


def _group(title: str, place: int) -> Parameter:
    return Parameter(group=Group(title, sort_key=place))


@dataclass(frozen=True, kw_only=True)
class EMAConfig(Table, name="ema"):
    """Exponential moving average of the weights."""

    decay: float = setting(
        0.998,
        "Fraction of the average that each step keeps",
        at_least=0,
        below=1,
        zero="no average",
    )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Table, name="distill"):
    """Distillation: trained networks whose predictions are learnt together with the labels."""

    teacher: tuple[str, ...] = setting(
        (),
        "Model file, run folder or pretrained model to learn from; several are averaged",
    )
    weight: float = setting(
        0.5, "Weight of the distillation loss; the label loss gets the rest", above=0, at_most=1
    )
    temperature: float = setting(
        2.0,
        "Temperature that divides the logits of teacher and student; above 1 softens them",
        at_least=0.1,
        at_most=100,
    )


@dataclass(frozen=True, kw_only=True)
class BudgetConfig(Table, name="budget"):
    """Limits on the network; training is refused if it does not meet them."""

    max_parameters: int = limit("Maximum number of parameters", scale=COUNT)
    max_macs: int = limit("Maximum number of multiply-accumulates per image", scale=COUNT)
    min_receptive_field: int = limit("Minimum receptive field before global pooling", "pixels")
    max_flash: int = limit("Maximum bytes of weights, stored as budget.stored_as", scale=BYTES)
    max_ram: int = limit(
        "Maximum bytes of the arena for one image's activations, stored as budget.stored_as",
        scale=BYTES,
        formerly="max_peak_memory",
    )
    stored_as: str = setting(
        "fp32", "Type of weights and activations on the device", choices=WIDTHS
    )

    @property
    def limits(self) -> dict[str, int]:
        """Each limit; 0 if there is none."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "stored_as"}


@dataclass(frozen=True, kw_only=True)
class Config(Table):
    """Every setting of a run."""

    dataset: Annotated[str, Parameter(group=COMMON)] = setting("auto", ACCEPTED)
    start_from: Annotated[str, Parameter(group=COMMON)] = setting(
        "",
        "Model file, run folder or pretrained model to take the initial weights from; empty: train "
        "from scratch",
    )
    dropout: Annotated[float, Parameter(group=RUN)] = setting(
        0.2, "Probability of dropping a feature before the classifier", at_least=0, below=1
    )
    train_images: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "Number of training images, stratified by class and chosen by split_seed",
        at_least=0,
        at_most=MOST_IMAGES,
        zero="all",
    )
    epochs: Annotated[int, Parameter(group=COMMON)] = setting(
        16,
        "Passes over the training images; settings counted in epochs scale with this one",
        at_least=1,
        at_most=MOST_EPOCHS,
    )
    batch_size: Annotated[int, Parameter(group=RUN)] = setting(
        128, "Images per step", at_least=2, at_most=MOST_BATCH
    )
    label_smoothing: Annotated[float, Parameter(group=RUN)] = setting(
        0.0, "Fraction of each target that is spread evenly over all classes", at_least=0, below=1
    )
    class_weights: Annotated[Literal["none", "balanced"], Parameter(group=RUN)] = setting(
        "none", "balanced: every class has the same weight in the loss, however many images it has"
    )
    weights: Annotated[Literal["ema", "last"], Parameter(group=RUN)] = setting(
        "last", "Weights to evaluate and keep: ema (their moving average) or last"
    )
    evaluate_every: Annotated[int, Parameter(group=RUN)] = setting(
        1,
        "Epochs between evaluations on val (or the probe); the last epoch is always evaluated",
        at_least=1,
        at_most=MOST_EPOCHS,
        formerly="judge_every",
    )
    patience: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "Epochs without a better accuracy on val after which training stops early",
        at_least=0,
        at_most=MOST_EPOCHS,
        zero="never",
    )
    final: Annotated[bool, Parameter(group=COMMON)] = setting(
        False, "Train on all training images, then evaluate once on the test set"
    )
    folds: Annotated[int, Parameter(group=COMMON)] = setting(
        0,
        "Folds of cross-validation; each is held out by its own run in OUTPUT/fold-N",
        at_least=0,
        at_most=MOST_FOLDS,
        zero="one run",
    )
    fold: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "Train a single run in OUTPUT that holds out this fold",
        at_least=0,
        at_most=MOST_FOLDS,
        zero="all folds, one after another",
    )
    tta: Annotated[int, Parameter(group=RUN)] = setting(
        2, "Number of views to average by test-time augmentation", choices=VIEWS
    )
    seed: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "Seed of initial weights, image order, augmentation and dropout",
        at_least=0,
        at_most=MOST_SEED,
    )
    split_seed: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "Seed of the split into folds, or into training images and val if the dataset has no val",
        at_least=0,
        at_most=MOST_SEED,
    )
    val_fraction: Annotated[float, Parameter(group=RUN)] = setting(
        0.1, "Fraction of each class's training images held out as val", above=0, at_most=0.5
    )
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], Parameter(group=COMMON)] = setting(
        "auto", "Device to train on; auto: the first available of cuda, mps, cpu"
    )
    precision: Annotated[Literal["auto", "bf16", "fp16", "fp32"], Parameter(group=RUN)] = setting(
        "auto",
        "Precision of a training step; auto: bf16 if the hardware has it, else fp16 on GPUs, "
        "else fp32",
    )
    kernels: Annotated[Literal["auto", "compiled", "graph", "torch"], Parameter(group=RUN)] = (
        setting(
            "auto",
            "Implementation of a step; auto: the first available of compiled, graph (CUDA) and "
            "torch",
        )
    )
    threads: Annotated[int, Parameter(group=RUN)] = setting(
        0,
        "CPU threads; changing the number changes the last bits of the weights",
        at_least=0,
        at_most=MOST_THREADS,
        zero="one per core",
    )
    network: Annotated[NetworkConfig, _group("Network", 2)] = field(default_factory=NetworkConfig)
    optim: Annotated[OptimConfig, _group("Optimizer", 3)] = field(default_factory=OptimConfig)
    augment: Annotated[AugmentConfig, _group("Augmentation", 4)] = field(
        default_factory=AugmentConfig
    )
    mixing: Annotated[MixingConfig, _group("Mixing", 5)] = field(default_factory=MixingConfig)
    ema: Annotated[EMAConfig, _group("Moving average of the weights", 6)] = field(
        default_factory=EMAConfig
    )
    distill: Annotated[DistillConfig, _group("Distillation", 7)] = field(
        default_factory=DistillConfig
    )
    pictures: Annotated[PicturesConfig, _group("Your own pictures", 8)] = field(
        default_factory=PicturesConfig
    )
    budget: Annotated[BudgetConfig, _group("Budget", 9)] = field(default_factory=BudgetConfig)

    def check_together(self) -> None:
        if self.weights == "ema" and not self.ema.decay:
            raise refused(
                "weights",
                "ema",
                "'last', since ema.decay is 0",
                "Set weights to 'last', or ema.decay above 0.",
            )
        if self.optim.warmup_epochs >= self.epochs:
            raise refused(
                "optim.warmup_epochs",
                self.optim.warmup_epochs,
                f"fewer than epochs (= {self.epochs})",
                "Lower it or train longer.",
            )
        if self.mixing.off_epochs > self.epochs:
            raise refused(
                "mixing.off_epochs",
                self.mixing.off_epochs,
                f"at most epochs (= {self.epochs})",
                "Lower it or train longer.",
            )
        self._check_folds()

    def _check_folds(self) -> None:
        if self.folds == 1:
            raise refused("folds", 1, "0 (one run) or at least 2", "Give another number of folds.")
        if self.fold > self.folds:
            raise refused(
                "fold",
                self.fold,
                f"at most folds (= {self.folds})",
                "Lower it or give more folds.",
            )
        if self.folds and self.final:
            raise refused(
                "folds",
                self.folds,
                "0, since final is True",
                "Leave final out: no fold reads the test set.",
            )
        if self.folds and self.distill.teacher:
            raise refused(
                "folds",
                self.folds,
                "0, since there is a teacher, which has learnt images of every fold",
                "Leave distill.teacher out, or choose a recipe without a teacher.",
            )

    @classmethod
    def from_dict(cls, values: dict[str, Any], source: str = "the configuration") -> Self:
        """Build a config from nested plain values, as TOML and JSON contain them.

        Raises:
            SpratError: a setting is unknown (the error suggests the nearest one) or a value does
                not fit; the error names `source`.
        """
        try:
            return _build(cls, _with_network(values))
        except SpratError as error:
            raise SpratError(f"{source}: {error}") from error

    @classmethod
    def recorded(cls, values: dict[str, Any], source: str) -> Self:
        """Build a config from one that a run recorded, also in an older version of sprat.

        Raises:
            SpratError: as for `from_dict`.
        """
        config = cls.from_dict(values, source)
        network = NetworkConfig.recorded(config.network.to_dict())
        pictures = config.pictures
        if "channels" not in values.get("pictures", {}):  # older versions always had three
            pictures = dataclasses.replace(pictures, channels=3)
        return dataclasses.replace(config, network=network, pictures=pictures)

    @property
    def model(self) -> str:
        """Name of the network."""
        return self.network.name

    @property
    def all_folds(self) -> bool:
        """Return whether a run for each fold is requested, rather than one run."""
        return self.folds > 0 and not self.fold

    def changed(self, settings: Mapping[str, Any]) -> Self:
        """Return the same config with some settings changed, by name: {"epochs": 12, "optim.lr":
        0.2}.

        "model" replaces the network as a whole: by the network of that name, with only those
        network settings that are in `settings`.

        If the number of epochs changes, settings counted in epochs scale with it (`in_proportion`),
        unless they are in `settings` too.

        Raises:
            SpratError: there is no such setting, or a value does not fit.
        """
        if "model" in settings:
            rest = {key: value for key, value in settings.items() if key != "model"}
            network = NetworkConfig(name=settings["model"])
            return dataclasses.replace(self, network=network).changed(rest)
        settings = self.with_names_of_today(settings)
        for table, each in self.tables.items():
            settings = each.with_names_of_today(settings, f"{table}.")
        known = flatten(self.to_dict())
        for name in settings:
            if name not in known:
                raise _unknown(name, did_you_mean(str(name), known))
        if "epochs" in settings:
            epochs = self.settings["epochs"].converted(settings["epochs"])
            known = flatten(self.in_proportion(epochs).to_dict())
        return self.from_dict(_nest(known | dict(settings)))

    def in_proportion(self, epochs: int) -> Self:
        """Return the config with another number of epochs; settings counted in epochs keep their
        share of the run: warm-up, epochs without mixing, image sides and patience.

        The number of epochs between evaluations does not change.
        """
        if epochs == self.epochs:
            return self
        share = epochs / self.epochs
        augment = self.augment
        if len(augment.sides) > 1:
            sides = tuple(augment.side_of(int(epoch / share)) for epoch in range(epochs))
            augment = dataclasses.replace(augment, sides=sides)
        warmup_epochs = self.optim.warmup_epochs * share
        off_epochs = self.mixing.off_epochs * share
        return dataclasses.replace(
            self,
            epochs=epochs,
            patience=max(1, round(self.patience * share)) if self.patience else 0,
            optim=dataclasses.replace(self.optim, warmup_epochs=warmup_epochs),
            mixing=dataclasses.replace(self.mixing, off_epochs=off_epochs),
            augment=augment,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain values, as in JSON; `from_dict` restores the same config."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


# How and on what data a recipe is run; these do not count as departures from the recipe.
RUN_FIELDS = frozenset(
    {"dataset", "final", "folds", "fold", "seed", "device", "kernels", "threads"}
)
IN_EPOCHS = ("optim.warmup_epochs", "mixing.off_epochs", "augment.sides", "patience")


def _with_network(values: Any) -> Any:
    """Return a config's values with its network in a table; older recipes and runs name it by
    `model = "SpratS"`.

    Raises:
        SpratError: the network is given in both ways.
    """
    if not isinstance(values, dict) or "model" not in values:
        return values
    values = dict(values)
    name = values.pop("model")
    if "network" in values:
        raise SpratError(
            f"model is {shown(name)}, but there is also a table [network]. Keep the table, and put "
            "the name in it."
        )
    return values | {"network": {"name": name}}


def _build(table: Any, values: Any, prefix: str = "") -> Any:
    if not isinstance(values, dict):
        name = prefix[:-1] or "the configuration"
        raise SpratError(
            f"{name} is {shown(values)}, expected a table of settings. Write [table] on a line "
            "of its own and its settings below it."
        )
    known = [*table.settings, *table.tables]
    values = table.with_names_of_today(values)
    for key in values:
        if key not in known:
            raise _unknown(f"{prefix}{key}", did_you_mean(str(key), known))
    built = {
        key: _build(table.tables[key], value, f"{prefix}{key}.") if key in table.tables else value
        for key, value in values.items()
    }
    return table(**built)


def _unknown(name: Any, hint: str) -> SpratError:
    return SpratError(
        f"Unknown setting {shown(name)}{hint or '.'} See sprat train --help for all settings."
    )


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by their full names: {"epochs": 16, "optim.lr": 0.4, …}."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    """Return the nested settings of flat ones: the inverse of `flatten`."""
    values: dict[str, Any] = {}
    for name, value in flat.items():
        *tables, key = name.split(".")
        table = values
        for part in tables:
            table = table.setdefault(part, {})
        table[key] = value
    return values
