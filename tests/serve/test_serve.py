"""Tests of the server with good and hostile clients: a real process and real sockets."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import json
import math
import os
import signal
import socket
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
import torch
from conftest import Here
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis import GenerationMode
from serving import (
    CAT,
    END,
    Server,
    answer_on,
    assert_well,
    in_progress,
    metrics,
    part,
    post,
    request,
    serving,
    wait_until,
)

import sprat
from sprat.checkpoint import Model, load_model
from sprat.classifier import to_pixels
from sprat.data import shapes10
from sprat.data.imageset import Normalization
from sprat.figures.overlay import overlay
from sprat.serve.app import make_app
from sprat.serve.batching import Batcher
from sprat.serve.decoding import Decoders, _Process, decode, prepare
from sprat.serve.guard import Guard
from sprat.serve.limits import Limits
from sprat.serve.log import MOST_WAITING, Log
from sprat.serve.metrics import Metrics
from sprat.serve.refusals import Refused
from sprat.serve.samples import draw_samples
from sprat.serve.uploads import data_uri, png
from sprat.zoo import best

LIMITS = {
    "max-body": 400_000, "max-files": 4, "max-pixels": 1_000_000, "body-seconds": 5,
    "header-seconds": 1, "max-requests": 6, "max-requests-per-client": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Run a server of the best shipped model, with small limits, behind a proxy on this machine."""
    options = [word for name, value in LIMITS.items() for word in (f"--{name}", value)]
    with serving("--trusted-proxies", "127.0.0.1", *options) as running:
        yield running


@pytest.fixture(scope="module")
def classifier() -> Iterator[sprat.Classifier]:
    """Load the same model, on one thread: the server uses another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield sprat.load(device="cpu")
    torch.set_num_threads(threads)


def raw(server: Server, *pieces: bytes) -> tuple[int, dict[str, Any]]:
    """Send bytes as they are; return the status and the JSON of the answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return answer_on(connection)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


PIXELS = np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8)
NOISE = Image.fromarray(PIXELS)
JPEG, PNG = encoded(NOISE, "JPEG"), encoded(NOISE, "PNG")


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims this size and contains hardly any pixels."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(bytes(1000))),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def animation(frames: int) -> bytes:
    """Return a GIF that repeats one small frame."""
    one = encoded(Image.new("P", (16, 16), 3), "GIF")
    colours = 3 << ((one[10] & 7) + 1) if one[10] & 0x80 else 0
    start = 13 + colours
    return one[:start] + one[start:-1] * frames + b";"


def chunks_of_nothing(count: int) -> bytes:
    """Return a valid PNG with this many empty chunks of text."""
    text = b"\0\0\0\0tEXt" + struct.pack(">I", zlib.crc32(b"tEXt"))
    return PNG[:33] + text * count + PNG[33:]


def tiff(**tags: int) -> bytes:
    """Return a TIFF of 900 x 900 grey pixels with nothing but zeros after its tags."""
    known = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262,
             "strips": 273, "rows": 278, "tile_width": 322, "tile_height": 323}  # fmt: skip
    values = {"width": 900, "height": 900, "bits": 8, "photometric": 1, "rows": 900, **tags}
    if "strips" in tags:
        values["strips"] = 8
    entries = sorted((known[name], tags[name] if name == "strips" else 1, value)
                     for name, value in values.items())  # fmt: skip
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + b"".join(
        struct.pack("<HHII", tag, 4, count, value) for tag, count, value in entries
    ) + bytes(4) + bytes(100_000)  # fmt: skip


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees
    return encoded(NOISE, "JPEG", exif=exif, quality=95)


