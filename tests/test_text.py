"""Tests of names and values from outside in every command: shown as is, never interpreted."""

import ast
import io
import json
import os
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Here
from markup import Page
from PIL import Image
from rich.text import Text

import sprat
from sprat.cli import app
from sprat.data import load_dataset
from sprat.data.imageset import ImageSet
from sprat.display import make_console
from sprat.errors import SpratError
from sprat.figures import png
from sprat.figures.data import confusion, worst_mistakes
from sprat.serve import pages
from sprat.text import code, command, markdown, visible

# names that a terminal, rich, matplotlib, HTML, Markdown or a shell could interpret
NAMES = [
    "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "\x9b31m", "a\nsprat: all is well", "a\r\tb", "\x7f",
    "png\u202egpj", "\u2066a", "a\u2028b", "[red]a[/red]", "[/x]", "[link=file:x]a", ":smile:",
    "$x_1$", "$\\frac$", "$ %", "_a", "*a* `b` ~c~", "a|b", "<script>alert(1)</script>",
    "&lt;", "{{ 7 * 7 }}", "{task.total}", "%s", "'; rm -rf \"$HOME\" #",
    "-a", "!x", "日本", "e\u0301",
]  # fmt: skip
CLASSES = sorted(name.replace("/", "\u2215") for name in NAMES)  # folder names have no slash
FORBIDDEN = set(map(chr, [*range(10), *range(11, 32), *range(127, 160), 0x202E, 0x2066, 0x2028]))


