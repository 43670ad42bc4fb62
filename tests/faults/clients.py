"""Clients that send anything and never read, and pictures made to be slow. Meanwhile the server
must answer a good client, and SIGTERM must end it in time."""

import contextlib
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from serving import Server, serving

from faults import pictures
from faults.cases import Case, FailedError, Kind, naming
from faults.world import World

PATIENCE = 30.0  # seconds within which a good client must be accepted
ANSWER = 15.0  # seconds that the accepted request may take
END = 15.0  # seconds from SIGTERM to the exit: the server's 10, and a margin for a busy machine
MEMORY = 3 << 30  # bytes that the server and its child processes may use together
GOOD = "127.0.0.77"  # address of the good client; all of 127.0.0.0/8 is this machine


class Crowd(NamedTuple):
    """Connections that are opened and then left idle."""

    name: str
    addresses: int
    connections: int  # from each address
    sends: Callable[[bytes], bytes]  # given a complete prediction request


NOTHING = b""
PAGE = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
CROWDS = (
    Crowd("nothing sent", 1, 16, lambda request: NOTHING),
    Crowd("nothing sent", 4, 100, lambda request: NOTHING),
    Crowd("half a header", 4, 16, lambda request: request[:30]),
    Crowd("a header without its body", 1, 16, lambda request: request.partition(b"\r\n\r\n")[0]),
    Crowd("half a body", 4, 16, lambda request: request[: len(request) // 2]),
    Crowd("a request, unread", 1, 16, lambda request: request),
    Crowd("many requests, unread", 1, 16, lambda request: request * 30),
    Crowd("many requests, unread", 4, 16, lambda request: request * 30),
    Crowd("many requests, unread", 4, 64, lambda request: request * 10),
    Crowd("pages, unread", 4, 16, lambda request: PAGE * 500),
    Crowd("no HTTP", 4, 16, lambda request: b"\x16\x03\x01\x02\x00" + bytes(500)),
)


def silent(world: World) -> Kind:
    """Crowds of clients that never read; the largest take every place that a server has."""

    def attempt(case: Case) -> None:
        crowd = CROWDS[case.number]
        case.tried += crowd.addresses * crowd.connections
        with _server(crowd.name) as server, ExitStack() as stack:
            request = _request(server, world)
            for number in range(crowd.addresses * crowd.connections):
                address = f"127.0.1.{number % crowd.addresses + 1}"
                stack.enter_context(_connection(server, address, crowd.sends(request)))
            _answered(server, world)
            _ends(server)

    return Kind(lambda faults: len(CROWDS), attempt)


def slow_pictures(world: World) -> Kind:
    """Pictures that take long to decode, sent several at once, or read by `sprat predict`."""
    made = sorted(pictures.write_all(world.scratch / "slow").items())

    def attempt(case: Case) -> None:
        name, path = made[case.number // 2]
        case.tried += 1
        if case.number % 2:
            with naming(name), world.place("predict") as place:
                place.sprat("predict", "run", path).check(0, 2)
            return
        with _server(name) as server, ExitStack() as stack:
            for number in range(4):
                stack.enter_context(_sending(server, path, f"127.0.1.{number + 1}"))
            time.sleep(0.2)  # so that the slow ones come first
            for _ in range(3):
                _answered(server, world)
            taken = _memory(server.process.pid)
            if taken > MEMORY:
                raise FailedError("lost", f"the server used {taken:,} bytes of memory")
            _ends(server)

    return Kind(lambda faults: 2 * len(made), attempt)


@contextmanager
def _server(name: str) -> Iterator[Server]:
    """Run a server of the best shipped model; check its output and exit code at the end."""
    with naming(name), serving() as server:
        yield server
        said = "".join(
            (server.folder / file).read_text(errors="replace") for file in ("out", "err")
        )
        if "Traceback" in said:
            raise FailedError("tracebacks", said[-2000:])
        if server.process.returncode != 0:
            raise FailedError(
                "lost",
                f"the server ended with exit code {server.process.returncode}: {said[-2000:]}",
            )


def _request(server: Server, world: World) -> bytes:
    """Return a complete request with a long answer: what the network sees of 16 pictures."""
    picture = (world.pictures / "class-0" / "0.png").read_bytes()
    files = [("images", (f"{'x' * 200}{number}.png", picture)) for number in range(16)]
    url = f"{server.url}/predict?seen=true"
    built = httpx.Request("POST", url, files=files)
    head = f"POST /predict?seen=true HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\n"
    for key in ("Content-Length", "Content-Type"):
        head += f"{key}: {built.headers[key]}\r\n"
    return head.encode() + b"\r\n" + built.read()


@contextmanager
def _connection(server: Server, address: str, content: bytes) -> Iterator[None]:
    """Send as much of `content` as the server takes, then stay connected and read nothing."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind((address, 0))
        client.settimeout(5)
        with contextlib.suppress(OSError):  # it may be refused
            client.connect(("127.0.0.1", server.port))
        client.settimeout(0.05)
        with contextlib.suppress(OSError):
            client.sendall(content)
        yield


@contextmanager
def _sending(server: Server, path: Path, address: str) -> Iterator[None]:
    """Run a client in its own thread that sends a picture and waits for the answer."""

    def ask() -> None:
        with contextlib.suppress(httpx.HTTPError), _client(server, address) as client:
            client.post("/predict", files={"images": path.read_bytes()}, timeout=60)

    thread = threading.Thread(target=ask)
    thread.start()
    yield
    thread.join()


def _client(server: Server, address: str) -> httpx.Client:
    transport = httpx.HTTPTransport(local_address=address)
    return httpx.Client(base_url=server.url, transport=transport, trust_env=False)


def _answered(server: Server, world: World) -> None:
    """Raise FailedError unless a good client gets predictions for a picture in time."""
    picture = (world.pictures / "class-0" / "0.png").read_bytes()
    said: Any = "nothing"
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            with _client(server, GOOD) as client:
                answer = client.post("/predict", files={"images": picture}, timeout=PATIENCE)
        except httpx.HTTPError as error:
            said = repr(error)
        else:
            said = answer.text
            if answer.status_code == 200:
                if not answer.json()["pictures"][0].get("predictions"):
                    raise FailedError("silent", f"the answer contains no predictions: {said}")
                if (seconds := time.monotonic() - began) > ANSWER:
                    raise FailedError(
                        "lost", f"a good client waited {seconds:.1f} seconds for its answer"
                    )
                return
            if answer.status_code not in (429, 503):
                raise FailedError("lost", f"a good client got status {answer.status_code}: {said}")
        if server.process.poll() is not None:
            raise FailedError("lost", "the server ended before it answered a good client")
        time.sleep(0.2)
    raise FailedError(
        "lost", f"a good client got no predictions in {PATIENCE:g} seconds; last answer: {said}"
    )


def _ends(server: Server) -> None:
    """Raise FailedError unless SIGTERM ends the server in time."""
    server.process.send_signal(signal.SIGTERM)
    try:
        server.process.wait(END)
    except subprocess.TimeoutExpired as error:
        server.process.kill()
        raise FailedError(
            "lost", f"the server was still running {END:g} seconds after SIGTERM"
        ) from error


def _memory(pid: int) -> int:
    """Return the peak memory of a process and its children so far, in bytes."""
    total = 0
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{pid}/status").read_text()
        total = 1024 * int(status.partition("VmHWM:")[2].split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                total += _memory(int(child))
    return total
