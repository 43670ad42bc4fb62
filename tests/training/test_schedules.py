"""Tests of the schedules by a table of values, counted from step 0, and by common properties."""

import pytest

from sprat.optim.schedules import RAMPS, SCHEDULES, warmup_then

# schedule, step, total, warmup -> factor
TABLE = [
    ("linear", 0, 10, 0, 1.0),
    ("linear", 5, 10, 0, 0.5),
    ("linear", 9, 10, 0, 0.1),
    ("linear", 0, 10, 4, 0.25),
    ("linear", 3, 10, 4, 1.0),
    ("linear", 4, 10, 4, 1.0),
    ("linear", 7, 10, 4, 0.5),
    ("cosine", 0, 100, 10, 0.1),
    ("cosine", 10, 100, 10, 1.0),
    ("cosine", 55, 100, 10, 0.5),
    ("cosine", 40, 100, 10, 0.75),
]


@pytest.mark.parametrize(("schedule", "step", "total", "warmup", "factor"), TABLE)
def test_schedules_match_the_table(
    schedule: str, step: int, total: int, warmup: int, factor: float
) -> None:
    assert warmup_then(schedule, step, total, warmup) == pytest.approx(factor)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (2, 1), (100, 0), (100, 7), (1000, 999)])
def test_schedule_rises_then_falls_and_is_never_zero(
    schedule: str, total: int, warmup: int
) -> None:
    factors = [warmup_then(schedule, step, total, warmup) for step in range(total)]
    assert min(factors) > 0
    assert max(factors) == 1
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[warmup:] == sorted(factors[warmup:], reverse=True)


@pytest.mark.parametrize(
    ("name", "step", "total", "share"),
    [
        ("constant", 0, 10, 1.0),
        ("constant", 9, 10, 1.0),
        ("rising", 0, 10, 0.1),
        ("rising", 9, 10, 1.0),
        ("falling", 0, 10, 1.0),
        ("falling", 9, 10, 0.1),
    ],
)
def test_ramps_match_the_table(name: str, step: int, total: int, share: float) -> None:
    assert RAMPS[name](step, total) == pytest.approx(share)


@pytest.mark.parametrize("name", RAMPS)
@pytest.mark.parametrize("total", [1, 7, 1000])
def test_a_ramp_is_never_zero_and_reaches_its_peak(name: str, total: int) -> None:
    shares = [RAMPS[name](step, total) for step in range(total)]
    assert min(shares) > 0
    assert max(shares) == 1
