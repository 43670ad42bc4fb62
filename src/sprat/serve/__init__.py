"""HTTP server for a trained model: an API for programs and a page for people."""

import importlib.util

from sprat.errors import SpratError

PACKAGES = ("starlette", "uvicorn", "httptools", "python_multipart", "prometheus_client", "jinja2")


def require_packages() -> None:
    """Raise a SpratError that says what to install if a package is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise SpratError(
            f"sprat serve needs packages that are not installed: {', '.join(missing)}. Install "
            "them with pip install 'sprat[serve]'"
        )
