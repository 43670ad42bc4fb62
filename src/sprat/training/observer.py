"""What a run reports to while it trains. Apart from the training, which loads torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sprat.evaluation.records import EpochRow
    from sprat.training.run import Run


class Observer:
    """Hears how a run goes, and does nothing. A display or a test overrides what it needs."""

    def preparing(self, what: str) -> None:
        """Before something that takes seconds and happens once on a machine."""

    def started(self, run: "Run") -> None:
        """Before the first step, of a fresh or a resumed run."""

    def stepped(self, run: "Run") -> None:
        """After every step."""

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        """After an epoch was evaluated and saved; `row` is its line of metrics.jsonl."""

    def evaluating(self, images: int) -> None:
        """During the final evaluation: `images` more are done."""
