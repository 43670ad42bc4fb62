"""`sprat serve` in a process of its own, for tests that ask it."""

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

# Starlette leaves the file of a part that never ends to be collected
UNCLOSED = "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
WARNINGS = ("-W", "error", "-W", UNCLOSED)
READY = re.compile(r"ready at (http://127\.0\.0\.1:(\d+))/")


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[bytes]"
    folder: Path  # of what it printed
    url: str
    port: int
    client: httpx.Client

    def log(self) -> list[dict[str, Any]]:
        """The lines it wrote so far, one a request."""
        return [json.loads(line) for line in (self.folder / "out").read_text().splitlines()]


@contextmanager
def serving(*options: object, **process_options: Any) -> Iterator[Server]:
    """Starts it on a free port, waits until it is ready, and ends it unless it has ended.

    Args:
        process_options: as for `subprocess.Popen`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, *WARNINGS, "-m", "sprat", "serve"]
        command += ["--port", "0", "--threads", "1"]
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [*command, *map(str, options)], stderr=err, **({"stdout": out} | process_options)
            )
        try:
            while not (ready := READY.search((folder / "err").read_text())):
                assert process.poll() is None, (folder / "err").read_text()
                time.sleep(0.05)
            # one for all requests: each would read all certificates anew
            with httpx.Client(
                base_url=ready[1], trust_env=False, verify=False, timeout=60
            ) as client:
                yield Server(process, folder, ready[1], int(ready[2]), client)
        finally:
            process.terminate()
            process.wait()
