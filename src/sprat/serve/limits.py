"""Limits of a server."""

import dataclasses
import math
import sys

from sprat.errors import SpratError

PILLOWS_MAX_PIXELS = 89_478_485  # Pillow warns above this, and refuses above twice as many
BACKLOG = 128  # connections that the system holds until they are accepted
SPARE = 64  # connections above the limit, which get a response before they are closed
OWN_FILES = 40  # files that the server itself keeps open: sockets, pipes to its processes, its log


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits on requests; a request that exceeds one is refused with the status in brackets."""

    max_body: int = 16 << 20
    """Maximum bytes of a request's body, as declared or as received (413)."""
    max_files: int = 16
    """Maximum number of pictures in a request (413)."""
    max_pixels: int = 25_000_000
    """Maximum pixels of a picture, read from its header before it is decoded (413)."""
    max_side: int = 20_000
    """Maximum width and height of a picture in pixels, read from its header (413)."""
    decode_seconds: float = 5.0
    """Maximum seconds to decode a picture, after which its process is ended (422)."""
    decode_memory: int = 1_250_000_000
    """Maximum bytes of memory to decode a picture, if the system can limit it (413)."""
    body_seconds: float = 30.0
    """Maximum seconds to receive a body (408)."""
    header_seconds: float = 10.0
    """Maximum seconds to receive a request's headers before the connection is closed."""
    send_seconds: float = 10.0
    """Maximum seconds for a client to read its response before the connection is cut."""
    max_requests: int = 64
    """Maximum number of prediction requests in progress (503)."""
    max_requests_per_client: int = 16
    """Maximum number of prediction requests in progress from one address (429)."""
    max_connections: int = 1024
    """Maximum number of open connections, fewer if the system allows fewer open files (503)."""
    max_connections_per_client: int = 128
    """Maximum number of open connections from one address, unless it is a trusted proxy (503)."""
    max_batch: int = 64
    """Maximum number of pictures that the network classifies together."""
    decoders: int = 2
    """Number of processes that decode pictures."""

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            if not 0 < value < math.inf:
                raise SpratError(
                    f"{name} is {value}, expected a number above 0. Give another number."
                )
        if self.max_pixels > PILLOWS_MAX_PIXELS:
            raise SpratError(
                f"max_pixels is {self.max_pixels:,}, expected at most {PILLOWS_MAX_PIXELS:,}, "
                "because larger pictures are not safe to open. Lower it."
            )


def check_port(port: int) -> None:
    """Check the number of a TCP port; 0 stands for a free one.

    Raises:
        SpratError: it is not a port's number.
    """
    if not 0 <= port <= 65535:
        raise SpratError(
            f"--port is {port}, expected 1 to 65535, or 0 for a free port. Give another number."
        )


@dataclasses.dataclass(frozen=True)
class Connections:
    """Numbers of connections that this process can handle: most, spare above those, backlog."""

    most: int
    spare: int
    backlog: int


def allow_connections(limits: Limits) -> Connections:
    """Raise the limit of open files as far as needed and allowed, and divide the files.

    Raises:
        SpratError: the system allows too few open files for a server.
    """
    if sys.platform == "win32":
        return Connections(limits.max_connections, SPARE, BACKLOG)
    import resource

    # one for each connection and for each upload on disk (of 1 MiB or more)
    uploads = limits.max_requests * min(limits.max_files, limits.max_body >> 20)
    wanted = limits.max_connections + SPARE + BACKLOG + OWN_FILES + uploads
    files, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < wanted:
        files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    if files == resource.RLIM_INFINITY:
        files = wanted
    spare, backlog = min(SPARE, files // 16), min(BACKLOG, files // 8)
    most = files - OWN_FILES - spare - backlog
    if most < 8:
        raise SpratError(
            f"The system allows {files} open files, which is too few for a server. Allow at least "
            "256 with ulimit -n 256"
        )
    return Connections(min(most, limits.max_connections), spare, backlog)
