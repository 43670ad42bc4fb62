"""What a network costs and sees, from its traced graph."""

from sprat.budget.graph import count_parameters
from sprat.budget.summary import Layer, Summary, receptive_field, summarize

__all__ = ["Layer", "Summary", "count_parameters", "receptive_field", "summarize"]
