"""Draw every picture of README and docs/ from the shipped models and results/. The text that a
picture shows becomes its description.

    python docs/pictures.py [FOLDER]

Needs the packages of `dev` and `serve`, and Debian's chromium. The same versions draw the same
pictures, except for the milliseconds that the server reports.
"""

import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image, ImageEnhance, ImageOps
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Browser, Page, sync_playwright

import sprat
from sprat.data import shapes10
from sprat.figures.png import draw_pareto
from sprat.serve.samples import draw_samples
from sprat.serve.uploads import png
from sprat.zoo import cards

ROOT = Path(__file__).parents[1]
BEST = cards()[0]
NAME = BEST["name"]
LARGE = 130_000  # bytes


@dataclass(frozen=True)
class Desk:
    """Browser, server and working folder for drawing pictures."""

    browser: Browser
    server: str  # the address of `sprat serve`
    folder: Path  # for intermediate files

    @contextmanager
    def page(self, address: str, width: int, **how: Any) -> Iterator[Page]:
        page = self.browser.new_page(
            viewport={"width": width, "height": 800}, reduced_motion="reduce", **how
        )
        page.goto(address)
        yield page
        page.close()

    def run(self, *words: str) -> str:
        """Return what a sprat command prints; exit code 1 means that a check found something."""
        done = subprocess.run(
            [sys.executable, "-m", "sprat", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            text=True,
        )
        if done.returncode not in (0, 1):
            sys.exit(done.returncode)
        return done.stdout


Drawn = tuple[bytes, str]  # an image file and the text it shows


def serve(desk: Desk) -> Drawn:
    """Draw the page of `sprat serve`, wide and light."""
    with desk.page(desk.server, 1100) as page:
        return _answered(page, "cat")


def serve_phone(desk: Desk) -> Drawn:
    """Draw the same page, narrow and dark, with the evidence for the answer."""
    with desk.page(desk.server, 390, color_scheme="dark") as page:
        page.locator("#toggle").click()
        return _answered(page, "truck")


def _answered(page: Page, sample: str) -> Drawn:
    for each in ("frog", sample):  # the first answer includes loading time
        page.get_by_role("button", name=each).click()
        page.get_by_role("status").get_by_text(each).wait_for()
    return page.screenshot(full_page=True), page.inner_text("body")


def report(desk: Desk) -> Drawn:
    """Draw the top of the best model's report, down to where it would need data."""
    training = BEST["training"]
    run = ROOT / "results" / training["recipe"] / f"seed-{training['seed']}"
    none = desk.folder / "no data"
    none.mkdir()
    file = sprat.report(run, output=desk.folder / "report.html", data_dir=none, quiet=True)
    with desk.page(file.as_uri(), 1280) as page:
        last = page.locator("section", has=page.locator(".matrix"))
        return _down_to(page, last.evaluate("e => e.getBoundingClientRect().bottom"))


def _down_to(page: Page, bottom: float) -> Drawn:
    clip = {"x": 0, "y": 0, "width": page.viewport_size["width"], "height": round(bottom)}
    return page.screenshot(full_page=True, clip=clip), page.inner_text("body")


def explain(desk: Desk) -> Drawn:
    """Draw a sample truck and its class activation map."""
    file = desk.folder / "truck.png"
    file.write_bytes(png(draw_samples(["truck"])["truck"]))
    (found,) = sprat.predict(file, model=NAME, explain=desk.folder / "maps", quiet=True)
    return Path(found["map"]).read_bytes(), f"{NAME}: {found['predictions'][0]['class']}"


def augment(desk: Desk) -> Drawn:
    """Draw what the recipe reference does to images of shapes10."""
    return _drawn(desk, "augment preview --dataset shapes10 --columns 5")


def dataset(desk: Desk) -> Drawn:
    """Draw a contact sheet of shapes10."""
    return _drawn(desk, "data show --dataset shapes10 --columns 8")


def _drawn(desk: Desk, command: str) -> Drawn:
    desk.run(*command.split(), "--output", "drawn.png")
    return (desk.folder / "drawn.png").read_bytes(), ""


def check(desk: Desk) -> Drawn:
    """Draw the page of `sprat data check` about shapes with several kinds of faults."""
    drawn, _ = shapes10.load(seed=2, train_images=80, test_images=1)
    folder = desk.folder / "shapes"

    def put(image: Image.Image, part: str, kind: int, name: str) -> None:
        file = folder / part / shapes10.CLASSES[kind] / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)

    kinds = [int(kind) for kind in drawn.targets]
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in drawn.images[:]]
    for number, (image, kind) in enumerate(zip(pictures, kinds, strict=True)):
        put(image, "train" if number < 60 else "test", kind, f"{number:02}")
    put(ImageEnhance.Brightness(pictures[0]).enhance(1.15), "test", kinds[0], "brighter")
    put(ImageOps.mirror(pictures[1]), "train", kinds[1], "mirrored")
    put(pictures[2], "train", (kinds[2] + 1) % len(shapes10.CLASSES), "other label")
    put(Image.new("RGB", (32, 32), "navy"), "train", kinds[3], "blank")
    desk.run("data", "check", "shapes", "--output", "check.html")
    with desk.page((desk.folder / "check.html").as_uri(), 1280) as page:
        shorten = (
            "parent => document.body.innerHTML = document.body.innerHTML.replaceAll(parent, '')"
        )
        page.evaluate(shorten, f"{desk.folder.resolve()}/")
        classes = page.locator("section", has=page.locator("table")).last
        return _down_to(page, classes.evaluate("e => e.getBoundingClientRect().top"))


