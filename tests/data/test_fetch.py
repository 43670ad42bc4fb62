"""Tests of downloads from servers that cut, stall, crawl or report wrong sizes, and of `data`."""

import dataclasses
import functools
import hashlib
import http.server
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Here
from rich.console import Console

from sprat.data import cifar10, cifar100, svhn
from sprat.data.fetch import Patience, fetch
from sprat.display import loading
from sprat.errors import SpratError
from sprat.files import lock

CONTENT = random.Random(0).randbytes(300_000)
WRONG = random.Random(1).randbytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
QUICK = Patience(silence=0.2, slow=1e6, window=0.08, connections=4)
SCRIPT = Path(__file__).with_name("fetch_one.py")

Answer = Callable[["Handler", int], None]  # a request, and the first byte it asks for


class Server(http.server.ThreadingHTTPServer):
    """Server that answers each path with a list of behaviours, one per request, then the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, list[Answer]] = {}
        self.asked: list[tuple[str, int]] = []  # path and first byte of each request
        self.go_on = threading.Event()

    def serve(self, path: str, *answers: Answer) -> str:
        self.answers[path] = list(answers)
        return f"http://127.0.0.1:{self.server_port}/{path}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # the client hung up
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        path = self.path.strip("/")
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        self.server.asked.append((path, first))
        answers = self.server.answers[path]
        (answers.pop(0) if len(answers) > 1 else answers[0])(self, first)

    def log_message(self, *_: object) -> None: ...

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def head_of(self, first: int, content: bytes = CONTENT) -> None:
        """Send the correct head of an answer from byte `first` on."""
        size, left = len(content), len(content) - first
        if first:
            reported = f"bytes {first}-{size - 1}/{size}"
            self.head(206, Content_Length=left, Content_Range=reported)
        else:
            self.head(200, Content_Length=left)


def whole(handler: Handler, first: int) -> None:
    handler.head_of(first)
    handler.wfile.write(CONTENT[first:])


def held(handler: Handler, first: int) -> None:
    """Send the first bytes, and the others when the test allows it."""
    handler.head_of(first)
    handler.wfile.write(CONTENT[first : first + 1000])
    handler.server.go_on.wait(30)
    handler.wfile.write(CONTENT[first + 1000 :])


def without_ranges(handler: Handler, first: int) -> None:
    handler.head_of(0)
    handler.wfile.write(CONTENT)


def without_a_length(handler: Handler, first: int) -> None:
    handler.head(200)
    handler.wfile.write(CONTENT)


def without_end(handler: Handler, first: int) -> None:
    handler.head(200)
    while True:
        handler.wfile.write(CONTENT)


def cut(handler: Handler, first: int) -> None:
    handler.head_of(first)
    handler.wfile.write(CONTENT[first : first + 100_000])


def cut_without_ranges(handler: Handler, first: int) -> None:
    handler.head_of(0)
    handler.wfile.write(CONTENT[:100_000])


def empty(handler: Handler, first: int) -> None:
    handler.head_of(first)


def hang_up(handler: Handler, first: int) -> None:
    handler.close_connection = True


def stall(handler: Handler, first: int) -> None:
    handler.head_of(first)
    handler.wfile.write(CONTENT[first : first + 100_000])
    handler.server.go_on.wait(30)


def silence(handler: Handler, first: int) -> None:
    handler.server.go_on.wait(30)


def crawl(rate: float) -> Answer:
    """Return a behaviour that sends `rate` bytes/s."""

    def answer(handler: Handler, first: int) -> None:
        handler.head_of(first)
        began = time.monotonic()
        for at in range(first, len(CONTENT), 2000):
            time.sleep(max(0, (at - first) / rate - (time.monotonic() - began)))
            handler.wfile.write(CONTENT[at : at + 2000])

    return answer


def wrong(handler: Handler, first: int) -> None:
    handler.head_of(first, WRONG)
    handler.wfile.write(WRONG[first:])


def wrong_half(handler: Handler, first: int) -> None:
    handler.head_of(first, WRONG)
    handler.wfile.write(WRONG[first : first + 150_000])


def another_file(handler: Handler, first: int) -> None:
    handler.head(200, Content_Length=5)
    handler.wfile.write(b"moved")


def too_long(handler: Handler, first: int) -> None:
    handler.head(200, Content_Length=len(CONTENT) + 1000)
    handler.wfile.write(CONTENT)


def another_range(handler: Handler, first: int) -> None:
    size = len(CONTENT)
    handler.head(206, Content_Range=f"bytes {first + 7}-{size - 1}/{size}")
    handler.wfile.write(CONTENT[first + 7 :])


def nonsense(handler: Handler, first: int) -> None:
    handler.wfile.write(b"\x00\xff" * 1000 + b"\n")


def status(code: int) -> Answer:
    return lambda handler, first: handler.head(code)


def redirect(to: str) -> Answer:
    return lambda handler, first: handler.head(302, Location=to)


# what a source does, and what the error says if it never does anything else
FAILURES: dict[str, tuple[Answer, str]] = {
    "cuts without ranges": (cut_without_ranges, r"broke off \(after 100,000 of 300,000 bytes\)"),
    "gives no byte": (empty, "broke off"),
    "hangs up": (hang_up, "closed connection without response"),
    "says nothing": (silence, "timed out"),
    "gives wrong bytes": (wrong, f"gave 300,000 bytes with md5 .*expected {MD5}"),
    "gives half of wrong bytes": (wrong_half, "gave 300,000 bytes with md5"),
    "gives another file": (another_file, "has 5 bytes there, expected 300,000"),
    "claims to have more": (too_long, "has 301,000 bytes there, expected 300,000"),
    "gives another range": (another_range, "was asked for bytes from 0 on and gave"),
    "is no HTTP server": (nonsense, "does not speak proper HTTP"),
    "answers 404": (status(404), "answered 404 Not Found"),
    "answers 416": (status(416), "answered 416 Requested Range Not Satisfiable"),
    "answers 500": (status(500), "answered 500 Internal Server Error"),
    "answers 204": (status(204), "answered 204 No Content"),
    "redirects to a file": (redirect("file:///etc/passwd"), "answered 302 .*not allowed"),
    "redirects to ftp": (redirect("ftp://127.0.0.1/x"), "answered 302 to ftp://.*neither http"),
    "redirects for ever": (redirect("loop"), "answered 302 .*infinite loop"),
}
# what a source may do once without making the fetch fail
SLIPS: dict[str, Answer] = {
    "cut": cut,
    "stall": stall,
    "a server without ranges": without_ranges,
    "a server that tells no length": without_a_length,
    "a server that does not end": without_end,
}


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.go_on.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "file.tar.gz"


def _fetch(target: Path, *urls: str, **changes: Any) -> Path:
    return fetch(urls, target, MD5, len(CONTENT), **{"patience": QUICK} | changes)


def _part(target: Path) -> Path:
    return target.with_name(f"{target.name}.{MD5[:8]}.part")


def _folder_files(target: Path) -> list[str]:
    return [path.name for path in target.parent.iterdir() if path.suffix != ".lock"]


class TestFetch:
    def test_gives_the_file_and_leaves_nothing_else(self, server: Server, target: Path) -> None:
        reported: list[tuple[int, int]] = []
        place = _fetch(
            target, server.serve("x", whole), progress=lambda *done: reported.append(done)
        )
        assert place == target
        assert target.read_bytes() == CONTENT
        assert reported == sorted(reported)
        assert reported[-1] == (len(CONTENT), len(CONTENT))
        assert _folder_files(target) == [target.name]

    def test_follows_a_redirect_with_its_range(self, server: Server, target: Path) -> None:
        to = server.serve("there", cut, whole)
        _fetch(target, server.serve("x", redirect(to)))
        assert target.read_bytes() == CONTENT
        assert server.asked == [("x", 0), ("there", 0), ("x", 100_000), ("there", 100_000)]

    def test_keeps_correct_file_and_replaces_wrong_one(self, server: Server, target: Path) -> None:
        target.parent.mkdir()
        target.write_bytes(WRONG)
        assert _fetch(target, server.serve("x", whole)).read_bytes() == CONTENT
        assert _fetch(target, server.serve("x", status(500))).read_bytes() == CONTENT
        assert len(server.asked) == 1

    @pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://x/y", "/etc/passwd", "x"])
    def test_refuses_urls_other_than_http(self, target: Path, url: str) -> None:
        with pytest.raises(SpratError, match="begins with http or https"):
            _fetch(target, url)
        assert not target.parent.exists()

    @pytest.mark.parametrize("failure", FAILURES)
    def test_tries_the_next_source_after_failure(
        self, server: Server, target: Path, failure: str
    ) -> None:
        first = server.serve("loop", FAILURES[failure][0])
        _fetch(target, first, server.serve("good", whole))
        assert target.read_bytes() == CONTENT
        assert _folder_files(target) == [target.name]

    @pytest.mark.parametrize("failure", FAILURES)
    def test_says_why_each_source_failed(self, server: Server, target: Path, failure: str) -> None:
        answer, why = FAILURES[failure]
        first = server.serve("loop", answer)
        with pytest.raises(SpratError, match=f"{first}: .*{why}") as caught:
            _fetch(target, first, "http://127.0.0.1:9/dead")
        assert "http://127.0.0.1:9/dead: [Errno" in str(caught.value)
        assert all(character.isprintable() or character == "\n" for character in str(caught.value))
        assert not target.exists()
        kept = _part(target).stat().st_size if _part(target).exists() else 0
        assert (f"{kept:,} bytes are kept in {_part(target)}" in str(caught.value)) == bool(kept)

    @pytest.mark.parametrize("slip", SLIPS)
    @pytest.mark.parametrize("had", [0, 50_000])
    def test_recovers_from_a_single_slip(
        self, server: Server, target: Path, slip: str, had: int
    ) -> None:
        target.parent.mkdir()
        _part(target).write_bytes(CONTENT[:had])
        _fetch(target, server.serve("x", SLIPS[slip], whole))
        assert target.read_bytes() == CONTENT
        assert server.asked[0] == ("x", had)
        assert _folder_files(target) == [target.name]

    def test_repeatedly_lost_connection_is_resumed(self, server: Server, target: Path) -> None:
        _fetch(target, server.serve("x", cut))
        assert server.asked == [("x", 0), ("x", 100_000), ("x", 200_000)]
        assert target.read_bytes() == CONTENT

    def test_worse_source_never_discards_downloaded_bytes(
        self, server: Server, target: Path
    ) -> None:
        urls = [server.serve("good", cut, cut, hang_up), server.serve("bad", cut_without_ranges)]
        with pytest.raises(SpratError, match="200,000 bytes are kept"):
            _fetch(target, *urls)
        _fetch(target, server.serve("again", whole))
        assert server.asked[-1] == ("again", 200_000)
        assert target.read_bytes() == CONTENT

    @pytest.mark.parametrize("left", [b"x" * 1000, WRONG, CONTENT + b"x", CONTENT])
    def test_any_leftover_part_yields_the_correct_file(
        self, server: Server, target: Path, left: bytes
    ) -> None:
        target.parent.mkdir()
        _part(target).write_bytes(left)
        _fetch(target, server.serve("x", whole))
        assert target.read_bytes() == CONTENT
        assert _folder_files(target) == [target.name]

    def test_wrong_bytes_are_discarded_and_fetched_again(
        self, server: Server, target: Path
    ) -> None:
        """Check that the second source sends all again after the first sent a wrong half."""
        liar, good = server.serve("liar", wrong_half, hang_up), server.serve("good", whole)
        _fetch(target, liar, good)
        assert target.read_bytes() == CONTENT
        assert server.asked == [("liar", 0), ("liar", 150_000), ("good", 150_000), ("good", 0)]


class TestSlowSources:
    def test_are_replaced_by_a_faster_one_that_resumes(self, server: Server, target: Path) -> None:
        said: list[str] = []
        slow, fast = server.serve("slow", crawl(2e5)), server.serve("fast", whole)
        _fetch(target, slow, fast, log=said.append)
        assert target.read_bytes() == CONTENT
        (_, zero), (name, first) = server.asked
        assert (zero, name) == (0, "fast")
        assert 0 < first < len(CONTENT)
        assert len(said) == 1
        assert f"{slow}: gives only" in said[0]

    def test_fastest_is_resumed_if_none_is_fast_enough(self, server: Server, target: Path) -> None:
        rates = {"slow": 1.5e5, "better": 5e5, "worse": 3e4}
        _fetch(target, *(server.serve(name, crawl(rate)) for name, rate in rates.items()))
        assert [name for name, _ in server.asked] == ["slow", "better", "worse", "better"]
        firsts = [first for _, first in server.asked]
        assert firsts == sorted(firsts)
        assert target.read_bytes() == CONTENT

    def test_are_resumed_if_the_others_fail(self, server: Server, target: Path) -> None:
        urls = [server.serve("slow", crawl(5e5)), server.serve("gone", status(404))]
        _fetch(target, *urls)
        assert [name for name, _ in server.asked] == ["slow", "gone", "slow"]
        assert target.read_bytes() == CONTENT

    def test_are_used_if_there_is_no_other(self, server: Server, target: Path) -> None:
        _fetch(target, server.serve("slow", crawl(1e6)))
        assert len(server.asked) == 1
        assert target.read_bytes() == CONTENT


def test_random_failures_give_correct_file_or_clear_error(server: Server, tmp_path: Path) -> None:
    """Try random sequences of misbehaviour at three sources, and then an honest source."""
    rng = random.Random(20_090_408)
    behaviours = [answer for answer, _ in FAILURES.values()] + [*SLIPS.values(), whole, crawl(5e5)]
    rushed = Patience(silence=0.03, slow=1e6, window=0.02, connections=3)
    ends = {"whole": 0, "told": 0}
    for round_ in range(50):
        target = tmp_path / str(round_) / "file.tar.gz"
        urls = [
            server.serve(name, *rng.choices(behaviours, k=rng.randint(1, 4)))
            for name in ("loop", "b", "c")
        ]
        error = ""
        try:
            _fetch(target, *urls, patience=rushed)
        except SpratError as caught:
            error = str(caught)
        ends["told" if error else "whole"] += 1
        if error:
            assert all(f"\n  {url}: " in error for url in urls)
            assert not target.exists()
            _fetch(target, server.serve("honest", whole))
        assert target.read_bytes() == CONTENT
        assert _folder_files(target) == [target.name]
    assert min(ends.values()) > 5, ends


def _start(url: str, target: Path) -> subprocess.Popen[str]:
    words = [sys.executable, SCRIPT, url, target, MD5, len(CONTENT)]
    return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, text=True)


class TestProcesses:
    def test_one_fetches_while_the_other_waits(self, server: Server, target: Path) -> None:
        url = server.serve("x", held)
        with _start(url, target) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "bytes\n"
            with _start(url, target) as second:
                assert second.stdout is not None
                said = second.stdout.readline()
                assert said == f"another process is downloading {target}; waiting for it\n"
                server.go_on.set()
                assert second.wait(30) == 0
                assert second.stdout.read() == "", "it had nothing left to fetch"
            assert first.wait(30) == 0
        assert server.asked == [("x", 0)]
        assert target.read_bytes() == CONTENT

    def test_killed_fetch_is_resumed(self, server: Server, target: Path) -> None:
        url = server.serve("x", stall, whole)
        with _start(url, target) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "bytes\n"
            while not _part(target).stat().st_size:
                time.sleep(0.01)
            process.kill()
            assert process.wait(30) == -signal.SIGKILL
        assert not target.exists()
        had = _part(target).stat().st_size
        _fetch(target, url)
        assert server.asked == [("x", 0), ("x", had)]
        assert target.read_bytes() == CONTENT

    def test_a_lock_is_held_by_one_at_a_time(self, tmp_path: Path) -> None:
        inside, most, waited = 0, 0, []

        def work() -> None:
            nonlocal inside, most
            with lock(tmp_path / "lock", lambda holder: waited.append(1)):
                inside += 1
                most = max(most, inside)
                time.sleep(0.02)
                inside -= 1

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1
        assert waited


class TestDisk:
    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
    def test_full_disk_is_reported_without_blaming_sources(
        self, server: Server, target: Path
    ) -> None:
        target.parent.mkdir()
        _part(target).symlink_to("/dev/full")
        urls = [server.serve("x", whole), server.serve("y", whole)]
        with pytest.raises(SpratError, match=r"cannot be written: No space left.*Free some space"):
            _fetch(target, *urls)
        assert [name for name, _ in server.asked] == ["x"]
        assert not target.exists()

    def test_read_only_folder_is_reported(self) -> None:
        root = os.geteuid() == 0  # may write anywhere
        with tempfile.TemporaryDirectory() as name:
            Path(name).chmod(0o555)
            try:
                if root:
                    os.seteuid(65_534)
                for target in (Path(name) / "x", Path(name) / "cache" / "x"):
                    with pytest.raises(SpratError, match=r"Permission denied.*its permissions"):
                        _fetch(target, "http://127.0.0.1:9/x")
            finally:
                if root:
                    os.seteuid(0)
            Path(name).chmod(0o755)
            assert [*Path(name).iterdir()] == []

    def test_file_in_place_of_folder_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        with pytest.raises(SpratError, match="cannot be written"):
            _fetch(tmp_path / "file" / "x", "http://127.0.0.1:9/x")
        assert (tmp_path / "file").read_text() == "mine"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPRAT_DATA", raising=False)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, server: Server) -> str:
    """URL of a local server that stands in for CIFAR-10's mirrors, with a small archive."""
    url = server.serve("x", cut, whole)
    python = dataclasses.replace(cifar10.PYTHON, archive_md5=MD5)
    monkeypatch.setattr(cifar10, "PYTHON", python)
    here = functools.partial(
        cifar10.download,
        mirrors=[url],
        expected_md5=MD5,
        size=len(CONTENT),
        patience=QUICK,
    )
    monkeypatch.setattr(cifar10, "download", here)
    return url


