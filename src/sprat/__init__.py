"""sprat: small-parameter image classifier trainer."""

from importlib.metadata import version

__version__ = version("sprat")