def comparison(desk: Desk) -> Drawn:
    """Draw accuracy against parameters with the command that its page shows."""
    (desk.folder / "results").symlink_to(ROOT / "results")
    page = (ROOT / "docs" / "explanation" / "other-networks.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^\$ sprat (compare .*) --output comparison.png$", page, re.MULTILINE)
    return _drawn(desk, command)


def pareto(desk: Desk) -> Drawn:
    """Draw the networks that the measured search tried, as the search itself does."""
    found = json.loads((ROOT / "results" / "search.json").read_text(encoding="utf-8"))["find"]
    trained = [trial for trial in found["trials"] if trial["state"] != "refused"]
    file = draw_pareto(trained, found["winner"], found["limits"], desk.folder / "pareto.png")
    return file.read_bytes(), ""


def field(desk: Desk) -> Drawn:
    """Draw the effective receptive field of a pretrained model, with its side as text."""
    file = desk.folder / "field.png"
    said = desk.run("summary", "OptimizedCIFAR10Net200K", "--effective", str(file))
    (side,) = re.findall(r"effective field +([\d.]+) px", said)
    return file.read_bytes(), f"{float(side):.0f} px"


def cost(desk: Desk) -> Drawn:
    """Draw what training costs, according to the last measurement."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    draw = runpy.run_path(str(ROOT / "benchmarks" / "cost.py"))["draw"]
    measured = json.loads((ROOT / "results" / "cost.json").read_text(encoding="utf-8"))["measured"]
    draw(measured, desk.folder / "cost.png")
    return (desk.folder / "cost.png").read_bytes(), ""


PICTURES = {
    "docs/images/serve.png": serve,
    "docs/images/serve-phone.png": serve_phone,
    "docs/images/report.png": report,
    "docs/images/explain.png": explain,
    "docs/images/augment.png": augment,
    "docs/images/shapes10.png": dataset,
    "docs/images/data-check.png": check,
    "docs/images/pareto.png": pareto,
    "results/comparison.png": comparison,
    "results/effective-field.png": field,
    "results/cost.png": cost,
}


@contextmanager
def serving() -> Iterator[str]:
    """Run `sprat serve` with the best model on a free port."""
    command = [sys.executable, "-m", "sprat", "serve", NAME, "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            ready = re.search(r"http://\S+", said)
            if ready is None:
                sys.exit(f"sprat serve did not start: {said}")
            yield ready[0]
        finally:
            process.terminate()


def save(path: Path, image: bytes, text: str) -> None:
    """Write a PNG, with 256 colours if it is large and with `text` as its description."""
    picture, about, file = Image.open(io.BytesIO(image)).convert("RGB"), PngInfo(), io.BytesIO()
    about.add_itxt("Description", " ".join(text.split()), zip=True)
    picture.save(file, "PNG", optimize=True, pnginfo=about)
    if file.tell() > LARGE:
        file = io.BytesIO()
        few = picture.quantize(dither=Image.Dither.NONE)
        few.save(file, "PNG", optimize=True, pnginfo=about)
    path.write_bytes(file.getvalue())


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("This needs a browser. Install Debian's package chromium.")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []  # Chromium's sandbox refuses root
    with TemporaryDirectory() as name, serving() as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=as_root)
        desk = Desk(browser, server, Path(name))
        for picture, draw in PICTURES.items():
            file = folder / Path(picture).name if folder else ROOT / picture
            file.parent.mkdir(exist_ok=True)
            save(file, *draw(desk))
            print(f"{file}: {file.stat().st_size:,} bytes", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
