"""Limits that a network must keep, and its distance from each."""

from collections.abc import Mapping
from dataclasses import dataclass

from sprat.budget.summary import Summary
from sprat.errors import SpratError


@dataclass(frozen=True)
class Verdict:
    """One limit compared with what was achieved.

    margin: distance to the target as a fraction of it; negative if the limit is missed.
    """

    metric: str
    target: str
    achieved: str
    margin: float
    kept: bool


def check_limits(
    limits: Mapping[str, float],
    summary: Summary,
    stored_as: str = "fp32",
    accuracy: float | None = None,
) -> list[Verdict]:
    """Return a verdict for each limit above 0, in the order of the code.

    Args:
        limits: any of max_parameters, max_macs, min_receptive_field (pixels), max_flash and max_ram
            (bytes; formerly max_peak_memory), min_accuracy (a fraction).
        stored_as: "fp32", "fp16" or "int8": the type of values in flash and RAM.
        accuracy: needed for min_accuracy.

    Raises:
        SpratError: min_accuracy is given without an accuracy, or max_ram for a network whose memory
            cannot be planned.
    """
    ram = limits.get("max_ram", 0) or limits.get("max_peak_memory", 0)
    planned = summary.ram_bytes
    if ram and planned is None:
        raise SpratError(
            f"max_ram is {ram:,} bytes, but sprat cannot plan the memory of {summary.model}: "
            f"{summary.unplanned} Leave the limit out, or change the network."
        )
    # None: the whole image, as large as any field
    field = summary.receptive_field or float("inf")
    achieved = {
        "max_parameters": ("parameters", summary.parameters, "{:,.0f}"),
        "max_macs": ("MACs", summary.macs, "{:,.0f}"),
        "min_receptive_field": ("receptive field", field, "{:.0f} px"),
        "max_flash": (f"weights in {stored_as}", summary.flash_bytes[stored_as], "{:,.0f} bytes"),
        "max_ram": (f"arena in {stored_as}", planned[stored_as] if planned else 0, "{:,.0f} bytes"),
        "min_accuracy": ("accuracy", accuracy, "{:.2%}"),
    }  # fmt: skip
    verdicts = []
    for name, (metric, value, shown) in achieved.items():
        target = ram if name == "max_ram" else limits.get(name, 0)
        if not target:
            continue
        if value is None:
            raise SpratError(
                f"{name} is {target}, but only a finished run has an accuracy. Give the folder of "
                "a run, or leave the limit out."
            )
        is_least = name.startswith("min_")
        margin = (value - target if is_least else target - value) / target
        sign = "≥" if is_least else "≤"
        verdicts.append(
            Verdict(
                metric, f"{sign} {shown.format(target)}", shown.format(value), margin, margin >= 0
            )
        )
    return verdicts
