"""Receiver of reports on a search while it runs. Apart from the search, which loads torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sprat.searching.driver import Driver
    from sprat.searching.trial import Rung
    from sprat.searching.trials import Trial


class Watcher:
    """Hears how a search goes, and does nothing. A display or a test overrides what it needs."""

    def asked(self, trials: "Sequence[Trial]", driver: "Driver") -> None:
        """Hear of a generation's trials, refused ones among them, before they are trained."""

    def rung_ended(self, trial: "Trial", rung: "Rung", driver: "Driver") -> None:
        """Hear that a trial came to a rung, or was given up."""

    def finalists(self, trials: "Sequence[Trial]", epochs: int, driver: "Driver") -> None:
        """Hear of the best trials before they are trained for longer."""
