"""sprat: small-parameter image classifier trainer."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("sprat")
except PackageNotFoundError:  # run from a checkout
    __version__ = "0+unknown"