def many_scans() -> bytes:
    """Return a progressive JPEG that repeats its last scan a thousand times."""
    whole = encoded(NOISE, "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + 1_000 * whole[last:-2] + whole[-2:]


def many_large_scans() -> bytes:
    """Return a JPEG with fewer scans, but of 850 x 850 pixels: too many for this size."""
    whole = encoded(Image.new("RGB", (850, 850), "red"), "JPEG", progressive=True)
    last = whole.rindex(b"\xff\xda")
    return whole[:last] + 20 * whole[last:-2] + whole[-2:]


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as written:
        written.writestr("a.png", PNG)
    return file.getvalue()


READABLE = {
    "JPEG": JPEG,
    "progressive JPEG": encoded(NOISE, "JPEG", progressive=True),
    "CMYK": encoded(NOISE.convert("CMYK"), "JPEG"),
    "turned by EXIF": rotated(),
    "16-bit": encoded(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG"),
    "palette, see-through": encoded(NOISE.quantize(16), "PNG", transparency=3),
    "grey with alpha": encoded(NOISE.convert("LA"), "PNG"),
    "one bit": encoded(NOISE.convert("1"), "TIFF"),
    "WebP": encoded(NOISE, "WEBP"),
    "BMP": encoded(NOISE, "BMP"),
    "thousands of frames": animation(3_000),
    "a zip behind a JPEG": JPEG + archive(),
    "a page behind a PNG": PNG + b"<script>alert(1)</script>",
    "one pixel": encoded(Image.new("RGB", (1, 1)), "PNG"),
}
UNREADABLE: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 422, "empty"),
    "text": (b"no picture", 415, "Send JPEG"),
    "SVG": (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', 415, "Send JPEG"),
    "zip": (archive(), 415, "Send JPEG"),
    "PPM, which is not opened": (encoded(NOISE, "PPM"), 415, "Send JPEG"),
    "PDF, which is not opened": (encoded(NOISE, "PDF"), 415, "Send JPEG"),
    "EPS, which is not opened": (encoded(NOISE, "EPS"), 415, "Send JPEG"),
    "cut JPEG": (JPEG[: len(JPEG) // 2], 422, "incomplete"),
    "cut PNG": (PNG[: len(PNG) // 2], 422, "incomplete"),
    "cut WebP": (encoded(NOISE, "WEBP")[:200], 422, "incomplete"),
    "a PNG's first bytes": (PNG[:20], 422, "incomplete"),
    "a wrong checksum": (PNG[:50] + b"\0\0\0\0" + PNG[54:], 422, "damaged"),
    "a JPEG of zeros": (JPEG[:2] + bytes(5_000), 415, "Send JPEG"),
    "a thousand scans": (many_scans(), 422, "Save it again"),
    "50,000 x 50,000": (png_header(50_000, 50_000), 413, "at most 1,000,000"),
    "10,000 x 10,000": (png_header(10_000, 10_000), 413, "at most 1,000,000"),
    "1001 x 1000": (png_header(1001, 1000), 413, "at most 1,000,000"),
    "few promised pixels": (png_header(900, 900), 422, "damaged"),
    "1 x 1,000,000": (png_header(1, 1_000_000), 413, "at most 20,000 on a side"),
    "a million tiles": (tiff(tile_width=1, tile_height=1), 422, "too many parts"),
    "strips of a row": (tiff(strips=60_000), 422, "too many parts"),
    "strips beyond the file": (tiff(strips=10**9), 422, "too many parts"),
    "a TIFF in LZMA": (tiff(compression=34925), 415, "method 34925"),
    "a BMP in run lengths": (
        encoded(NOISE, "BMP")[:30] + b"\1" + encoded(NOISE, "BMP")[31:],
        415,
        "run-length",
    ),
    "many scans of many pixels": (many_large_scans(), 422, "more than 22 scans"),
    "thousands of chunks": (chunks_of_nothing(20_000), 422, "too many parts"),
    "hundreds of texts": (chunks_of_nothing(200), 422, "too many parts"),
    "thousands of comments in a JPEG": (
        JPEG[:2] + b"\xff\xfe\0\2" * 20_000 + JPEG[2:],
        422,
        "too many parts",
    ),
    "a JPEG of filling": (JPEG[:2] + b"\xff" * 30_000 + JPEG[2:], 422, "too many parts"),
    "thousands of comments in a GIF": (
        animation(1)[:13] + b"!\xfe\1x\0" * 20_000 + animation(1)[13:],
        422,
        "too many parts",
    ),
    "thousands of frames in a WebP": (
        b"RIFF\0\0\0\0WEBP" + b"ANMF\0\0\0\0" * 20_000,
        422,
        "too many parts",
    ),
    "a GIF of 65,535 x 65,535": (b"GIF89a" + b"\xff" * 4 + animation(1)[10:], 413, "pixels"),
}


@pytest.mark.parametrize("picture", READABLE.values(), ids=READABLE)
def test_readable_pictures_are_classified_like_sprat_predict(
    server: Server, classifier: sprat.Classifier, picture: bytes
) -> None:
    answer = post(server, ("x", picture), seen="true", top=1)
    assert answer.status_code == 200
    (shown,) = answer.json()["pictures"]
    image = Image.open(io.BytesIO(picture))
    if "exif" in image.info:
        image = image.transpose(Image.Transpose.ROTATE_270)
    pixels = to_pixels(image, classifier.side)
    seen = Image.open(io.BytesIO(base64.b64decode(shown["seen"].split(",")[1])))
    assert np.array_equal(np.asarray(seen), pixels[0].permute(1, 2, 0).numpy())
    label, probabilities = classifier(pixels)
    assert [shown["predictions"][0]["class"]] == label
    assert shown["predictions"][0]["probability"] == pytest.approx(probabilities.max().item(), 1e-4)


@pytest.mark.parametrize(("picture", "status", "words"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_pictures_are_refused_with_a_reason(
    server: Server, picture: bytes, status: int, words: str
) -> None:
    answer = post(server, ("x.png", picture))
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert_well(server)


MALFORMED = {
    "another field": (request(part(PNG, 'name="photo"; filename="a"') + END), 400, "'images'"),
    "a text in the field": (request(part(b"hello", 'name="images"') + END), 400, "no file"),
    "no field at all": (request(END), 400, "'images'"),
    "no body": (request(b""), 400, "'images'"),
    "no boundary": (request(part(PNG) + END, "multipart/form-data"), 400, "boundary"),
    "an endless boundary": (
        request(part(PNG) + END, f"multipart/form-data; boundary={'X' * 5_000}"), 400, "form"
    ),
    "another boundary": (
        request(part(PNG) + END, "multipart/form-data; boundary=YY"), 400, "form"
    ),
    "a charset that cannot be read": (
        request(part(PNG) + END, "multipart/form-data; boundary=XX; charset=undefined"),
        400, "UTF-8",
    ),
    "no end": (request(part(PNG)[:-20]), 400, "no file"),
    "no name": (request(part(PNG, 'filename="a"') + END), 400, "name"),
    "no multipart": (request(PNG, "image/png"), 415, "multipart/form-data"),
    "a plain form": (request(b"images=x", "application/x-www-form-urlencoded"), 415, "multipart"),
    "a huge part header": (request(part(PNG, f'name="{"n" * 100_000}"') + END), 400, "form"),
    "many part headers": (
        request(part(PNG, 'name="images"\r\n' + "X-A: b\r\n" * 5_000) + END), 400, "form"
    ),
    "thousands of files": (request(part(b"") * 4_000 + END), 413, "may contain at most 4 pictures"),
    "one file too many": (request(part(PNG) * 5 + END), 413, "may contain at most 4 pictures"),
    "thousands of texts": (request(part(b"", 'name="a"') * 4_000 + END), 400, "fields"),
    "a large body": (request(part(bytes(400_001)) + END), 413, "400,000 bytes"),
    "a larger body than is sent": (
        request(b"").replace(b"Length: 0", b"Length: 99999999999"), 413, "400,000 bytes"
    ),
    "a large body in chunks": (
        request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
        + b"10000\r\n" + part(bytes(0x10000))[:0x10000] + b"\r\n"
        + (b"10000\r\n" + bytes(0x10000) + b"\r\n") * 10 + b"0\r\n\r\n",
        413, "400,000 bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status", "words"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_forms_are_refused_with_a_reason(
    server: Server, sent: bytes, status: int, words: str
) -> None:
    answered, answer = raw(server, sent)
    assert (answered, words in answer["error"]) == (status, True), answer
    assert_well(server)


GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
NO_HTTP = {
    "TLS": (b"\x16\x03\x01\0\0", 400),
    "no target": (b"GET\r\n\r\n", 400),
    "one line over and over": (b"GET / HTTP/1.1\r\n" * 9 + b"\r\n", 400),
    "a tunnel": (b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "two lengths": (GET + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "an absurd length": (GET + b"Content-Length: " + b"9" * 50 + b"\r\n\r\n", 400),
    "length and chunks": (GET + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "a header for ever": (GET + b"A: " + b"x" * 200_000, 431),
    "thousands of headers": (GET + b"A: b\r\n" * 5_000 + b"\r\n", 400),
    "no chunks": (
        request(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked") + b"nonsense\r\n",
        400,
    ),
}


@pytest.mark.parametrize(("sent", "status"), NO_HTTP.values(), ids=NO_HTTP)
def test_invalid_http_is_answered_logged_and_counted(
    server: Server, sent: bytes, status: int
) -> None:
    refused = "sprat_refusals_total", "http"
    before = metrics(server).get(refused, 0)
    answered, answer = raw(server, sent)
    assert (answered, "error" in answer) == (status, True)
    assert metrics(server)[refused] == before + 1
    wait_until(
        lambda: any((line["status"], line["method"]) == (status, "") for line in server.log())
    )
    assert_well(server)


def test_requests_before_invalid_http_are_answered(server: Server) -> None:
    status, answer = raw(server, request(part(CAT) + END) + b"nonsense\r\n\r\n")
    assert (status, len(answer["pictures"])) == (200, 1)


def test_half_closed_client_gets_its_answer(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(request(part(CAT) + END))
        connection.shutdown(socket.SHUT_WR)
        assert answer_on(connection)[0] == 200


FOREIGN = "Host: evil.example"
BROWSER = f"Host: localhost\r\nContent-Length: {len(part(CAT) + END)}\r\n"
BROWSER += "Content-Type: multipart/form-data; boundary=XX"


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", FOREIGN, 400),
        ("GET", "/predict/", FOREIGN, 400),
        ("GET", "/", "Host: localhost\r\nHost: evil.example", 400),
        ("GET", "/", "Host: evil.example@localhost", 400),
        ("GET", "/", "Host: localhost.evil.example", 400),
        ("GET", "/", "A: b", 400),
        ("GET", "http://evil.example/", FOREIGN, 400),
        ("GET", "/healthz", FOREIGN, 200),
        ("GET", "/openapi.json", "Host: [::1]:80", 200),
        ("GET", "/openapi.json", "Host: LOCALHOST:1", 200),
        ("GET", "/predict/", "Host: localhost", 404),
        ("GET", "//evil.example/..", "Host: localhost", 404),
        ("POST", "/predict", f"{BROWSER}\r\nOrigin: http://evil.example", 403),
        ("POST", "/predict", f"{BROWSER}\r\nOrigin: null", 403),
        ("POST", "/predict", f"{BROWSER}\r\nOrigin: http://localhost:1", 403),
        ("POST", "/predict", f"{BROWSER}\r\nSec-Fetch-Site: cross-site", 403),
        ("POST", "/predict", f"{BROWSER}\r\nSec-Fetch-Site: same-site", 403),
        ("POST", "/predict", f"{BROWSER}\r\nOrigin: http://localhost", 200),
        ("POST", "/predict", f"{BROWSER}\r\nSec-Fetch-Site: same-origin", 200),
    ],
)
def test_foreign_hosts_and_origins_are_refused(
    server: Server, method: str, path: str, headers: str, status: int
) -> None:
    body = part(CAT) + END if method == "POST" else b""
    answered, answer = raw(server, f"{method} {path} HTTP/1.1\r\n{headers}\r\n\r\n".encode() + body)
    assert (answered, "evil" in str(answer)) == (status, False)


class Quiet(Log):
    def __init__(self) -> None:
        pass

    def write(self, line: str) -> None:
        pass


class TestGuard:
    def test_place_is_free_once_the_answer_is_ready(self) -> None:
        """Check that the next request is answered, although the first client never reads."""

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def ask_both() -> list[int]:
            guard = Guard(answer, Limits(max_requests=1), Metrics(), Quiet(), None)
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}
            statuses: list[int] = []
            never = asyncio.Event()

            async def send(message: Any) -> None:
                statuses.append(message.get("status"))
                await never.wait()

            asks = [
                asyncio.create_task(guard({**scope, "client": (name, 1)}, never.wait, send))
                for name in ("10.0.0.1", "10.0.0.2")
            ]
            while len(statuses) < 2:
                await asyncio.sleep(0)
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks)
            return statuses

        assert asyncio.run(ask_both()) == [200, 200]

    def test_request_without_its_body_gives_up_its_place(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Check that a request whose body does come gets the place, but not too early."""

        async def answer(scope: Any, receive: Any, send: Any) -> None:
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        async def ask(guard: Guard, body: asyncio.Event) -> int:
            statuses: list[int] = []

            async def receive() -> dict[str, Any]:
                await body.wait()
                return {"type": "http.request", "body": b"x", "more_body": False}

            async def send(message: Any) -> None:
                statuses.append(message.get("status"))
                body.set()  # so that what is sent after the answer can be discarded

            headers = [(b"content-length", b"1")]
            scope = {"type": "http", "method": "POST", "path": "/predict", "headers": headers}
            await guard({**scope, "client": ("10.0.0.1", 1)}, receive, send)
            return statuses[0]

        async def ask_all() -> list[int]:
            guard = Guard(answer, Limits(max_requests=2), Metrics(), Quiet(), None)
            slow = [asyncio.create_task(ask(guard, asyncio.Event())) for _ in range(2)]
            await asyncio.sleep(0)
            whole = asyncio.Event()
            whole.set()
            early = await ask(guard, whole)
            monkeypatch.setattr("sprat.serve.guard.PATIENCE", 0.0)
            late = await ask(guard, whole)
            first = await slow[0]  # the one that waited longest
            assert not slow[1].done()
            await ask(guard, whole)  # a place is free, so nobody gives up another
            assert not slow[1].done()
            slow[1].cancel()
            return [early, late, first]

        assert asyncio.run(ask_all()) == [503, 200, 408]


class TestLog:
    def test_unread_pipe_drops_lines_and_reports_it_later(self) -> None:
        reading, writing = os.pipe()
        dropped: list[int] = []
        log = Log(writing, dropped.append)
        for _ in range(MOST_WAITING + 2_000):
            log.write("x" * 100)
        wait_until(lambda: sum(dropped) > 0)
        log.close(seconds=0.01)  # without waiting for the reader
        log.write("last")
        os.set_blocking(reading, False)
        text = b""

        def has_reported() -> bool:
            nonlocal text
            with contextlib.suppress(BlockingIOError):
                text += os.read(reading, 1 << 20)
            return b'"dropped"' in text

        wait_until(has_reported)
        *lines, _ = text.splitlines()
        reported = [json.loads(line)["dropped"] for line in lines if line.startswith(b"{")]
        assert sum(reported) <= sum(dropped)
        assert set(lines) - {b"x" * 100} == {line for line in lines if line.startswith(b"{")}

    def test_full_disk_loses_only_lines(self) -> None:
        dropped: list[int] = []
        with open("/dev/full", "wb") as full:  # noqa: PTH123
            log = Log(full.fileno(), dropped.append)
            for _ in range(5):
                log.write("x")
            log.close(seconds=60)
        assert sum(dropped) == 5


class TestDecoders:
    def test_next_picture_is_decoded_after_a_timeout(self) -> None:
        prepare()
        process = _Process(32, Limits(decode_seconds=60))
        picture = encoded(NOISE, "WEBP")
        seen = to_pixels(Image.open(io.BytesIO(picture)), 32)[0]
        assert torch.equal(process.decode(picture), seen)
        process._limits = Limits(decode_seconds=1e-6)
        with pytest.raises(Refused, match="more than 1e-06 seconds"):
            process.decode(encoded(NOISE.resize((2_000, 2_000)), "WEBP"))
        process._limits = Limits(decode_seconds=60)
        assert torch.equal(process.decode(picture), seen)
        process.close()

    def test_clients_take_turns(self) -> None:
        served: list[str] = []

        async def wait_in_turn() -> None:
            decoders = Decoders(32, Limits(decoders=1))

            async def take(client: str, size: int) -> None:
                async with decoders._turn(client, size):
                    served.append(f"{client}{size}")
                    await asyncio.sleep(0)

            await asyncio.gather(*map(take, "aaaaabbc", (9, 8, 7, 6, 5, 1, 1, 1)))
            decoders.close()

        asyncio.run(wait_in_turn())
        assert " ".join(served) == "a9 b1 c1 a5 b1 a6 a7 a8"


def test_nan_probabilities_and_memory_errors_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    class Nonsense:
        def __init__(self, *options: Any) -> None:
            pass

        def submit(self, pixels: torch.Tensor) -> asyncio.Future[list[float]]:
            answer = asyncio.get_running_loop().create_future()
            if pixels.max() == 255:
                answer.set_exception(MemoryError())
            else:
                answer.set_result([math.nan] * 10)
            return answer

        def waiting(self) -> int:
            return 0

    async def ask() -> list[httpx.Response]:
        place = best()
        monkeypatch.setattr("sprat.serve.app.Batcher", Nonsense)
        app = make_app(load_model(place), place, Limits(), Metrics(), "cpu")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            pictures = [
                png(torch.full((3, 32, 32), value, dtype=torch.uint8)) for value in (9, 255)
            ]
            return [
                *[await client.post("/predict", files={"images": each}) for each in pictures],
                await client.get("/healthz"),
            ]

    answers = asyncio.run(ask())
    assert [answer.status_code for answer in answers] == [422, 503, 503]
    assert "no probabilities" in answers[0].json()["error"]


def test_page_of_a_shapes_model_offers_shape_samples(small_run: Path) -> None:
    async def ask() -> tuple[str, httpx.Response]:
        app = make_app(load_model(small_run), small_run, Limits(), Metrics(), "cpu")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            ring = (await client.get("/samples/ring.png")).content
            page = (await client.get("/")).text
            return page, await client.post("/predict?top=10", files={"images": ring})

    page, answer = asyncio.run(ask())
    assert page.count("data-sample=") == 10
    assert "images of shapes10 (val)" in page
    assert len(answer.json()["pictures"][0]["predictions"]) == 10


def test_disconnected_client_is_logged(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(request(part(PNG) + END)[:-200])
    assert_well(server)
    wait_until(lambda: any(line["status"] == 499 for line in server.log()))


def test_a_body_in_small_pieces_is_read(server: Server) -> None:
    sent = request(part(CAT) + END)
    status, answer = raw(server, *(sent[at : at + 500] for at in range(0, len(sent), 500)))
    assert status == 200
    assert answer["pictures"][0]["predictions"][0]["class"] == "cat"


def test_slow_bodies_and_headers_time_out(server: Server) -> None:
    with (
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as silent,
        socket.create_connection(("127.0.0.1", server.port), timeout=60) as dripping,
    ):
        dripping.sendall(b"GET / HTTP/1.1\r\nHost:")
        status, answer = raw(server, request(part(PNG) + END)[:-20])
        assert (status, "within 5 seconds" in answer["error"]) == (408, True)
        assert silent.recv(10) == b""
        assert dripping.recv(10) == b""
    assert_well(server)


def test_excess_requests_are_refused_and_others_answered(server: Server) -> None:
    def begun(client: str) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
        connection.sendall(request(whole, extra=f"X-Forwarded-For: {client}\r\n")[:-30])
        return connection

    whole = part(CAT) + END
    places = [begun("10.0.0.1") for _ in range(4)]
    wait_until(lambda: in_progress(server) == 4)
    status, answer = raw(server, request(whole, extra="X-Forwarded-For: 10.0.0.1\r\n"))
    assert (status, "4 requests from your address" in answer["error"]) == (429, True)
    places += [begun("10.0.0.2") for _ in range(2)]
    wait_until(lambda: in_progress(server) == 6)
    away = server.client.post("/predict", files={"images": CAT})
    assert (away.status_code, away.headers["Retry-After"]) == (503, "1")
    assert "busy" in away.json()["error"]
    assert server.client.get("/healthz").status_code == 200
    for connection in places:
        connection.sendall(request(whole)[-30:])
        assert answer_on(connection)[0] == 200
        connection.close()
    assert_well(server)
    wait_until(lambda: {"10.0.0.1", "10.0.0.2"} <= {line["client"] for line in server.log()})


def test_each_file_of_a_request_gets_its_own_answer(server: Server) -> None:
    answer = post(server, ("a", CAT), ("b", b"no picture"), ("c", CAT), top=2)
    assert answer.status_code == 200
    first, second, third = answer.json()["pictures"]
    assert [p["class"] for p in first["predictions"]] == [p["class"] for p in third["predictions"]]
    assert len(first["predictions"]) == 2
    assert "seen" not in first
    assert (second["name"], "predictions" in second) == ("b", False)
    assert "not a picture" in second["error"]
    assert answer.json()["model"] == sprat.zoo.cards()[0]["name"]
    assert post(server, ("a", b""), ("b", b"x")).status_code == 422
    assert post(server, ("a", b"y"), ("b", b"x")).status_code == 415


def test_top_above_number_of_classes_returns_all(server: Server) -> None:
    (picture,) = post(server, ("a", CAT), top=10**9).json()["pictures"]
    shares = [prediction["probability"] for prediction in picture["predictions"]]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1, abs=1e-5)


ODD_NAMES = ["../../etc/passwd", "ünïcode 猫.png", "a" * 900, "<b>.png", "%00.png", "", "nul\t.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_unusual_file_names_are_returned_but_not_logged(server: Server, name: str) -> None:
    header = f'name="images"; filename="{name}"'
    status, answer = raw(server, request(part(CAT, header) + END))
    assert status == 200
    assert answer["pictures"][0]["name"] == name
    if name:
        assert name not in (server.folder / "out").read_text()


def test_invalid_unicode_in_a_name_is_replaced(server: Server) -> None:
    form = "multipart/form-data; boundary=XX; charset=raw_unicode_escape"
    body = part(CAT, r'name="images"; filename="\ud800.png"') + END
    status, answer = raw(server, request(body, form))
    assert (status, answer["pictures"][0]["name"]) == (200, "?.png")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404), ("GET", "/page/page.css", 404), ("GET", "/../cli.py", 404),
        ("GET", "/samples/..%2fpage.js", 404), ("GET", "/predict", 405), ("DELETE", "/", 405),
        ("POST", "/predict?top=0", 422), ("POST", "/predict?top=x", 422),
        ("POST", "/predict?seen=maybe", 422),
    ],
)  # fmt: skip
def test_invalid_requests_are_refused_with_a_reason(
    server: Server, method: str, path: str, status: int
) -> None:
    answered, answer = raw(server, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert answered == status
    assert answer["error"]


def test_every_answer_has_security_headers(server: Server) -> None:
    for path in ("/", "/docs", "/page.js", "/nothing", "/openapi.json", "/samples/cat.png"):
        headers = server.client.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'self'; img-src 'self' blob: data:;")
        assert "frame-ancestors 'none'" in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert "server" not in headers


def test_pages_load_nothing_from_other_hosts(server: Server) -> None:
    for path in ("/", "/docs", "/page.js", "/page.css"):
        text = server.client.get(path).text
        assert "https://" not in text
        assert "//cdn" not in text
    docs = server.client.get("/docs").text
    assert all(word in docs for word in ("POST /predict", "GET /healthz", "429", "milliseconds"))


def test_page_shows_the_model_card(server: Server) -> None:
    page = server.client.get("/").text
    card = sprat.zoo.cards()[0]
    assert all(word in page for word in (card["name"], f"{card['parameters']:,}", "10,000 images"))
    low, high = card["test"]["top1_ci95"]
    assert f"{100 * card['test']['top1']:.2f} %" in page
    assert f"{100 * low:.2f} to {100 * high:.2f} %" in page


def test_metrics_count_requests_and_refusals(server: Server) -> None:
    before = metrics(server)
    post(server, ("a", CAT), ("b", b"no picture"))
    server.client.get("/some/path")
    after = metrics(server)

    def more(*key: str) -> float:
        return after[key] - before.get(key, 0)

    assert more("sprat_requests_total", "POST", "/predict", "200") == 1
    assert more("sprat_requests_total", "GET", "other", "404") == 1
    assert more("sprat_request_seconds_count", "/predict") == 1
    assert more("sprat_batch_pictures_sum") == 1
    assert more("sprat_refusals_total", "no picture") == 1
    assert after["sprat_requests_in_flight",] == 0
    assert after["sprat_queue_pictures",] == 0
    if sys.platform == "linux":
        assert after["process_resident_memory_bytes",] > 1e7


def test_concurrent_clients_are_answered_correctly(server: Server) -> None:
    samples = draw_samples(["airplane", "automobile", "cat", "frog"])

    def ask(turn: int) -> tuple[str, str]:
        name = list(samples)[turn % 4]
        answer = post(server, ("x", png(samples[name]))).json()
        return name, answer["pictures"][0]["predictions"][0]["class"]

    with ThreadPoolExecutor(4) as pool:
        assert all(name == found for name, found in pool.map(ask, range(24)))


schemathesis.openapi.format("binary", st.sampled_from([CAT, JPEG, PNG]))
REFUSED = [400, 405, 406, 413, 415, 422]  # by default, 413 (too many files) is not one of them
CONFIG = schemathesis.Config.from_dict(
    {"checks": {"negative_data_rejection": {"expected-statuses": REFUSED}}}
)


@pytest.mark.parametrize(
    ("method", "path", "mode"),
    [
        ("POST", "/predict", GenerationMode.POSITIVE),
        ("POST", "/predict", GenerationMode.NEGATIVE),
        ("GET", "/healthz", GenerationMode.POSITIVE),
        ("GET", "/metrics", GenerationMode.POSITIVE),
    ],
)
def test_server_conforms_to_its_openapi_description(
    server: Server, method: str, path: str, mode: GenerationMode
) -> None:
    description = schemathesis.openapi.from_url(f"{server.url}/openapi.json", config=CONFIG)
    operation = description[path][method]

    @settings(max_examples=20, derandomize=True, deadline=None)
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: schemathesis.Case) -> None:
        case.call_and_validate()

    holds()


def test_evidence_is_returned_on_request(server: Server, classifier: sprat.Classifier) -> None:
    answer = post(server, ("a", CAT), ("b", b"no picture"), ("c", CAT), where="true").json()
    first, bad, last = answer["pictures"]
    pixels = decode(CAT, 32, Limits())
    (expected,) = classifier.explain(pixels)
    assert first.keys() == {"name", "predictions", "where", "map"}
    assert (first["where"], last["where"]) == (expected.where, expected.where)
    assert first["map"] == last["map"] == data_uri(overlay(pixels, expected.map))
    assert bad.keys() == {"name", "error"}
    for options in ({}, {"where": "false"}):
        assert post(server, ("a", CAT), **options).json()["pictures"][0].keys() == {
            "name", "predictions",
        }  # fmt: skip
    refused = post(server, ("a", CAT), where="yes")
    assert refused.status_code == 422
    assert refused.json() == {"error": "where is 'yes', expected true or false. Give one of these."}


def test_unexplainable_model_refuses_only_where_requests() -> None:
    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(3, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.linear(images.mean((2, 3)))

    async def ask() -> list[httpx.Response]:
        values = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        model = Model(Flat(), "Flat", ("dark", "light"), values, 32, {})
        app = make_app(model, Path("nowhere.safetensors"), Limits(), Metrics(), "cpu")
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            files = {"images": CAT}
            return [
                await client.post("/predict", files=files, params={"where": "true"}),
                await client.post("/predict", files=files),
                await client.get("/"),
            ]

    refused, answered, page = asyncio.run(ask())
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert "Flat does not end in a mean over the map and one linear layer" in error
    assert answered.status_code == 200
    assert "Show where" not in page.text


class TestBatcher:
    """Tests with a slow classifier that records the size of each batch."""

    @pytest.fixture
    def asked(self) -> list[int]:
        return []

    @pytest.fixture
    def may_go(self) -> Event:
        return Event()

    @pytest.fixture
    def batcher(self, asked: list[int], may_go: Event) -> Iterator[Batcher]:
        class Slow:
            def __call__(self, pixels: torch.Tensor) -> Any:
                asked.append(len(pixels))
                may_go.wait()
                if pixels.max() == 255:
                    raise RuntimeError("out of memory")
                return SimpleNamespace(probabilities=pixels[:, :1, 0, 0].float())

        batcher = Batcher(Slow(), most=3)  # type: ignore[arg-type]
        yield batcher
        may_go.set()
        batcher.close()

    def ask(self, batcher: Batcher, *values: int) -> list[asyncio.Future[list[float]]]:
        return [batcher.submit(torch.full((3, 2, 2), value, dtype=torch.uint8)) for value in values]

    def busy(self, batcher: Batcher, asked: list[int]) -> list[asyncio.Future[list[float]]]:
        first = self.ask(batcher, 0)
        wait_until(lambda: asked == [1])
        return first

    def test_waiting_pictures_are_batched(
        self, batcher: Batcher, asked: list[int], may_go: Event
    ) -> None:
        async def answers() -> list[list[float]]:
            waited_for = [*self.busy(batcher, asked), *self.ask(batcher, 1, 2, 3, 4)]
            assert batcher.waiting() == 4
            may_go.set()
            return await asyncio.gather(*waited_for)

        assert asyncio.run(answers()) == [[0], [1], [2], [3], [4]]
        assert asked == [1, 3, 1]

    def test_error_is_reported_and_next_is_answered(self, batcher: Batcher, may_go: Event) -> None:
        async def last() -> list[float]:
            (failing,) = self.ask(batcher, 255)
            with pytest.raises(RuntimeError, match="out of memory"):
                await failing
            return await self.ask(batcher, 7)[0]

        may_go.set()
        assert asyncio.run(last()) == [7]

    def test_error_affects_only_its_picture(
        self, batcher: Batcher, asked: list[int], may_go: Event
    ) -> None:
        async def answers() -> list[list[float]]:
            self.busy(batcher, asked)
            good, failing, also_good = self.ask(batcher, 1, 255, 2)
            may_go.set()
            with pytest.raises(RuntimeError, match="out of memory"):
                await failing
            return await asyncio.gather(good, also_good)

        assert asyncio.run(answers()) == [[1], [2]]
        assert asked == [1, 3, 1, 1, 1]

    def test_cancelled_pictures_are_skipped(
        self, batcher: Batcher, asked: list[int], may_go: Event
    ) -> None:
        async def last() -> list[float]:
            self.busy(batcher, asked)
            assert self.ask(batcher, 1)[0].cancel()
            may_go.set()
            return await self.ask(batcher, 2)[0]

        assert asyncio.run(last()) == [2]
        assert asked == [1, 1]

    def test_next_is_answered_after_cancellation_in_progress(
        self, batcher: Batcher, asked: list[int], may_go: Event
    ) -> None:
        async def last() -> list[float]:
            assert self.busy(batcher, asked)[0].cancel()
            following = self.ask(batcher, 3)[0]
            may_go.set()
            return await following

        assert asyncio.run(last()) == [3]

    def test_closing_answers_waiting_pictures(
        self, batcher: Batcher, asked: list[int], may_go: Event
    ) -> None:
        async def last() -> list[float]:
            self.busy(batcher, asked)
            (last,) = self.ask(batcher, 5)
            may_go.set()
            batcher.close()
            return await last

        assert asyncio.run(last()) == [5]


class TestSamples:
    def test_best_model_classifies_each_correctly(self, classifier: sprat.Classifier) -> None:
        samples = draw_samples(classifier.classes)
        assert len(samples) > 4
        assert [classifier(pixels).labels for pixels in samples.values()] == [[n] for n in samples]

    def test_are_small(self, classifier: sprat.Classifier) -> None:
        assert sum(len(png(p)) for p in draw_samples(classifier.classes).values()) <= 100_000

    def test_are_shapes_for_shapes_and_none_for_other_classes(self) -> None:
        drawn = draw_samples(shapes10.CLASSES)
        assert drawn.keys() == set(shapes10.CLASSES)
        assert all(pixels.shape == (3, 32, 32) for pixels in drawn.values())
        assert draw_samples(["rose", "daisy"]) == {}


def test_connections_set_tcp_nodelay() -> None:
    from sprat.serve.server import listen

    with (
        listen("127.0.0.1", 0, backlog=1) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


class TestFailedStart:
    def test_port_in_use_is_reported(self, here: Here) -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            done = here("serve", "--port", port)
        assert done.returncode == 2
        assert f"127.0.0.1 port {port}: Address already in use. Give another --port" in done.stderr

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["OptimizedCIFAR10Net"], "did you mean 'OptimizedCIFAR10Net200K'"),
            (["--port", "70000"], "--port is 70000, expected"),
            (["--host", "256.1.1.1"], "cannot listen on 256.1.1.1"),
            (["--max-body", "0"], "max_body is 0, expected a number above 0"),
            (["--max-pixels", "99999999"], "at most 89,478,485"),
            (["--host", "0.0.0.0"], "for example --allowed-hosts example.org"),
            (["--allowed-hosts", "http://x"], "--allowed-hosts has 'http://x'"),
            (["--allowed-hosts", "*.example.org"], "--allowed-hosts has '*.example.org'"),
            (["--trusted-proxies", "*"], "--trusted-proxies has '*'"),
            (["--trusted-proxies", "10.0.0.2,0.0.0.0/0"], "--trusted-proxies has '0.0.0.0/0'"),
            (["--trusted-proxies", "proxy"], "--trusted-proxies has 'proxy'"),
        ],
    )
    def test_invalid_options_are_refused(self, here: Here, words: list[str], message: str) -> None:
        done = here("serve", *(words if "--port" in words else ["--port", "0", *words]))
        assert done.returncode == 2
        assert message in done.stderr

    def test_missing_extra_is_reported(self, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "httptools", None)
        done = here("serve")
        assert done.returncode == 2
        assert "pip install 'sprat[serve]'" in done.stderr


def test_limits_are_checked_from_python_too() -> None:
    assert Limits(max_body=1).max_body == 1
    with pytest.raises(sprat.SpratError, match="decoders is -1"):
        Limits(decoders=-1)
    with pytest.raises(sprat.SpratError, match="body_seconds is nan"):
        Limits(body_seconds=float("nan"))


def test_the_documentation_names_each_limit_with_its_default() -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "how-to" / "serve.md").read_text()
    for name, value in dataclasses.asdict(Limits()).items():
        assert f"| `--{name.replace('_', '-')}` | {value:,.0f} " in documentation


def listens(server: Server) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_requests_in_progress_are_answered_after_sigterm(server: Server) -> None:
    """Stop the server that all tests of this file use, so this test must be the last."""
    whole = request(part(CAT) + END)
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        connection.sendall(whole[:-30])
        wait_until(lambda: in_progress(server) == 1)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not listens(server))
        connection.sendall(whole[-30:])
        assert answer_on(connection)[0] == 200
    assert server.process.wait() == 0
    keys = {"time", "method", "path", "status", "ms", "bytes_in", "bytes_out", "client"}
    lines = server.log()
    assert lines
    assert all(line.keys() == keys | {"request_id"} for line in lines)
    assert "Traceback" not in (server.folder / "err").read_text()
