"""Tests of the docs as a site: complete, without dead links, and used in a real browser."""

import functools
import http.server
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from pages import ROOT
from playwright.sync_api import Browser, Locator, Page, expect

WIDE, NARROW = 1400, 375
SHOWN = (  # pages of every kind: tables, code, docstrings, pictures
    "index.html",
    "docs/how-to/train.html",
    "docs/how-to/microcontroller.html",
    "docs/explanation/results.html",
    "docs/reference/commands.html",
    "docs/reference/python.html",
    "docs/gallery.html",
    "docs/architecture.html",
    "src/sprat/zoo/SpratL/CARD.html",
    "CONTRIBUTING.html",
)
expect.set_options(timeout=30_000)  # ms; the machine may be busy


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the site as `make docs` builds it; any warning fails."""
    folder = tmp_path_factory.mktemp("site")
    make = (ROOT / "Makefile").read_text()
    recipe = re.search(r"^docs:.*\n\t\$\(BIN\)/python (-m sphinx .*)$", make, re.MULTILINE)
    assert recipe is not None
    command = recipe[1].replace("build/", f"{folder}/")
    done = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder / "site"


class _Links(HTMLParser):
    """Ids and links of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.add(value or "")
            elif name in ("href", "src"):
                self.links.append(value or "")


def test_every_page_is_there_and_can_be_searched(site: Path) -> None:
    pages = [*(ROOT / "docs").rglob("*.md"), *(ROOT / "src").glob("sprat/zoo/*/CARD.md")]
    pages += [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    for page in pages:
        name = page.relative_to(ROOT).with_suffix("")
        assert (site / f"{name}.html").is_file(), page
        assert f'"{name}"' in index, page
    assert (site / "index.html").read_bytes() == (site / "README.html").read_bytes()


def test_no_internal_link_is_dead(site: Path) -> None:
    pages = {path: _Links(path) for path in site.rglob("*.html")}
    assert len(pages) > 30
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("http", "https", "data"), f"{path}: {link}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert target.is_file(), f"{path}: {link}"
            if parts.fragment and target in pages:
                inside = unquote(parts.fragment)
                assert inside in pages[target].ids or inside.startswith("svg-"), f"{path}: {link}"


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import sprat

    page = _Links(site / "docs" / "reference" / "python.html")
    assert {f"sprat.{name}" for name in sprat.__all__} <= page.ids


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    handler = functools.partial(_Quiet, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(
    params=[(WIDE, "light"), (WIDE, "dark"), (NARROW, "light"), (NARROW, "dark")],
    ids="{0[0]}-{0[1]}".format,
)
def page(request: pytest.FixtureRequest, browser: Browser, address: str) -> Iterator[Page]:
    """Page that must send requests only to this machine and log no message."""
    width, scheme = request.param
    page = browser.new_page(
        viewport={"width": width, "height": 800}, color_scheme=scheme, reduced_motion="reduce"
    )
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    yield page
    page.close()
    assert asked
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)
    assert complaints == []


def test_pages_fit_the_window_and_colour_scheme(page: Page, address: str) -> None:
    for name in SHOWN:
        page.goto(f"{address}{name}")
        wide, window = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window, name
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert page.evaluate(broken) == [], name
        red, green, blue = page.evaluate(
            "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
        dark = page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert (red + green + blue < 200) == dark, name


def test_the_keyboard_reaches_search_and_navigation(page: Page, address: str) -> None:
    page.goto(address)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    search = page.get_by_role("textbox", name="Search")
    _tab_to(page, search)
    expect(search).to_be_in_viewport(ratio=1)
    train = page.locator(".sidebar-tree").get_by_role("link", name="Train", exact=True)
    _tab_to(page, train)
    expect(train).to_be_in_viewport(ratio=1)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text(re.compile("^Train"))
    _tab_to(page, page.get_by_role("textbox", name="Search"))
    page.keyboard.type("cross-validation")
    page.keyboard.press("Enter")
    found = page.locator("#search-results a")
    expect(found.first).to_be_visible()
    expect(page.locator("#search-results")).to_contain_text("Train")


def _tab_to(page: Page, place: Locator) -> None:
    for _ in range(60):
        if place.evaluate("element => element === document.activeElement"):
            return
        page.keyboard.press("Tab")
    raise AssertionError("60 times Tab and not there")
