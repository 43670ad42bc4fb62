"""Fetch one file, as a script for tests that kill it or start two.

    python fetch_one.py URL TARGET MD5 SIZE

Prints a line for every message, and "bytes" when the first bytes have arrived.
"""

import sys
from pathlib import Path
from types import ModuleType

import sprat

# the package without its __init__, which imports torch and thus takes seconds
data = ModuleType("sprat.data")
data.__path__ = [str(Path(sprat.__file__).parent / "data")]
sys.modules["sprat.data"] = data

from sprat.data.fetch import Patience, fetch  # noqa: E402

if __name__ == "__main__":
    url, target, md5, size = sys.argv[1:]
    told = False

    def progress(done: int, total: int) -> None:
        global told
        if not told:
            print("bytes", flush=True)
        told = True

    def log(text: str) -> None:
        print(text, flush=True)

    fetch([url], Path(target), md5, int(size), progress, log, Patience(silence=30))
