"""Refusals of requests: a message for the client, a status, and a reason for the metrics."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Refused(Exception):
    """A request, or one picture of it, that gets no prediction.

    Args:
        status: status of the response.
        reason: one or two words for the metrics, never from the client.
        message: problem and remedy, for the client.
        headers: additional headers of the response.
    """

    def __init__(
        self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.message}, self.status, self.headers)