def obeyed(text: str) -> set[str]:
    """Return the characters that a terminal would interpret, apart from line feeds."""
    return FORBIDDEN & set(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("names")


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """Dataset with a class per name, with hostile file names: two in train/, one in test/."""
    rng = np.random.default_rng(0)
    folder = place / "set $x$\x1b[1m [b]\n"
    for part, count in (("train", 2), ("test", 1)):
        for name in CLASSES:
            (folder / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}\x1b[32m\n[b].png")
    return folder


@pytest.fixture(scope="module")
def run(place: Path, folder: Path) -> Path:
    recipe = place / "recipe `a` $b$ \x1b[31m.toml"
    text = (Path(sprat.__file__).parent / "settings" / "recipes" / "quick.toml").read_text()
    recipe.write_text(text, encoding="utf-8")
    run = place / "run $y \x1b[31m[b]'\n"
    words = ["train", "--recipe", recipe, "--dataset", folder, "--pictures.side", 16, "--epochs", 1]
    words += ["--optim.warmup-epochs", 0, "--batch-size", 29, "--threads", 1, "--output", run]
    words += ["--kernels", "torch", "--final", "--tta", 1]
    words += ["--model", "SpratNet", "--network.widths", "8,12", "--network.depth", 1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert app([*map(str, words)], result_action="return_value") == 0
    return run


@pytest.fixture(autouse=True)
def _cached_there(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))


@pytest.mark.parametrize("name", NAMES)
def test_visible_name_is_one_printable_line(name: str) -> None:
    shown = visible(name)
    assert not obeyed(shown)
    assert "\n" not in shown
    assert visible(shown) == shown


@pytest.mark.parametrize(
    "name", ["日本 \u0645\u06cc\u200c\u062e\u0648", "\N{FAMILY}", "C:\\new", "a\u00a0b"]
)
def test_harmless_unicode_is_unchanged(name: str) -> None:
    assert visible(name) == name


def test_non_utf_8_names_are_escaped(tmp_path: Path, here: Here) -> None:
    path = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    Path(path).write_bytes(b"no picture")
    done = here("predict", "SpratS", path)
    assert done.returncode == 2
    assert r"\udcff.png cannot be read as a picture" in done.stderr


@pytest.mark.parametrize("name", [*NAMES, os.fsdecode(b"\xff")])
def test_a_command_can_be_pasted(name: str) -> None:
    pasted = command("printf", "%s", Path("x") / name)
    assert not obeyed(pasted)
    assert "\n" not in pasted
    done = subprocess.run(["bash", "-c", pasted], capture_output=True, check=True)
    assert done.stdout == os.fsencode(Path("x") / name)


def test_path_with_leading_dash_is_no_option() -> None:
    assert shlex.split(command("sprat", "evaluate", Path("-x"))) == ["sprat", "evaluate", "./-x"]


def test_markdown_is_escaped() -> None:
    assert markdown("a|b*c*<x>$y$`z`:smile: 3:4 &lt; &\n") == (
        r"a\|b\*c\*\<x\>\$y\$\`z\`\:smile: 3:4 \&lt; &\n".replace("\\n", "\\\\n")
    )
    assert code("a") == "`a`"
    assert code("a`b``c") == "``` a`b``c ```"


@pytest.mark.parametrize("name", NAMES)
def test_error_escapes_line_breaks_in_names(name: str) -> None:
    error = SpratError(f"there is no {name}", f"  {name}")
    assert str(error) == f"there is no {visible(name)}\n  {visible(name)}"


@pytest.mark.parametrize("name", NAMES)
def test_console_prints_text_without_interpreting_it(name: str) -> None:
    out = io.StringIO()
    console = make_console()
    console.file = out
    console.print(visible(name))
    assert out.getvalue() == visible(name) + "\n"
    console.print(name)
    assert not obeyed(out.getvalue())
    assert isinstance(console.render_str(name), Text)
    assert console.render_str(name).spans == []


TYPED = [
    "models {}", "train --recipe={}", "train --epochs={}", "train --model={}", "summary {}",
    "check {} --max-parameters=9", "evaluate {}", "export {}", "predict {}", "serve {}",
    "data verify --dataset={}", "data verify --data-dir={}", "data show --dataset={}", "compare {}",
    "report {}", "{}", "models --{}", "data show --output={}",
]  # fmt: skip


@pytest.mark.parametrize("words", TYPED)
def test_typed_values_are_escaped_in_errors(words: str, here: Here) -> None:
    for names in (NAMES[:14], NAMES[14:]):
        value = "x" + "x".join(names)
        done = here(*(word.replace("{}", value) for word in words.split()))
        assert done.returncode == 2
        assert done.stderr.startswith("sprat: ")
        assert not obeyed(done.stdout + done.stderr)
        assert "sprat: all is well" not in done.stderr.splitlines()
        assert "Traceback" not in done.stderr


class TestCommands:
    def test_print_escaped_names(self, folder: Path, run: Path, place: Path, here: Here) -> None:
        show, page = place / "show \x1b[1m.png", place / "page.html"
        pictures = folder / "train" / NAMES[0]
        for words, names in (
            (("evaluate", run), CLASSES),
            (("predict", run, pictures), []),
            (("summary", run), []),
            (("check", run, "--max-parameters", 9_000_000), []),
            (("compare", run, "--no-published"), []),
            (("compare", run, "--no-published", "--output", place / "c.png"), []),
            (("data", "show", "--dataset", folder, "--pictures.side", 16, "--output", show), []),
            (("report", run, "--output", page), []),
            (("export", run, "--output", place / "a\x1b[1m.pth", "--format", "pth"), []),
            (("train", "--output", run), []),
        ):
            done = here(*words)
            said = done.stdout + done.stderr
            assert not obeyed(said), words
            assert done.returncode == (2 if words[0] == "train" else 0), said
            assert "Traceback" not in said
            lines = [line.strip() for line in said.splitlines()]
            for name in names:
                assert any(line.startswith(visible(name)) for line in lines), name
            if words[0] == "train":
                assert command("sprat", "train", "--resume", run) in said

    def test_json_has_the_exact_names(self, folder: Path, run: Path, here: Here) -> None:
        (picture, *_) = sorted((folder / "train" / NAMES[0]).iterdir())
        evaluated = json.loads(here("evaluate", run, "--json").stdout)
        assert list(evaluated["per_class"]) == CLASSES
        (predicted,) = json.loads(here("predict", run, picture, "--json").stdout)
        assert predicted["file"] == str(picture)

    def test_report_page_escapes_names(self, run: Path, place: Path, here: Here) -> None:
        path = place / "page.html"
        assert here("report", run, "--output", path, "--overwrite").returncode == 0
        page = Page(path)
        assert not obeyed(page.source)
        assert list(page.all("script")) == []
        shown = [text for _, text in page.all("th", scope="row")]
        for name in CLASSES:
            assert " ".join(visible(name).split()) in map(str.strip, shown), name

    def test_markdown_has_one_line_per_row(self, run: Path, here: Here) -> None:
        table = here("compare", run, "--no-published", "--markdown").stdout.splitlines()
        assert len(table) == 3
        assert r"recipe \`a\` \$b\$ \\x1b\[31m.toml" in table[2]

    def test_served_page_escapes_names(self, run: Path) -> None:
        model = sprat.load(run)
        given = type("Given", (), {"name": model.name, "classes": model.classes, "side": 16})()
        given.network, given.about = torch.nn.Identity(), model.about
        openapi = {"info": {}, "paths": {}, "components": {"schemas": {}}}
        html = pages.fixed_answers(given, run, openapi)["/"].content.decode()  # type: ignore[arg-type]
        assert not obeyed(html)
        assert "<script>alert" not in html


def test_plots_draw_names_without_mathtext(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check that mathtext, which formulas go through, is never called."""
    from matplotlib.mathtext import MathTextParser

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a formula")

    monkeypatch.setattr(MathTextParser, "parse", refuse)
    count = len(NAMES)
    images = torch.zeros(count, 3, 8, 8, dtype=torch.uint8)
    plain = ImageSet(images, torch.arange(count), tuple(NAMES))
    probabilities = torch.eye(count).roll(1, 1)
    png.draw_contact_sheet(plain, "$\\frac$ \x1b", tmp_path / "a.png", columns=2)
    mistakes = worst_mistakes(plain, probabilities, 24)
    png.draw_mistakes(mistakes, "$\\frac$", tmp_path / "b.png")
    evaluation = {"per_class": dict.fromkeys(NAMES), "confusion": torch.eye(count).int().tolist()}
    png.draw_confusion(confusion(evaluation), tmp_path / "c.png")
    entries = [
        png.Entry(name, 100_000 + 3_000 * i, None, None, 0.0, "test", name, ci95=(1e-17, 0.2))
        for i, name in enumerate(NAMES)
    ]
    png.draw_comparison(entries, tmp_path / "d.png")
    png.draw_comparison(entries[:1], tmp_path / "e.png")


def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    for name in (b"a", b"\xff"):
        (tmp_path / os.fsdecode(name)).mkdir()
    with pytest.raises(SpratError, match=r"\\udcff has a name that is not UTF-8. Rename"):
        load_dataset(str(tmp_path))


def test_error_arguments_contain_no_line_breaks() -> None:
    """Check that SpratError's arguments, one per line, have no line break: it is shown as \\n."""
    for path in Path(sprat.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "SpratError":
                broken = [
                    each
                    for argument in node.args
                    for each in ast.walk(argument)
                    if isinstance(each, ast.Constant) and "\n" in str(each.value)
                ]
                assert not broken, f"{path}:{node.lineno}"
