"""Figures of a run and its predictions: computed once, drawn as PNG and SVG."""
