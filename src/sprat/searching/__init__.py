"""Search for the best network within a budget: its space, the costs of networks, and the training
and order of trials."""

import importlib.util
import warnings

from sprat.errors import SpratError


def require_optuna() -> None:
    """Import Optuna without its warnings; raise a SpratError that says what to install if it is
    missing."""
    if importlib.util.find_spec("optuna") is None:
        raise SpratError(
            "sprat search needs Optuna, which is not installed here. Install it with pip install "
            "'sprat[search]'."
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in a notebook, its tqdm asks for ipywidgets
        importlib.import_module("optuna")
