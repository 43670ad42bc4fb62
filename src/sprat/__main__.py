"""`python -m sprat` is `sprat`."""

from sprat.cli import main

main()
