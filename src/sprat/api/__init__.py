"""Every verb of sprat's as a function: what a command does, Python can do too, by the same code.

Nothing heavy is imported before a function has checked what it can without.
"""

from sprat.api.data import check_data
from sprat.api.models import ModelEvaluation, evaluate, export, load, predict
from sprat.api.results import compare, report
from sprat.api.runs import Folds, Run, Seeds, resume, train, train_folds, train_seeds

__all__ = [
    "Folds",
    "ModelEvaluation",
    "Run",
    "Seeds",
    "check_data",
    "compare",
    "evaluate",
    "export",
    "load",
    "predict",
    "report",
    "resume",
    "train",
    "train_folds",
    "train_seeds",
]
