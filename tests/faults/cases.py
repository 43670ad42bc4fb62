"""Cases of faults: how they fail, and how they are counted."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

Failure = Literal["lost", "silent", "tracebacks"]


class FailedError(Exception):
    """A fault that sprat did not withstand."""

    def __init__(self, failure: Failure, why: str) -> None:
        super().__init__(why)
        self.failure = failure


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefix the message of a failure with the name of its case."""
    try:
        yield
    except FailedError as failed:
        raise FailedError(failed.failure, f"{what}: {failed}") from failed


@dataclass
class Count:
    """Number of faults of one kind, by outcome."""

    tried: int = 0
    survived: int = 0
    lost: int = 0
    silent: int = 0
    tracebacks: int = 0

    @property
    def failed(self) -> int:
        return self.tried - self.survived

    def add(self, tried: int, failure: Failure | None) -> None:
        """Add a case in which `tried` faults happened; if it failed, count one as failed."""
        self.tried += tried
        self.survived += tried - (failure is not None)
        if failure is not None:
            setattr(self, failure, getattr(self, failure) + 1)

    def to_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass
class Case:
    """One case of a kind: its number, its random generator, and the number of faults so far."""

    number: int
    random: random.Random
    tried: int = 0


@dataclass(frozen=True)
class Kind:
    """One kind of fault.

    count: number of cases, given FAULTS.
    attempt: tries a case and counts its faults; raises FailedError.
    """

    count: Callable[[int], int]
    attempt: Callable[[Case], None]
