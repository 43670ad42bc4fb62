"""Entry point of `python -m sprat`, the same as `sprat`."""

from sprat.cli import main

main()
