"""What a search reports to while it runs. Apart from the search, which loads torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sprat.searching.driver import Driver
    from sprat.searching.trial import Rung
    from sprat.searching.trials import Trial


class Watcher:
    """Hears how a search goes, and does nothing. A display or a test overrides what it needs."""

    def asked(self, trials: "Sequence[Trial]", driver: "Driver") -> None:
        """Before the trials of a generation are trained, those that were refused among them."""

    def rung_ended(self, trial: "Trial", rung: "Rung", driver: "Driver") -> None:
        """After a trial came to a rung, or was given up."""

    def finalists(self, trials: "Sequence[Trial]", epochs: int, driver: "Driver") -> None:
        """Before the best trials are trained for longer."""
