"""Download of one file from whichever of several sources serves it fast and intact.

No server is trusted: the file counts only if its size and md5 are right.
"""

import contextlib
import hashlib
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from sprat.errors import SpratError
from sprat.files import lock

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
Log = Callable[[str], None]


@dataclass(frozen=True)
class Patience:
    """Limits after which one source is given up for another."""

    silence: float = 20.0  # seconds without data before a connection counts as lost
    slow: float = 200_000.0  # bytes/s below which another source is tried
    window: float = 10.0  # seconds over which the rate is measured
    connections: int = 10  # in a row to one source, as long as each brings new data


def fetch(
    urls: Sequence[str],
    target: Path,
    md5: str,
    size: int,
    progress: Progress = lambda done, total: None,
    log: Log = lambda text: None,
    patience: Patience = Patience(),
) -> Path:
    """Download a file of known md5 and size (bytes) to `target`, from the first source that is
    neither slow nor broken; if all are slow, from the fastest.

    The part downloaded so far is kept next to `target` under a name with the md5. It is resumed
    after a lost connection, from another source, and by the next call after a kill. `target`
    appears complete or not at all. If several processes fetch the same file, one downloads it and
    the others wait.

    Raises:
        SpratError: no source provided the file, or it cannot be written.
    """
    for url in urls:
        if urlsplit(url).scheme not in ("http", "https"):
            raise SpratError(
                f"{url} is not an address that sprat can download from. Give one that begins with "
                "http or https."
            )
    part = target.with_name(f"{target.name}.{md5[:8]}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is downloading {target}; waiting for it"
        with lock(target.with_name(f".{target.name}.lock"), lambda holder: log(waiting)):
            if target.is_file() and md5_of(target) == md5:  # another process has fetched it
                return target
            _Fetch(part, md5, size, progress, log, patience).fill([_Source(url) for url in urls])
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            part.replace(target)
    except OSError as error:  # of the disk; network errors are handled further down
        raise SpratError(
            f"{target} cannot be written: {error.strerror or error}. Free some space or check its "
            "permissions, then try again; what was downloaded so far is kept."
        ) from error
    return target


def md5_of(path: Path) -> str:
    """Return a file's md5 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@dataclass(eq=False)
class _Source:
    url: str
    rate: float = math.inf  # bytes/s at which it was given up as slow
    failure: str = ""


class _LostError(Exception):
    """The reason why a connection ended or brought nothing."""


@dataclass
class _Fetch:
    part: Path
    md5: str
    size: int
    progress: Progress
    log: Log
    patience: Patience

    def fill(self, sources: list[_Source]) -> None:
        """Try one source after another until `part` is the complete file."""
        giver = None  # source of everything in `part`; None if several, or an earlier call
        while not self._is_whole(giver):
            source = self._choose(sources)
            giver = source if giver is source or not self._have() else None
            others = [other for other in sources if other is not source and not other.failure]
            best = max((other.rate for other in others), default=0.0)
            again = source.rate < math.inf  # the others are slower, so stay with this one
            slow = 0.0 if again else min(best, self.patience.slow)
            self._take(source, _Meter(self.patience.window, slow))
            if others and self._have() < self.size:
                slowly = f"gives only {source.rate / 1000:,.0f} kB/s"
                self.log(f"{source.url}: {source.failure or slowly}")

    def _is_whole(self, giver: _Source | None) -> bool:
        """Return whether all bytes are there and correct; delete them if they are wrong."""
        if self._have() < self.size:
            return False
        found = md5_of(self.part)
        if found == self.md5:
            return True
        self.part.unlink()
        why = f"gave {self.size:,} bytes with md5 {found}, expected {self.md5}"
        if giver is not None:  # otherwise no single source is to blame
            giver.failure = why
        self.log(f"{giver.url if giver else 'several sources together'}: {why}")
        return False

    def _choose(self, sources: list[_Source]) -> _Source:
        """Return the first untried source, else the fastest one."""
        left = [source for source in sources if not source.failure]
        if left:
            return max(left, key=lambda source: source.rate)  # the first of the fastest
        failures = [f"  {source.url}: {source.failure}" for source in sources]
        if have := self._have():
            failures.append(f"{have:,} bytes are kept in {self.part}, to resume from")
        else:
            self.part.unlink(missing_ok=True)
        raise SpratError(f"No source provided {self.size:,} bytes with md5 {self.md5}:", *failures)

    def _take(self, source: _Source, meter: "_Meter") -> None:
        """Download from one source until the file is complete, or the source is slow or fails."""
        for _ in range(self.patience.connections):
            had, why = self._have(), "broke off"
            try:
                self._receive(source.url, meter)
            except _LostError as lost:  # text from a server may contain terminal escapes
                why = "".join(filter(str.isprintable, str(lost)))[:200]
            have = self._have()
            if have >= self.size:
                return
            if meter.too_slow:
                source.rate = meter.rate
                return
            if have == had:  # no progress
                break
        source.failure = f"{why} (after {have:,} of {self.size:,} bytes)" if have else why

    def _receive(self, url: str, meter: "_Meter") -> None:
        """Append what one connection delivers."""
        have = self._have()
        with _connect(url, have, self.patience.silence) as response, self.part.open("ab") as file:
            at = _first_byte(response, have, self.size)
            while at < self.size and not meter.too_slow:
                with _lost():
                    chunk = response.read1(1 << 16)[: self.size - at]
                if not chunk:
                    break
                # a server without ranges starts at zero: skip what is there already, so that a bad
                # source never discards what a better one delivered
                file.write(chunk[max(0, have - at) :])
                at += len(chunk)
                self.progress(max(at, have), self.size)
                meter.add(len(chunk))

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0


class _Meter:
    """Rate in bytes/s, measured window by window, including the time to reconnect."""

    def __init__(self, window: float, slow: float) -> None:
        self.window, self.slow = window, slow
        self.began: float | None = None  # opening the first connection does not count
        self.count, self.rate = 0, math.inf

    def add(self, count: int) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began, count = now, 0
        self.count += count
        if now - self.began >= self.window:
            self.rate = self.count / (now - self.began)
            self.began, self.count = now, 0

    @property
    def too_slow(self) -> bool:
        return self.rate < self.slow


def _connect(url: str, have: int, silence: float) -> HTTPResponse:
    wanted = {"Range": f"bytes={have}-"} if have else {}
    request = Request(url, headers={"User-Agent": "sprat"} | wanted)
    with _lost():
        response = build_opener(_HTTPOnly).open(request, timeout=silence)
    assert isinstance(response, HTTPResponse)
    return response


def _first_byte(response: HTTPResponse, have: int, size: int) -> int:
    """Return the offset at which a response starts; refuse one about a file of another size."""
    first, total = 0, response.headers.get("Content-Length", "")
    if response.status == 206:
        given = response.headers.get("Content-Range", "")
        parts = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", given.strip())
        if parts is None or int(parts[1]) != have:
            raise _LostError(f"was asked for bytes from {have:,} on and gave {given!r}")
        first, total = have, parts[2]
    elif response.status != 200:
        raise _LostError(f"answered {response.status} {response.reason}")
    if total.isdecimal() and int(total) != size:
        raise _LostError(f"has {int(total):,} bytes there, expected {size:,}")
    return first


class _HTTPOnly(HTTPRedirectHandler):
    """Follow redirects, but never to a file or ftp address."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise HTTPError(newurl, code, f"to {newurl}, neither http nor https", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextlib.contextmanager
def _lost() -> Iterator[None]:
    """Turn every network error into a _LostError, so that a full disk can be distinguished."""
    try:
        yield
    except HTTPError as error:
        error.close()
        raise _LostError(f"answered {error.code} {error.reason}") from error
    except OSError as error:
        raise _LostError(str(getattr(error, "reason", error))) from error
    except (HTTPException, ValueError) as error:
        raise _LostError(f"does not speak proper HTTP: {error}") from error
