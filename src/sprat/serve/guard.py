"""Checks of every request before it reaches the application: limits and headers; log and
counters."""

import asyncio
import contextlib
import ipaddress
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sprat.serve.limits import Limits
from sprat.serve.log import Log, now
from sprat.serve.metrics import Metrics
from sprat.serve.origins import check_host, check_origin
from sprat.serve.refusals import Refused

LIMITED_PATH = "/predict"  # others are cheap, and must be answered when the server is busy
HEALTH_PATH = "/healthz"  # monitoring may use any host name
LINGER = 2.0  # seconds
PATIENCE = 5.0  # seconds; a slower body gives up its place if all are taken
RETRY_AFTER = {"Retry-After": "1"}  # seconds
CLIENT_LEFT = 499  # logged by web servers when the client has left
PROTECTION = [
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Record:
    """A request's record for log and counters; it contains nothing from pictures."""

    def __init__(self, client: str, method: str = "", path: str = "") -> None:
        self.client, self.method, self.path = client, method, path
        self.status = CLIENT_LEFT  # until a response begins
        self.bytes_in = self.bytes_out = 0
        self.id = secrets.token_hex(8)
        self._began = time.perf_counter()

    def write(self, log: Log, metrics: Metrics) -> None:
        """Write a line of JSON to the log, and update the counters."""
        seconds = time.perf_counter() - self._began
        line = {
            "time": now(),
            "method": self.method[:20],
            "path": self.path[:200],
            "status": self.status,
            "ms": round(1000 * seconds, 2),
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "client": self.client[:50],
            "request_id": self.id,
        }
        log.write(json.dumps(line))
        metrics.answered(self.method, self.path, self.status, seconds)


class Guard:
    """Wrapper of an ASGI application that limits request bodies in bytes and time.

    Args:
        hosts: host names that requests may use; None: any.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: Limits,
        metrics: Metrics,
        log: Log,
        hosts: frozenset[str] | None,
    ) -> None:
        self._app, self._limits, self._metrics, self._log = app, limits, metrics, log
        self._hosts = hosts
        self._in_progress: Counter[str] = Counter()  # predictions, by client
        self._holding: dict[_Exchange, None] = {}  # their exchanges, oldest first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            if scope["path"] != HEALTH_PATH:
                check_host(exchange.headers, self._hosts)
            check_origin(scope["method"], exchange.headers)
            if scope["path"] == LIMITED_PATH:
                exchange.leave = self._enter(exchange)
            await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:  # no place; the application handles its own refusals
            self._metrics.refused(refused.reason)
            await refused.response()(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # the server is shutting down and has closed the connection
            pass
        finally:
            exchange.leave()
            exchange.record.write(self._log, self._metrics)

    def _enter(self, exchange: "_Exchange") -> Callable[[], None]:
        """Take a place among the predictions in progress; return the function that frees it.

        If all are taken, a request whose body does not arrive gives up its place.
        """
        client = household(exchange.record.client)
        if (count := self._in_progress[client]) >= self._limits.max_requests_per_client:
            words = f"{count} requests from your address are in progress. Wait for a response."
            raise Refused(429, "client", words, RETRY_AFTER)
        full = len(self._holding) >= self._limits.max_requests
        if full and not any(other.give_up() for other in self._holding):
            raise Refused(503, "busy", "The server is busy. Try again in a second.", RETRY_AFTER)
        self._in_progress[client] += 1
        self._holding[exchange] = None
        self._metrics.in_flight.inc()

        def leave() -> None:
            del self._holding[exchange]
            self._metrics.in_flight.dec()
            self._in_progress[client] -= 1
            if not self._in_progress[client]:
                del self._in_progress[client]

        return leave


def household(client: str) -> str:
    """Return what counts as one client: an IPv4 address, or the /64 network of an IPv6 address."""
    if ":" not in client:
        return client
    try:
        return str(ipaddress.ip_network(f"{client.partition('%')[0]}/64", strict=False))
    except ValueError:
        return client


def _nothing() -> None:
    pass


class _Exchange:
    """A request and its response, whose bytes are counted."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._receive, self._send, self._limits = receive, send, limits
        client = scope["client"][0] if scope["client"] else ""
        self.record = Record(client, scope["method"], scope["path"])
        self.headers = Headers(scope=scope)
        self.leave: Callable[[], None] = _nothing  # frees the place once there is a response
        self._began = asyncio.get_running_loop().time()
        self._waiting: asyncio.Timeout | None = None  # for a chunk of the body
        self._gave_up = False
        self._declared = int(self.headers.get("content-length", 0))  # the parser checked the digits
        self._body_left = bool(self._declared) or "transfer-encoding" in self.headers

    async def receive(self) -> Message:
        """Return the next chunk of the body.

        Raises:
            Refused: the body is too large or has not arrived in time.
        """
        if not self._body_left:
            return await self._receive()
        if self._declared > self._limits.max_body:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._began + self._limits.body_seconds) as waiting:
                self._waiting = waiting
                message = await self._receive()
        except TimeoutError as error:
            if self._gave_up:
                words = f"The server is busy and the body took more than {PATIENCE:g} seconds"
                raise Refused(
                    408, "slow", f"{words}. Try again, or send a smaller picture."
                ) from error
            seconds = self._limits.body_seconds
            words = f"The body did not arrive within {seconds:g} seconds. Send a smaller picture."
            raise Refused(408, "slow", words) from error
        finally:
            self._waiting = None
        self.record.bytes_in += len(message.get("body", b""))
        if self.record.bytes_in > self._limits.max_body:
            raise self._too_large()
        self._body_left = message.get("more_body", False)
        return message

    def give_up(self) -> bool:
        """Stop waiting for a slow body; return whether there was one."""
        now = asyncio.get_running_loop().time()
        if self._waiting is None or self._gave_up or now < self._began + PATIENCE:
            return False
        self._gave_up = True
        self._waiting.reschedule(now)
        return True

    async def send(self, message: Message) -> None:
        """Send a chunk of the response, with the headers that every response has.

        If the connection were closed at once, a client that is still sending would see it break and
        never read the response; so the rest of the body is read for a while and discarded.
        """
        if message["type"] == "http.response.start":
            self.leave()
            self.leave = _nothing
            self.record.status = message["status"]
            headers = [
                *message["headers"], *PROTECTION, (b"x-request-id", self.record.id.encode())
            ]  # fmt: skip
            if self._body_left:
                headers.append((b"connection", b"close"))
            await self._send({**message, "headers": headers})
            return
        self.record.bytes_out += len(message.get("body", b""))
        if self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while (await self._receive()).get("more_body", False):
                        pass
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _too_large(self) -> Refused:
        words = (
            f"The body has more than {self._limits.max_body:,} bytes. Send fewer or smaller "
            "pictures."
        )
        return Refused(413, "body", words)
