"""Tests of the page in a real browser: with mouse, keyboard and clipboard, and on a phone."""

import base64
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, JSHandle, Locator, Page, expect
from serving import Server, serving

from sprat.serve.samples import draw_samples
from sprat.serve.uploads import png

CAT = png(draw_samples(["cat"])["cat"])
FILE = {"name": "cat.png", "mimeType": "image/png", "buffer": CAT}
NO_PICTURE = {"name": "cat.png", "mimeType": "image/png", "buffer": b"no picture"}
expect.set_options(timeout=30_000)  # ms; the machine may be busy


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """Page in a wide window, which must request nothing except from its server."""
    page = browser.new_page(viewport={"width": 1200, "height": 900}, reduced_motion="reduce")
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(server.url)
    yield page
    page.close()
    assert asked
    assert all(url.startswith((server.url, "blob:", "data:")) for url in asked)
    # the browser itself reports refused pictures
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def assert_answered(page: Page, name: str = "cat") -> None:
    expect(page.get_by_role("status")).to_contain_text(
        re.compile(rf"^{name} \d+\.\d %, in \d+ ms$")
    )
    expect(page.get_by_role("row").nth(1).get_by_role("rowheader")).to_have_text(name)
    expect(page.get_by_role("alert")).to_be_empty()


def handed(page: Page, content: bytes) -> JSHandle:
    """Return what a browser passes on when a file is dropped or pasted."""
    return page.evaluate_handle(
        """text => {
            const bytes = Uint8Array.from(atob(text), each => each.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "x.png", { type: "image/png" }));
            return transfer;
        }""",
        base64.b64encode(content).decode(),
    )


def width(locator: Locator) -> float:
    box = locator.bounding_box()
    assert box is not None
    return box["width"]


def test_chosen_picture_is_shown_and_classified(page: Page) -> None:
    page.get_by_label("Choose a picture").set_input_files([FILE])
    assert_answered(page)
    assert (
        page.get_by_alt_text("The picture", exact=True).evaluate("image => image.naturalWidth")
        == 160
    )
    seen = page.get_by_alt_text("What the network sees")
    assert seen.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [32, 32]
    expect(seen).to_have_css("image-rendering", "pixelated")
    assert width(seen) > 150


def test_bar_lengths_match_the_percentages(page: Page) -> None:
    page.get_by_label("Choose a picture").set_input_files([FILE])
    assert_answered(page)
    bars, cells = page.locator(".bar"), page.get_by_role("cell")
    shares = [float(text.removesuffix(" %")) for text in cells.all_inner_texts()]
    assert len(shares) == 10
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.6)  # ten rounded figures
    whole = width(bars.first) / shares[0]
    for bar, share in zip(bars.all(), shares, strict=True):
        assert width(bar) == pytest.approx(whole * share, abs=whole * 0.06 + 0.1)


def test_dropped_picture_is_classified(page: Page) -> None:
    page.dispatch_event("body", "dragover", {"dataTransfer": handed(page, CAT)})
    expect(page.locator("body")).to_have_class("dragging")
    page.dispatch_event("body", "drop", {"dataTransfer": handed(page, CAT)})
    assert_answered(page)
    expect(page.locator("body")).not_to_have_class("dragging")


def test_pasted_picture_is_classified(page: Page) -> None:
    handed(page, CAT).evaluate(
        """clipboardData => document.body.dispatchEvent(
            new ClipboardEvent("paste", { clipboardData, bubbles: true })
        )"""
    )
    assert_answered(page)


def test_drop_without_a_file_is_reported(page: Page) -> None:
    nothing = page.evaluate_handle("() => new DataTransfer()")
    page.dispatch_event("body", "drop", {"dataTransfer": nothing})
    expect(page.get_by_role("alert")).to_have_text("There was no file. Drop or paste a picture.")


def test_samples_are_classified_one_after_another(page: Page) -> None:
    for name in ("frog", "ship"):
        page.get_by_role("button", name=name).click()
        assert_answered(page, name)


def test_page_works_with_the_keyboard_alone(page: Page) -> None:
    with page.expect_file_chooser() as chosen:  # takes a moment to take effect
        page.keyboard.press("Tab")
        expect(page.get_by_label("Choose a picture")).to_be_focused()
        outline = page.locator("label[for=file]").evaluate(
            "label => getComputedStyle(label).outlineStyle"
        )
        assert outline == "solid"
        page.keyboard.press("Space")
    chosen.value.set_files([FILE])
    assert_answered(page)
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Show where")).to_be_focused()
    page.keyboard.press("Space")
    expect(page.get_by_text("Evidence for cat: ")).to_be_visible()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="automobile")).to_be_focused()
    page.keyboard.press("Enter")
    assert_answered(page, "automobile")
    expect(page.get_by_text("Evidence for automobile: ")).to_be_visible()


