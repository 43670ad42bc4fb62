"""sprat's commands as Python functions; the command line calls these.

Each function checks its arguments as far as possible before it imports heavy packages.
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
