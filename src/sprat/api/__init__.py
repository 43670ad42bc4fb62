"""Every verb of sprat's as a function: what a command does, Python can do too, by the same code.

Nothing heavy is imported before a function has checked what it can without.
"""

from sprat.api.data import check_data
from sprat.api.foreign import Imported, import_model
from sprat.api.models import ModelEvaluation, evaluate, export, load, predict
from sprat.api.results import compare, list_runs, report
from sprat.api.runs import Folds, Run, Seeds, resume, train, train_folds, train_seeds
from sprat.api.searches import Search, resume_search, search

__all__ = [
    "Folds",
    "Imported",
    "ModelEvaluation",
    "Run",
    "Search",
    "Seeds",
    "check_data",
    "compare",
    "evaluate",
    "export",
    "import_model",
    "list_runs",
    "load",
    "predict",
    "report",
    "resume",
    "resume_search",
    "search",
    "train",
    "train_folds",
    "train_seeds",
]
