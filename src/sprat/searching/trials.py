"""Records of trials, for trials.json and the journal."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

from sprat.errors import SpratError
from sprat.evaluation.records import Count, NetworkSpec, Positive, Side
from sprat.models import NetworkConfig
from sprat.searching.cost import Cost
from sprat.searching.space import Design
from sprat.shapes import SCALAR, SHARE, TableOf, mismatch, number, shape_of

State = Literal["refused", "untried", "stopped", "complete", "diverged"]


class TrialRecord(TypedDict):
    """A trial in trials.json.

    generation: the one in which it was drawn. state: refused (breaks a limit, never trained),
    untried (no time, or it took too long), stopped (at a rung where others were better), complete
    or diverged. rungs: accuracy on val by the number of epochs. excess: excess over each limit as a
    share of the limit. seconds: of training and evaluation. elapsed: seconds of the search at its
    last rung. point: its value of each choice.
    """

    number: Count
    generation: Count
    state: State
    network: NetworkSpec
    side: Side
    settings: Annotated[dict[str, float], TableOf(number(0))]
    cost: Cost
    excess: Annotated[dict[str, float], TableOf(number())]
    rungs: Annotated[dict[str, float], TableOf(SHARE)]
    seconds: Positive
    elapsed: Positive
    point: Annotated[dict[str, Any], TableOf(SCALAR)]


RECORD = shape_of(TrialRecord)


@dataclass
class Trial:
    """A trial in progress or at its end; `rungs` grows."""

    number: int
    generation: int
    point: dict[str, Any]
    design: Design
    cost: Cost
    excess: dict[str, float]
    rungs: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
    diverged: bool = False
    elapsed: float = 0.0
    last: int = 0
    """Epochs of the last rung, at which a trial is complete."""

    @property
    def refused(self) -> bool:
        """Return whether it breaks a limit, so it is never trained."""
        return any(excess > 0 for excess in self.excess.values())

    @property
    def state(self) -> State:
        """Its current or final state."""
        if self.refused:
            return "refused"
        if self.diverged:
            return "diverged"
        if not self.rungs:
            return "untried"
        return "complete" if self.last in self.rungs else "stopped"

    @property
    def val(self) -> float:
        """Accuracy on val at its last rung; -1 before the first."""
        return self.rungs[max(self.rungs)] if self.rungs else -1.0

    @property
    def rank(self) -> tuple[int, float, int]:
        """Sort key, best first: the last rung, then the accuracy there."""
        reached = max(self.rungs, default=0)
        return (0 if self.diverged else -reached, -self.val, self.number)

    def take(self, other: "Trial") -> None:
        """Take over the results of the same trial."""
        self.rungs, self.seconds = other.rungs, other.seconds
        self.diverged, self.elapsed = other.diverged, other.elapsed

    def to_record(self) -> TrialRecord:
        """Return plain values for JSON."""
        return {
            "number": self.number,
            "generation": self.generation,
            "state": self.state,
            "network": self.design.network.to_dict(),
            "side": self.design.side,
            "settings": self.design.settings,
            "cost": self.cost,
            "excess": self.excess,
            "rungs": {str(epochs): val for epochs, val in self.rungs.items()},
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "point": self.point,
        }

    @classmethod
    def from_record(cls, values: Any, last: int) -> "Trial":
        """Return the trial of a record.

        Raises:
            SpratError: it is not such a record; the message says why.
        """
        if wrong := mismatch(values, RECORD):
            raise SpratError(wrong)
        record: TrialRecord = values
        network = NetworkConfig.from_dict(record["network"])
        return cls(
            record["number"],
            record["generation"],
            record["point"],
            Design(network, record["side"], record["settings"]),
            record["cost"],
            record["excess"],
            {int(epochs): val for epochs, val in record["rungs"].items()},
            record["seconds"],
            record["state"] == "diverged",
            record["elapsed"],
            last,
        )
