"""sprat: small-parameter image classifier trainer.

import sprat

classifier = sprat.load()  # the most accurate pretrained model
labels, probabilities = classifier("cat.jpg")
run = sprat.train("quick", {"epochs": 12}, dataset="cifar10")
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from sprat.threads import bound_spinning

if TYPE_CHECKING:
    from sprat.api import (
        Folds,
        Imported,
        ModelEvaluation,
        Run,
        Search,
        Seeds,
        check_data,
        compare,
        evaluate,
        export,
        import_model,
        list_runs,
        load,
        predict,
        report,
        resume,
        resume_search,
        search,
        train,
        train_folds,
        train_seeds,
    )
    from sprat.classifier import Classifier, Prediction, Predictions
    from sprat.data.check import DataCheck
    from sprat.deploy.writing import Exported
    from sprat.errors import SpratError
    from sprat.evaluation.compare import Entry
    from sprat.evaluation.explain import Explanation
    from sprat.run_list import ListedRun
    from sprat.settings.config import Config
    from sprat.settings.recipes import load_recipe
    from sprat.tensorboard import TensorBoard
    from sprat.training.observer import Observer

__all__ = [
    "Classifier",
    "Config",
    "DataCheck",
    "Entry",
    "Explanation",
    "Exported",
    "Folds",
    "Imported",
    "ListedRun",
    "ModelEvaluation",
    "Observer",
    "Prediction",
    "Predictions",
    "Run",
    "Search",
    "Seeds",
    "SpratError",
    "TensorBoard",
    "check_data",
    "compare",
    "evaluate",
    "export",
    "import_model",
    "list_runs",
    "load",
    "load_recipe",
    "predict",
    "report",
    "resume",
    "resume_search",
    "search",
    "train",
    "train_folds",
    "train_seeds",
]

try:
    __version__ = version("sprat")
except PackageNotFoundError:  # run from a checkout
    __version__ = "0+unknown"

bound_spinning()  # before torch is imported, which reads it

_HOMES = {
    "api": (
        *("Folds", "Imported", "ModelEvaluation", "Run", "Search", "Seeds", "check_data"),
        *("compare", "evaluate", "export", "import_model", "list_runs", "load", "predict"),
        *("report", "resume", "resume_search", "search", "train", "train_folds", "train_seeds"),
    ),
    "classifier": ("Classifier", "Prediction", "Predictions"),
    "data.check": ("DataCheck",),
    "deploy.writing": ("Exported",),
    "evaluation.compare": ("Entry",),
    "evaluation.explain": ("Explanation",),
    "errors": ("SpratError",),
    "run_list": ("ListedRun",),
    "settings.config": ("Config",),
    "settings.recipes": ("load_recipe",),
    "tensorboard": ("TensorBoard",),
    "training.observer": ("Observer",),
}


def __getattr__(name: str) -> Any:
    """Import names when they are first used: torch takes a second, too long for `sprat --help`."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"sprat.{home}"), name)
    raise AttributeError(f"module 'sprat' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
