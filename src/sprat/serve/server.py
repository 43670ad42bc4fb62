"""The server process: its socket, connections, signals and log."""

import asyncio
import ipaddress
import json
import logging
import math
import signal
import socket
import sys
import time
from collections import Counter
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from sprat.checkpoint import load_model
from sprat.errors import SpratError
from sprat.serve.app import make_app
from sprat.serve.decoding import prepare
from sprat.serve.guard import LINGER, PROTECTION, Guard, Record, household
from sprat.serve.limits import Connections, Limits, allow_connections, check_port
from sprat.serve.log import Handler, Log
from sprat.serve.metrics import Metrics
from sprat.serve.origins import Network, is_loopback, parse_hosts, parse_proxies
from sprat.zoo import best, locate

GRACE_SECONDS = 7  # after SIGTERM, for requests in progress; then connections are closed
MOST_HEADERS = 100
HEAD_BYTES = 1 << 16  # of a request's line and headers
MOST_PIPELINED = 16  # requests of one connection that wait for earlier responses
SEND_BUFFER = 1 << 16  # bytes of a connection's responses that the system buffers
REPORT_AGAIN = 60  # seconds


def run(
    model: str | None,
    host: str,
    port: int,
    limits: Limits,
    device: str = "auto",
    trusted_proxies: str = "",
    allowed_hosts: str = "",
) -> None:
    """Serve requests until SIGTERM or Ctrl-C, then finish those in progress.

    Write a line of JSON to stdout for each request, and the server's address to stderr.

    Args:
        model: a file, a run's folder or a shipped model's name; None: the most accurate shipped
            model.
        port: port to listen on; 0: a free one.
        trusted_proxies: addresses, separated by commas, whose X-Forwarded-For is trusted.
        allowed_hosts: host names, separated by commas, that requests may use besides loopback
            names; "*": any.

    Raises:
        SpratError: there is no such model, device or address, the port is taken, or `host` can be
            reached from other machines and no name is allowed.
    """
    hosts, proxies = parse_hosts(allowed_hosts), parse_proxies(trusted_proxies)
    connections = allow_connections(limits)
    with listen(host, port, connections.backlog) as listener:
        address = listener.getsockname()[0]
        if is_loopback(address):
            hosts = hosts and hosts | {host.lower(), address}
        elif not allowed_hosts.strip():
            raise SpratError(
                f"--host {host} accepts other machines, but no host name is allowed for their "
                "requests. List the names of this machine, for example --allowed-hosts "
                "example.org,192.0.2.7, or give --allowed-hosts '*'."
            )
        prepare()
        place = best() if model is None else locate(model)
        metrics = Metrics()
        log = Log(sys.stdout.fileno(), metrics.dropped.inc)
        errors = Log(sys.stderr.fileno(), metrics.dropped.inc)
        app = make_app(load_model(place), place, limits, metrics, device)
        logging.getLogger().addHandler(Handler(errors, logging.ERROR))
        server = _Server(
            uvicorn.Config(
                Guard(app, limits, metrics, log, hosts),
                loop="asyncio",
                http=_protocol(limits, connections, proxies, metrics, log),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=bool(proxies),
                forwarded_allow_ips=trusted_proxies,
                backlog=connections.backlog,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

        def stop(number: int, frame: FrameType | None) -> None:
            server.should_exit = True

        # uvicorn replaces the handlers while it runs, and raises the signal again at the end
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop)
        try:
            server.run([listener])
        finally:
            log.close(seconds=1)
            errors.close(seconds=1)


def listen(host: str, port: int, backlog: int) -> socket.socket:
    """Return a listening socket, whose connections wait until the model is ready."""
    check_port(port)
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.create_server(address, family=family, backlog=backlog)
        # inherited by connections: a response is several small writes, each of which would wait
        # 40 ms for the client to acknowledge the previous one
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # the system would buffer megabytes for a client that never reads, and hide that
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        return listener
    except OSError as error:
        why = str(error.strerror).partition(" (")[0]  # the rest repeats the address
        raise SpratError(
            f"sprat cannot listen on {host} port {port}: {why}. Give another --port (0: choose a "
            "free one) or --host."
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's server, which prints its address when it is ready and always shuts down."""

    _reported = -math.inf  # when a failure to accept was last reported

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._failed)
        await super().startup(sockets)
        assert sockets is not None
        host, port = sockets[0].getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"sprat: ready at http://{shown}:{port}/ (Ctrl-C ends)", file=sys.stderr, flush=True)
        if not is_loopback(host):
            print(
                "sprat: warning: every machine that can reach this one can use the server; there "
                "is no password.",
                file=sys.stderr,
                flush=True,
            )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(GRACE_SECONDS - 0.5, self._cut_connections)
        await super().shutdown(sockets)

    def _cut_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def _failed(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Handle a failure: at the limit of open files, asyncio would report every connection."""
        if "accept" not in context["message"]:
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._reported + REPORT_AGAIN:
            self._reported = time.monotonic()
            logging.getLogger(__name__).error(
                "no connection can be accepted: %s", context.get("exception")
            )


def _protocol(
    limits: Limits,
    connections: Connections,
    proxies: list[Network],
    metrics: Metrics,
    log: Log,
) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with limits for clients that are slow, numerous or not HTTP."""
    by_client: Counter[str] = Counter()  # connections
    per_client = limits.max_connections_per_client

    class Protocol(HttpToolsProtocol):
        head_timer: asyncio.TimerHandle | None = None  # while waiting for headers
        head_bytes = 0
        send_timer: asyncio.TimerHandle | None = None  # while a response waits to be read
        refused = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # pause_writing whenever anything waits
            self.peer = self.client[0] if self.client else ""
            self.household = household(self.peer)
            by_client[self.household] += 1
            metrics.connections.set(len(self.connections))
            if len(self.connections) > connections.most + connections.spare:
                transport.abort()
            elif len(self.connections) > connections.most:
                self.refuse(
                    503, "connections", "The server has too many open connections. Try again later."
                )
            elif by_client[self.household] > per_client and not self.is_proxy():
                self.refuse(
                    503,
                    "connections",
                    "There are too many open connections from your address. Close some.",
                )
            else:
                self.await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            for timer in (self.head_timer, self.send_timer):
                if timer is not None:
                    timer.cancel()
            by_client[self.household] -= 1
            if not by_client[self.household]:
                del by_client[self.household]
            metrics.connections.set(len(self.connections))

        def data_received(self, data: bytes) -> None:
            if self.refused:
                return
            super().data_received(data)
            if self.refused or not self.is_idle():
                return
            if self.head_timer is None:
                self.await_head()
            self.head_bytes += len(data)
            if self.head_bytes > HEAD_BYTES:
                self.refuse(431, "http", f"The headers have more than {HEAD_BYTES:,} bytes.")

        def on_headers_complete(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
                self.head_timer = None
            if len(self.headers) > MOST_HEADERS or len(self.pipeline) >= MOST_PIPELINED:
                raise ValueError  # the parser then gives up
            super().on_headers_complete()

        def eof_received(self) -> bool | None:  # type: ignore[override]
            """Keep open for a client that has stopped sending but may still read responses."""
            if self.refused or self.is_idle() or self.cycle.more_body:
                return None
            self.cycle.keep_alive = False
            return True

        def pause_writing(self) -> None:
            super().pause_writing()
            self.send_timer = self.loop.call_later(limits.send_seconds, self.cut_unread)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.send_timer is not None:
                self.send_timer.cancel()
                self.send_timer = None

        def send_400_response(self, msg: str) -> None:
            """Respond to data that is not HTTP."""
            if self.is_idle():
                self.refuse(400, "http", "The request is not valid HTTP.")
            elif self.cycle.more_body and not self.cycle.response_started:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
                self.refuse(400, "http", "The chunks of the body cannot be read.")
            else:  # earlier requests are answered
                self.refused = True
                self.cycle.keep_alive = False

        def is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def is_proxy(self) -> bool:
            return bool(self.peer) and any(
                ipaddress.ip_address(self.peer) in network for network in proxies
            )

        def await_head(self) -> None:
            self.head_bytes = 0
            self.head_timer = self.loop.call_later(limits.header_seconds, self.transport.close)

        def cut_unread(self) -> None:
            metrics.refused("unread")
            self.transport.abort()

        def refuse(self, status: int, reason: str, words: str) -> None:
            """Respond to what is not a valid request; close once the client has read that."""
            self.refused = True
            self._unset_keepalive_if_required()
            record = Record(self.peer)
            record.status = status
            body = json.dumps({"error": words}).encode()
            record.bytes_out = len(body)
            headers = [
                *self.server_state.default_headers,
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
                *PROTECTION,
                (b"x-request-id", record.id.encode()),
            ]
            lines = [STATUS_LINE[status], *(b"%b: %b\r\n" % header for header in headers), b"\r\n"]
            self.transport.write(b"".join([*lines, body]))
            if not self.transport.is_closing():
                self.transport.write_eof()
                self.loop.call_later(LINGER, self.transport.abort)
            metrics.refused(reason)
            record.write(log, metrics)

    return Protocol
