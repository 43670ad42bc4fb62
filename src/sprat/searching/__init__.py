"""Search for the best network within a budget: its space, the costs of networks, and the training
and order of trials."""

import importlib.util

from sprat.errors import SpratError


def require_optuna() -> None:
    """Raise a SpratError that says what to install if Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise SpratError(
            "sprat search needs Optuna, which is not installed here. Install it with pip install "
            "'sprat[search]'."
        )
