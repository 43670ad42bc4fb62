"""What every request passes before the application: limits, headers, the log and the counts."""

import asyncio
import contextlib
import json
import logging
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sprat.serve.limits import Limits
from sprat.serve.metrics import Metrics
from sprat.serve.refusals import Refused

ACCESS_LOG = logging.getLogger("sprat.serve.access")
LIMITED_PATH = "/predict"  # all others cost next to nothing, and must answer when it is busy
LINGER = 2.0  # seconds
RETRY_AFTER = {"Retry-After": "1"}  # seconds
CLIENT_LEFT = 499  # what web servers log for one that did not wait
PROTECTION = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; "
    "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Guard:
    """Wraps an ASGI application, whose bodies it bounds in bytes and time as they come."""

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self._app, self._limits, self._metrics = app, limits, metrics
        self._under_way: Counter[str] = Counter()  # predictions, by the client's address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            if scope["path"] == LIMITED_PATH:
                with self._place_for(exchange.client):
                    await self._app(scope, exchange.receive, exchange.send)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except Refused as refused:  # no place; the application answers its own
            self._metrics.refused(refused.reason)
            await refused.response()(scope, exchange.receive, exchange.send)
        finally:
            ACCESS_LOG.info(json.dumps(exchange.to_dict()))
            self._metrics.answered(
                scope["method"], scope["path"], exchange.status, exchange.seconds()
            )

    @contextlib.contextmanager
    def _place_for(self, client: str) -> Iterator[None]:
        if self._under_way.total() >= self._limits.max_requests:
            raise Refused(503, "busy", "the server is busy; ask again in a second", RETRY_AFTER)
        if self._under_way[client] >= self._limits.max_requests_per_client:
            words = f"{self._under_way[client]} requests of yours are under way; wait for an answer"
            raise Refused(429, "client", words, RETRY_AFTER)
        self._under_way[client] += 1
        try:
            with self._metrics.in_flight.track_inprogress():
                yield
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]


class _Exchange:
    """A request and its answer, counted as they pass."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: Limits) -> None:
        self._scope, self._receive, self._send, self._limits = scope, receive, send, limits
        self.client = scope["client"][0] if scope["client"] else ""
        self.status = CLIENT_LEFT  # until an answer begins
        self._id = secrets.token_hex(8)
        self._began = time.perf_counter()
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds
        self._bytes_in = self._bytes_out = 0
        headers = Headers(scope=scope)
        self._declared = int(headers.get("content-length", 0))  # h11 let only digits pass
        self._body_left = bool(self._declared) or "transfer-encoding" in headers

    def seconds(self) -> float:
        return time.perf_counter() - self._began

    def to_dict(self) -> dict[str, object]:
        """The line of the log; nothing in it comes from a picture or its name."""
        return {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "method": self._scope["method"][:20],
            "path": self._scope["path"][:200],
            "status": self.status,
            "ms": round(1000 * self.seconds(), 2),
            "bytes_in": self._bytes_in,
            "bytes_out": self._bytes_out,
            "client": self.client,
            "request_id": self._id,
        }

    async def receive(self) -> Message:
        """The next piece of the body.

        Raises:
            Refused: it is too large, or has not come in time.
        """
        if not self._body_left:
            return await self._receive()
        if self._declared > self._limits.max_body:
            raise self._too_large()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            seconds = self._limits.body_seconds
            words = f"the body did not come within {seconds:g} seconds; send a smaller picture"
            raise Refused(408, "slow", words) from error
        self._bytes_in += len(message.get("body", b""))
        if self._bytes_in > self._limits.max_body:
            raise self._too_large()
        self._body_left = message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Sends a piece of the answer on, with the headers that every answer has.

        Who is still sending would see the connection break and never the answer, were it closed
        at once; so the rest of a body is read for a while, and thrown away.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers.update(PROTECTION | {"X-Request-ID": self._id})
            if self._body_left:
                headers["Connection"] = "close"
            await self._send(message)
            return
        self._bytes_out += len(message.get("body", b""))
        if self._body_left and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER):
                    while (await self._receive()).get("more_body", False):
                        pass
            message = {"type": "http.response.body", "body": b""}
        await self._send(message)

    def _too_large(self) -> Refused:
        words = f"more than {self._limits.max_body:,} bytes; send fewer or smaller pictures"
        return Refused(413, "body", words)
