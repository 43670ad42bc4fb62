"""Server of `sprat serve` in its own process, for tests that send it requests."""

import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from sprat.serve.samples import draw_samples
from sprat.serve.uploads import png

# Starlette leaves an incomplete part's temporary file to the garbage collector
UNCLOSED = "ignore:Unclosed file <tempfile.SpooledTemporaryFile:ResourceWarning"
WARNINGS = ("-W", "error", "-W", UNCLOSED)
CAT = png(draw_samples(["cat"])["cat"])
READY = re.compile(r"ready at (http://127\.0\.0\.1:(\d+))/")


@dataclass(frozen=True)
class Server:
    process: "subprocess.Popen[bytes]"
    folder: Path  # has its stdout in "out" and its stderr in "err"
    url: str
    port: int
    client: httpx.Client

    def log(self) -> list[dict[str, Any]]:
        """Return the complete log lines so far, one per request; the last few may be queued."""
        *lines, _ = (self.folder / "out").read_text().split("\n")
        return [json.loads(line) for line in lines]


@contextmanager
def serving(*options: object, **process_options: Any) -> Iterator[Server]:
    """Start `sprat serve` on a free port, wait until it is ready, and stop it afterwards.

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
            # one client for all requests: each new client would read all certificates again
            with httpx.Client(
                base_url=ready[1], trust_env=False, verify=False, timeout=60
            ) as client:
                yield Server(process, folder, ready[1], int(ready[2]), client)
        finally:
            process.terminate()
            process.wait()


def post(server: Server, *pictures: tuple[str, bytes], **options: object) -> httpx.Response:
    files = [("images", picture) for picture in pictures]
    return server.client.post("/predict", files=files, params=options)


def answer_on(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    response = HTTPResponse(connection)
    response.begin()
    with response:
        return response.status, json.loads(response.read())


def request(body: bytes, kind: str = "multipart/form-data; boundary=XX", extra: str = "") -> bytes:
    head = f"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n{extra}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def part(content: bytes, header: str = 'name="images"; filename="a.png"') -> bytes:
    return f"--XX\r\nContent-Disposition: form-data; {header}\r\n\r\n".encode() + content + b"\r\n"


END = b"--XX--\r\n"


def assert_well(server: Server) -> None:
    """Check that a good request is answered correctly."""
    answer = post(server, ("cat.png", CAT))
    assert answer.status_code == 200
    assert answer.json()["pictures"][0]["predictions"][0]["class"] == "cat"


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait until `holds` returns true, at most a minute."""
    for _ in range(6_000):
        if holds():
            return
        time.sleep(0.01)
    raise AssertionError("a minute has passed")


def metrics(server: Server) -> dict[tuple[str, ...], float]:
    """Return the values of the metrics by name and labels."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(server.client.get("/metrics").text)
        for sample in family.samples
    }


def in_progress(server: Server) -> float:
    return metrics(server)["sprat_requests_in_flight",]
