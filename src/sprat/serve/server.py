"""The process that serves: its socket, its signals, its log."""

import asyncio
import logging
import math
import signal
import socket
import sys
from types import FrameType

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sprat.checkpoint import load_model
from sprat.errors import SpratError
from sprat.serve.app import make_app
from sprat.serve.guard import ACCESS_LOG, LINGER
from sprat.serve.limits import Limits, check_port
from sprat.zoo import best, locate

ANSWER_SECONDS = 30  # for the pictures of the last requests, once their bodies have come


def run(
    model: str | None,
    host: str,
    port: int,
    limits: Limits,
    device: str = "auto",
    trusted_proxies: str = "",
) -> None:
    """Answers requests until SIGTERM or Ctrl-C, and then those that are under way.

    Writes a line of JSON to stdout for each request, and to stderr where it listens.

    Args:
        model: a file, a run's folder or a shipped model's name; None: the best that ships.
        port: 0 takes a free one.
        trusted_proxies: addresses, by commas, whose X-Forwarded-For is believed.

    Raises:
        SpratError: there is no such model, device or address, or the port is taken.
    """
    with listen(host, port) as listener:
        place = best() if model is None else locate(model)
        app = make_app(load_model(place), place, limits, device)
        ACCESS_LOG.addHandler(logging.StreamHandler(sys.stdout))
        ACCESS_LOG.setLevel(logging.INFO)
        ACCESS_LOG.propagate = False
        for of_clients_mistakes in ("uvicorn.error", "python_multipart"):
            logging.getLogger(of_clients_mistakes).setLevel(logging.ERROR)
        server = _Server(
            uvicorn.Config(
                app,
                http=_protocol(limits.header_seconds),
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(trusted_proxies),
                forwarded_allow_ips=trusted_proxies,
                timeout_graceful_shutdown=math.ceil(limits.body_seconds + LINGER) + ANSWER_SECONDS,
            )
        )

        def stop(number: int, frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn has its own while it runs, and raises the signal again at the end
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket whose connections wait until the model is there."""
    check_port(port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family)
        # an answer is several small writes, and connections inherit this: without it each waits
        # for the client to acknowledge the one before, 40 ms
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # what follows is the address again
        raise SpratError(
            f"cannot listen on {host} port {port}: {why}; give another --port (0: a free one) or "
            "--host"
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's, which says where it listens once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"sprat: ready at http://{shown}:{port}/ (Ctrl-C ends)", file=sys.stderr, flush=True)


def _protocol(header_seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, for connections whose headers must come in time."""

    class Protocol(H11Protocol):
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.timer = self.loop.call_later(header_seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            if self.timer is None and self._idle():
                self.timer = self.loop.call_later(header_seconds, self.transport.close)
            super().data_received(data)
            if self.timer is not None and not self._idle():
                self.timer.cancel()
                self.timer = None

        def _idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

    return Protocol