def _folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write small files in place of CIFAR-10's extracted ones, and expect their md5s instead."""
    folder = place / cifar10.FOLDER
    folder.mkdir(parents=True)
    for name in cifar10.FILE_MD5S:
        (folder / name).write_text(name)
    md5s = {name: hashlib.md5(name.encode()).hexdigest() for name in cifar10.FILE_MD5S}
    monkeypatch.setattr(cifar10, "PYTHON", dataclasses.replace(cifar10.PYTHON, md5s=md5s))
    return folder


def test_plain_progress_shows_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sprat.display.PLAIN_EVERY", 0)
    shown = io.StringIO()
    with loading(Console(file=shown, width=100), "looking") as progress:
        for done in (1_000, 2_000, 3_000):
            time.sleep(0.01)
            progress(done, 4_000)
    line = r"  fetched 3,000 of 4,000 bytes, [\d,]+ bytes/s, 0:01 left"
    assert re.fullmatch(line, shown.getvalue().splitlines()[-1])


class TestCommandFetch:
    def test_fetches_into_the_cache_once(
        self, here: Here, published: str, server: Server, tmp_path: Path
    ) -> None:
        archive = tmp_path / "cache" / "sprat" / cifar10.ARCHIVE
        for _ in range(2):
            done = here("data", "fetch")
            assert (done.returncode, done.stdout) == (0, f"{archive}\n")
        assert archive.read_bytes() == CONTENT
        assert [first for _, first in server.asked] == [0, 100_000]

    def test_replaces_a_damaged_archive_in_a_folder(
        self, here: Here, published: str, tmp_path: Path
    ) -> None:
        archive = tmp_path / "mine" / cifar10.ARCHIVE
        archive.parent.mkdir()
        archive.write_bytes(CONTENT[:1000])
        done = here("data", "fetch", "--data-dir", tmp_path / "mine")
        assert (done.returncode, done.stdout) == (0, f"{archive}\n")
        assert archive.read_bytes() == CONTENT
        assert not (tmp_path / "cache").exists()

    def test_uses_sprat_data_but_never_repairs_it(
        self, here: Here, published: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = _folder(tmp_path / "given", monkeypatch)
        monkeypatch.setenv("SPRAT_DATA", str(tmp_path / "given"))
        assert here("data", "fetch").stdout == f"{folder}\n"
        (folder / "data_batch_4").write_text("x")
        done = here("data", "fetch")
        assert done.returncode == 2
        assert f"{folder} is damaged (data_batch_4). Delete it and download it again" in done.stderr
        assert (folder / "data_batch_4").read_text() == "x"

    def test_offline_error_lists_mirrors_and_remedy(
        self, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        done = here("data", "fetch")
        assert done.returncode == 2
        assert "CIFAR-10 could not be downloaded" in done.stderr
        assert all(f"  {url}: " in done.stderr for url in cifar10.MIRRORS)
        assert "--data-dir or SPRAT_DATA" in done.stderr
        assert done.stdout == ""
        assert _folder_files(tmp_path / "cache" / "sprat" / cifar10.ARCHIVE) == []


class TestCommandFetchOfOtherDatasets:
    def test_fetches_cifar100_by_its_name(
        self, here: Here, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        python = dataclasses.replace(cifar100.PYTHON, archive_md5=MD5)
        monkeypatch.setattr(cifar100, "PYTHON", python)
        monkeypatch.setattr(cifar100, "MIRRORS", [server.serve("x", cut, whole)])
        monkeypatch.setattr(cifar100, "ARCHIVE_SIZE", len(CONTENT))
        archive = tmp_path / "mine" / python.archive
        for _ in range(2):
            done = here("data", "fetch", "--dataset", "cifar100", "--data-dir", tmp_path / "mine")
            assert (done.returncode, done.stdout) == (0, f"{archive}\n")
        assert archive.read_bytes() == CONTENT
        assert len(server.asked) == 2

    def test_fetches_svhn_and_replaces_damaged_files(
        self, here: Here, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in svhn.FILE_MD5S:
            server.serve(name, whole)
        monkeypatch.setattr(svhn, "ADDRESS", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setattr(svhn, "FILE_MD5S", dict.fromkeys(svhn.FILE_MD5S, MD5))
        monkeypatch.setattr(svhn, "SIZES", dict.fromkeys(svhn.SIZES, len(CONTENT)))
        cache = tmp_path / "cache" / "sprat"
        for spoiled in (svhn.TEST, svhn.TRAIN):
            done = here("data", "fetch", "--dataset", "svhn")
            assert (done.returncode, done.stdout) == (0, f"{cache}\n")
            assert {(cache / name).read_bytes() for name in svhn.FILE_MD5S} == {CONTENT}
            (cache / spoiled).write_bytes(CONTENT[1:])
        assert [name for name, _ in server.asked] == [svhn.TRAIN, svhn.TEST, svhn.TEST]

    @pytest.mark.parametrize(
        ("name", "addresses"),
        [("cifar100", cifar100.MIRRORS), ("svhn", [svhn.ADDRESS + svhn.TRAIN])],
    )
    def test_offline_error_lists_sources_and_remedy(
        self, here: Here, monkeypatch: pytest.MonkeyPatch, name: str, addresses: list[str]
    ) -> None:
        monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        done = here("train", "--dataset", name)
        assert done.returncode == 2
        assert all(f"  {address}: " in done.stderr for address in addresses)
        assert "could not be downloaded" in done.stderr
        assert "--data-dir or SPRAT_DATA" in done.stderr

    def test_only_published_datasets_can_be_fetched(self, here: Here) -> None:
        done = here("data", "fetch", "--dataset", "shapes10")
        assert done.returncode == 2
        assert "not a published dataset. Available: cifar10, cifar100, svhn." in done.stderr


class TestCommandVerify:
    def test_prints_each_file_and_sets_exit_code(
        self, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = _folder(tmp_path, monkeypatch)
        done = here("data", "verify", "--data-dir", tmp_path)
        assert done.returncode == 0
        assert done.stdout.splitlines() == [f"{folder / n}   ok" for n in cifar10.FILE_MD5S]
        (folder / "data_batch_2").write_text("x")
        (folder / "batches.meta").unlink()
        done = here("data", "verify", "--data-dir", tmp_path)
        assert done.returncode == 1
        assert f"{folder / 'data_batch_2'}   DAMAGED\n" in done.stdout
        assert f"{folder / 'batches.meta'}   missing\n" in done.stdout
        assert done.stdout.count("   ok\n") == 5

    def test_finds_cached_archive_and_prints_json(
        self, here: Here, published: str, tmp_path: Path
    ) -> None:
        here("data", "fetch")
        cache = tmp_path / "cache" / "sprat"
        archive = cache / cifar10.ARCHIVE
        done = here("data", "verify", "--json")
        assert done.returncode == 0
        assert json.loads(done.stdout) == {
            "folder": str(cache),
            "ok": True,
            "files": {str(archive): "ok"},
        }
        archive.write_bytes(CONTENT[:-1])
        for place in (cache, archive):
            done = here("data", "verify", "--data-dir", place, "--json")
            assert done.returncode == 1
            assert json.loads(done.stdout)["files"] == {str(archive): "damaged"}

    def test_reports_where_nothing_was_found(self, here: Here, tmp_path: Path) -> None:
        done = here("data", "verify")
        assert done.returncode == 2
        assert f"There is nothing to verify: no {cifar10.FOLDER} and no" in done.stderr
        assert str(tmp_path / "cache" / "sprat") in done.stderr
        assert done.stdout == ""

    def test_accepts_the_real_cifar10(self, here: Here, cifar10_place: Path) -> None:
        done = here("data", "verify", "--data-dir", cifar10_place, "--json")
        assert done.returncode == 0
        assert set(json.loads(done.stdout)["files"].values()) == {"ok"}
