"""Interface for watching a search while it runs, in a module that does not load torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sprat.searching.driver import Driver
    from sprat.searching.trial import Rung
    from sprat.searching.trials import Trial


class Watcher:
    """Watcher of a search that does nothing. Displays and tests override what they need."""

    def asked(self, trials: "Sequence[Trial]", driver: "Driver") -> None:
        """Called with a generation's trials, including refused ones, before they are trained."""

    def rung_ended(self, trial: "Trial", rung: "Rung", driver: "Driver") -> None:
        """Called when a trial has reached a rung or was given up."""

    def finalists(self, trials: "Sequence[Trial]", epochs: int, driver: "Driver") -> None:
        """Called with the best trials before they are trained for longer."""
