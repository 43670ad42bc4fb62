"""What one server takes on at most."""

import dataclasses
import math

from sprat.errors import SpratError

PILLOWS_MAX_PIXELS = 89_478_485  # above them Pillow warns by itself, above twice as many it refuses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Each is refused in words, with the status in brackets."""

    max_body: int = 16 << 20
    """Bytes of a request's body, declared or counted as they come (413)."""
    max_files: int = 16
    """Pictures in a request (413)."""
    max_pixels: int = 25_000_000
    """Pixels of a picture, by its header, before it is decoded (413)."""
    body_seconds: float = 30.0
    """Seconds in which a body must have come (408)."""
    header_seconds: float = 10.0
    """Seconds in which a request's headers must have come; else the connection is closed."""
    max_requests: int = 64
    """Requests for predictions that are under way at once (503)."""
    max_requests_per_client: int = 16
    """The same, of one client's address (429)."""
    max_batch: int = 64
    """Pictures that the network looks at together."""
    decoders: int = 2
    """Threads that decode pictures, each one at a time."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise SpratError(f"{name} is {value}, expected a number above 0")
        if self.max_pixels > PILLOWS_MAX_PIXELS:
            raise SpratError(
                f"max_pixels is {self.max_pixels:,}, expected at most {PILLOWS_MAX_PIXELS:,}, "
                "beyond which pictures are not safe to open"
            )


def check_port(port: int) -> None:
    """Check the number of a TCP port; 0 is any free one.

    Raises:
        SpratError: there is no such port.
    """
    if not 0 <= port <= 65535:
        raise SpratError(f"--port is {port}, expected 1 to 65535, or 0 for a free one")