def test_button_toggles_the_evidence_map(page: Page) -> None:
    toggle, seen = page.get_by_role("button", name="Show where"), page.locator("#seen")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.get_by_label("Choose a picture").set_input_files([FILE])
    assert_answered(page)
    plain = seen.get_attribute("src")
    expect(toggle).to_have_attribute("aria-pressed", "false")
    toggle.click()
    words = re.compile(r"^Evidence for cat: (the|mostly the|spread|nowhere) ?.*\.$")
    expect(page.locator("#where")).to_have_text(words)
    expect(page.locator("#where")).to_have_attribute("aria-live", "polite")
    expect(toggle).to_have_attribute("aria-pressed", "true")
    assert seen.get_attribute("alt") == (
        "What the network sees of the picture, in grey, with a map. "
        f"{page.locator('#where').inner_text()}"
    )
    assert seen.get_attribute("src") != plain
    assert seen.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [32, 32]
    expect(page.locator("#legend")).to_be_visible()
    assert_answered(page)
    toggle.click()
    expect(seen).to_have_attribute("src", plain or "")
    expect(seen).to_have_attribute("alt", "What the network sees of the picture")
    expect(page.locator("#where")).to_be_empty()
    expect(page.locator("#legend")).to_be_hidden()
    toggle.click()  # without another request
    expect(page.locator("#where")).to_have_text(words)
    options = [url.partition("?")[2] for url in asked if "/predict" in url]
    assert options == ["top=10&seen=true", "top=10&seen=true&where=true"]
    page.get_by_label("Choose a picture").set_input_files([NO_PICTURE])
    expect(page.get_by_role("alert")).not_to_be_empty()
    expect(page.locator("#where")).to_be_empty()
    expect(page.locator("#legend")).to_be_hidden()


def test_button_pressed_early_applies_to_first_picture(page: Page) -> None:
    page.get_by_role("button", name="Show where").click()
    page.get_by_role("button", name="frog").click()
    assert_answered(page, "frog")
    expect(page.locator("#where")).to_contain_text("Evidence for frog: ")


def test_invalid_picture_is_reported_until_the_next(page: Page) -> None:
    page.get_by_label("Choose a picture").set_input_files([NO_PICTURE])
    expect(page.get_by_role("alert")).to_contain_text("Send JPEG, PNG, WebP, GIF, BMP or TIFF.")
    expect(page.get_by_text("Your browser cannot show this file.")).to_be_visible()
    page.get_by_role("button", name="cat").click()
    assert_answered(page)
    expect(page.get_by_alt_text("The picture", exact=True)).to_be_visible()


def test_unreachable_server_is_reported(page: Page) -> None:
    page.context.set_offline(True)
    page.get_by_label("Choose a picture").set_input_files([FILE])
    expect(page.get_by_role("alert")).to_contain_text("The server cannot be reached")


def test_page_is_labelled_for_screen_readers(page: Page) -> None:
    for role in ("button", "table", "main", "heading"):
        assert page.get_by_role(role).count() > 0
    assert page.locator("img:not([alt])").count() == 0
    controls = page.locator("input").all()
    assert controls
    for control in controls:
        assert control.evaluate("each => each.labels.length") == 1
    assert page.get_by_role("columnheader").all_inner_texts() == ["class", "probability"]
    assert page.locator("html").get_attribute("lang") == "en"


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_a_phone_with_readable_contrast(
    page: Page, server: Server, scheme: str, path: str
) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
    page.goto(server.url + path)

    def assert_fits() -> None:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360

    def brightness(value: str) -> float:
        """Return the relative luminance that WCAG defines."""
        shares = [int(each) / 255 for each in re.findall(r"\d+", value)[:3]]
        linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    assert_fits()
    ground = brightness(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (ground < 0.2) == (scheme == "dark")
    for selector in ("h1", ".quiet", "a", *(["label", "caption", "dt"] if path == "/" else [])):
        style = page.locator(selector).first.evaluate(
            """each => [getComputedStyle(each).color, getComputedStyle(each).backgroundColor]"""
        )
        ink = brightness(style[0])
        behind = ground if style[1].endswith(", 0)") else brightness(style[1])
        contrast = (max(ink, behind) + 0.05) / (min(ink, behind) + 0.05)
        assert contrast >= 4.5, f"{selector} is hard to read"
    if path == "/":
        page.get_by_role("button", name="cat").click()
        assert_answered(page)
        expect(page.locator("#frame")).to_be_in_viewport()
        assert_fits()
        page.get_by_role("button", name="Show where").click()
        expect(page.locator("#legend")).to_be_visible()
        assert_fits()
        page.get_by_label("Choose a picture").set_input_files([NO_PICTURE])
        expect(page.get_by_role("alert")).not_to_be_empty()
        assert_fits()


def test_bars_animate_unless_reduced_motion_is_preferred(page: Page) -> None:
    for motion, animation in (("reduce", "none"), ("no-preference", "grow")):
        page.emulate_media(reduced_motion=motion)  # type: ignore[arg-type]
        page.get_by_role("button", name="cat").click()
        assert_answered(page)
        expect(page.locator(".bar").first).to_have_css("animation-name", animation)
