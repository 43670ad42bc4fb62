"""Limits that a network must keep, and how far it is from each."""

from collections.abc import Mapping
from dataclasses import dataclass

from sprat.budget.summary import Summary
from sprat.errors import SpratError
from sprat.names import WIDTHS


@dataclass(frozen=True)
class Verdict:
    """One limit next to what was achieved.

    margin: how far on the right side of the target, as a share of it; below 0 where it is missed.
    """

    metric: str
    target: str
    achieved: str
    margin: float
    kept: bool


def judge_limits(
    limits: Mapping[str, float],
    summary: Summary,
    stored_as: str = "fp32",
    accuracy: float | None = None,
) -> list[Verdict]:
    """Each limit that is above 0, in their order here.

    Args:
        limits: any of max_parameters, max_macs, min_receptive_field (pixels), max_flash and
            max_ram (bytes; max_peak_memory is its former name), min_accuracy (a fraction).
        stored_as: "fp32", "fp16" or "int8": what flash and peak memory hold.
        accuracy: for min_accuracy.

    Raises:
        SpratError: min_accuracy without an accuracy, or a limit that no network can keep.
    """
    image = 3 * summary.side**2 * WIDTHS[stored_as]
    ram = limits.get("max_ram", 0) or limits.get("max_peak_memory", 0)
    if 0 < ram < image:
        raise SpratError(
            f"the limits contradict each other: max_ram is {ram:,} bytes, but an image "
            f"of 3 x {summary.side} x {summary.side} in {stored_as} alone takes {image:,}; allow "
            "more, store it as a smaller type or make the image smaller"
        )
    # a field that is the whole image is as large as any
    field = summary.receptive_field or float("inf")
    achieved = {
        "max_parameters": ("parameters", summary.parameters, "{:,.0f}"),
        "max_macs": ("MACs", summary.macs, "{:,.0f}"),
        "min_receptive_field": ("receptive field", field, "{:.0f} px"),
        "max_flash": (f"weights in {stored_as}", summary.flash_bytes[stored_as], "{:,.0f} bytes"),
        "max_ram": (
            f"peak activations in {stored_as}", summary.peak_bytes[stored_as], "{:,.0f} bytes"
        ),
        "min_accuracy": ("accuracy", accuracy, "{:.2%}"),
    }  # fmt: skip
    verdicts = []
    for name, (metric, value, shown) in achieved.items():
        target = ram if name == "max_ram" else limits.get(name, 0)
        if not target:
            continue
        if value is None:
            raise SpratError(f"{name} is {target}, but only a finished run has an accuracy")
        is_least = name.startswith("min_")
        margin = (value - target if is_least else target - value) / target
        sign = "≥" if is_least else "≤"
        verdicts.append(
            Verdict(
                metric, f"{sign} {shown.format(target)}", shown.format(value), margin, margin >= 0
            )
        )
    return verdicts
