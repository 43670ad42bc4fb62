"""Refusals to a client, in words, with a status and a reason that is counted."""

from collections.abc import Mapping

from starlette.responses import JSONResponse


class Refused(Exception):
    """A request, or one picture of it, that gets no prediction.

    Args:
        status: of the answer.
        reason: one word or two for the metrics, never from the client.
        message: what was expected and the remedy, for the client.
        headers: of the answer, besides.
    """

    def __init__(
        self, status: int, reason: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.message, self.headers = status, reason, message, headers

    def response(self) -> JSONResponse:
        return JSONResponse({"error": self.message}, self.status, self.headers)
