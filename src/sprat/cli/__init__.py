"""The command line. Commands are thin and import heavy packages only when they run."""

from sprat.cli.app import app
from sprat.cli.main import main

__all__ = ["app", "main"]
