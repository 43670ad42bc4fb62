"""The search for the best network within a budget: what is searched, what it costs, how it is
tried, and in which order."""

import importlib.util

from sprat.errors import SpratError


def require_optuna() -> None:
    """Raise a SpratError that says what to install, where Optuna is missing."""
    if importlib.util.find_spec("optuna") is None:
        raise SpratError(
            "sprat search needs Optuna, which is not installed here. Install it with pip install "
            "'sprat[search]'."
        )
