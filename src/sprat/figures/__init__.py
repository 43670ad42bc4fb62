"""What a run and its predictions show: computed once, drawn as PNG and as SVG."""
