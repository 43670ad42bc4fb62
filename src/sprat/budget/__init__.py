"""Costs and receptive field of a network, computed from its traced graph."""

from sprat.budget.effective import DRAWS, effective_field, effective_side
from sprat.budget.graph import count_parameters
from sprat.budget.limits import Verdict, check_limits
from sprat.budget.plan import MemoryPlan, memory_plan
from sprat.budget.summary import Costs, Layer, Summary, costs, receptive_field, summarize

__all__ = [
    "DRAWS",
    "Costs",
    "Layer",
    "MemoryPlan",
    "Summary",
    "Verdict",
    "check_limits",
    "costs",
    "count_parameters",
    "effective_field",
    "effective_side",
    "memory_plan",
    "receptive_field",
    "summarize",
]
