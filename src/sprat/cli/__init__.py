"""The command line. Commands are thin, and import what is heavy only when they run."""

from sprat.cli.app import app
from sprat.cli.main import main

__all__ = ["app", "main"]
