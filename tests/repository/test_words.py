"""How everything that people read is worded, as far as a program can check it."""

import ast
import inspect
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

import sprat
from sprat.cli.app import app
from sprat.zoo import ZOO

SOURCE = Path(sprat.__file__).parent
ROOT = Path(__file__).parents[2]

# a sentence without a verb, or a clause that hangs in the air, begins with one of these
BARE = {
    *("After", "As", "At", "Before", "By", "For", "From", "How", "In", "Of", "On", "That", "Those"),
    *("To", "What", "When", "Where", "Whether", "Which", "With", "Within", "Without"),
}
PRONOUNS = {"It", "Its", "They", "Them", "Their", "This", "These", "That", "Those"}

# what the glossary replaces, and by what
AVOIDED = {
    r"beside": "next to, compared with",
    r"(go|goes|going|gone|went) on": "resume, continue",
    r"lies?|lying": "is in",
    r"judg\w*": "evaluate",
    r"tell|tells|told|telling": "report, print, say",
    r"knows|kernels do not know": "support",
    r"the brief": "the original project",
    r"experiments?|presets?": "run, recipe",
    r"validation (set|images|accuracy)": "val",
    r"anew": "again",
    r"under way": "in progress",
    r"uneven": "imbalanced",
    r"rightly": "correctly",
    r"comes? to nothing": "has no effect",
    r"such as have": "those that have",
    r"(?<!there )is no (picture|file|folder|dataset|archive|table|run|model|network)": "is not a …",
    r"mend": "repair",
}
_AVOIDED = {re.compile(rf"\b({word})\b", re.IGNORECASE): better for word, better in AVOIDED.items()}

# another sentence, which says what to do, is another sentence
_JOINED = re.compile(
    r"; (add|allow|ask|choose|close|copy|fetch|give|install|leave|make|name|put|resume|save|see|"
    r"send|set|start|take|train|try|upgrade|use|wait)\b"
)
# a message that begins in lower case begins with the name of what it is about
_NAMED = re.compile(
    r"(?!there |it )[a-z_.{}]+ (is|has|contains|or|and|needs|'|\{)|(sprat|torchrun) "
)
_PASTED = re.compile(r"(pip install|sprat|ulimit) .*$|\}$|NEW_PLACE$|with$")


def avoided(text: str) -> list[str]:
    """Words of a text that the glossary replaces."""
    return [
        f"{found[0]!r}: {better}"
        for word, better in _AVOIDED.items()
        if (found := word.search(text))
    ]


def faults_of_help(text: str) -> list[str]:
    """What is wrong with a docstring's first sentence, or with a help text."""
    first = re.sub("^With --[a-z]+: ", "", text).split()[0].strip(",:")
    return (["a bare beginning"] if first in BARE - {"How"} else []) + avoided(text)


def faults_of_message(text: str) -> list[str]:
    """What is wrong with a message, in which {} stands for a value."""
    text = text.strip()
    faults = avoided(re.sub(r"\{[^{}]*\}", "", text))
    first = text.split()[0].strip(",:")
    if first in PRONOUNS or first.lower() in {"it", "they", "them", "this"}:
        faults.append("a pronoun without a noun")
    if first in BARE - {"For", "With"}:
        faults.append("a bare beginning")
    if text[0].islower() and not _NAMED.match(text):
        faults.append("a beginning in lower case")
    if not text.endswith((".", ":")) and not _PASTED.search(text):
        faults.append("no full stop")
    if joined := _JOINED.search(text):
        faults.append(f"sentences joined by a semicolon: {joined[0]!r}")
    for pronoun in re.finditer(r"\b(they|them)\b", text):
        if not re.search(r"(?!\b(is|was|has|this)\b)\b\w*s\b|\}", text[: pronoun.start()]):
            faults.append("a pronoun without a noun")
    return faults


def prose(markdown: str) -> str:
    """The sentences of a page, without code, tables' rules, links' targets and what is printed."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def shown_by(template: str) -> str:
    """The text of a page of HTML, without its tags, styles and what the template fills in."""
    text = re.sub(r"<style.*?</style>|<script.*?</script>", "", template, flags=re.DOTALL)
    return re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", text, flags=re.DOTALL)


def docstrings() -> Iterator[tuple[Path, str, str]]:
    """Path, name and text of every docstring of the package, those below fields among them."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            has_one = isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
            name = getattr(node, "name", "")
            if has_one and (text := ast.get_docstring(node)):
                yield path.relative_to(SOURCE), name, text
            body = node.body if isinstance(node, ast.ClassDef) else []
            for field, below in itertools.pairwise(body):
                about = below.value if isinstance(below, ast.Expr) else None
                if isinstance(field, ast.AnnAssign) and isinstance(about, ast.Constant):
                    yield path.relative_to(SOURCE), ast.unparse(field.target), str(about.value)


def helps(command: App = app, name: str = "sprat") -> Iterator[tuple[str, str]]:
    """Name and text of every help of the command line: of commands, arguments and options."""
    yield name, command.help
    for each in command:
        if each not in ("--help", "-h", "--version"):
            yield from helps(command[each], f"{name} {each}")
    if command.default_command is not None:
        for argument in command.assemble_argument_collection(parse_docstring=True):
            if argument.show:
                yield f"{name} {argument.name}", argument.parameter.help or ""


def rendered(node: ast.expr) -> str | None:
    """A literal message, with {} around what is filled in; None for another expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            "{}" if isinstance(part, ast.FormattedValue) else str(part.value)  # type: ignore[attr-defined]
            for part in node.values
        )
    return None


def messages() -> Iterator[tuple[str, str]]:
    """Place and text of every literal message: errors, refusals, warnings."""
    said = {"SpratError": 0, "WriteError": 0, "Refused": 2, "warn": 0, "complain": 0}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                place = said.get(ast.unparse(node.func).split(".")[-1], len(node.args))
                text = rendered(node.args[place]) if place < len(node.args) else None
                if text and text.strip("{} "):
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def pages() -> list[Path]:
    """Every page of Markdown that is written by hand, and the cards."""
    hands = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]
    tops = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return sorted([*hands, *tops, ROOT / "benchmarks" / "README.md", *ZOO.rglob("CARD.md")])


def test_no_docstring_begins_with_a_bare_word() -> None:
    read, bare = 0, []
    for path, name, text in docstrings():
        read += 1
        if text.split()[0].strip(",:") in BARE:
            bare.append(f"{path}, {name}: {text.splitlines()[0]}")
    assert read > 1000
    assert not bare, "\n".join(bare)


def test_public_docstrings_use_the_words_of_the_glossary() -> None:
    wrong = []
    for name in sprat.__all__:
        text = inspect.getdoc(getattr(sprat, name)) or ""
        wrong += [f"sprat.{name}: {fault}" for fault in avoided(re.sub(r"`[^`]*`", "", text))]
    assert not wrong, "\n".join(wrong)


def test_every_help_is_a_sentence_in_the_words_of_the_glossary() -> None:
    found = dict(helps())
    assert len(found) > 250
    wrong = [f"{name}: nothing" for name, text in found.items() if not text.strip()]
    for name, text in found.items():
        wrong += [f"{name}: {fault}" for fault in faults_of_help(text or "…")]
        if not text.rstrip().endswith("."):
            wrong.append(f"{name}: no full stop")
    assert not wrong, "\n".join(wrong)


def test_every_message_says_in_sentences_what_is_wrong_with_what() -> None:
    found = list(messages())
    assert len(found) > 250
    wrong = [f"{at}: {fault}: {text}" for at, text in found for fault in faults_of_message(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_uses_the_words_of_the_glossary(page: Path) -> None:
    assert not avoided(prose(page.read_text()))


@pytest.mark.parametrize("folder", ["how-to", "explanation"])
def test_every_page_opens_with_what_the_reader_has_at_its_end(folder: str) -> None:
    opening = {"how-to": "At the end of this page ", "explanation": "This page "}[folder]
    for page in sorted((ROOT / "docs" / folder).glob("*.md")):
        title, first, *_ = page.read_text().split("\n\n")
        assert title.startswith("# "), page
        assert first.startswith(opening), page


@pytest.mark.parametrize(
    "template", sorted(SOURCE.rglob("*.html")), ids=lambda path: str(path.relative_to(SOURCE))
)
def test_every_template_uses_the_words_of_the_glossary(template: Path) -> None:
    assert not avoided(shown_by(template.read_text()))


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ("there is no {}. Give another.", "lower case"),
        ("{} cannot be read; give another file", "full stop"),
        ("{} cannot be read; give another file.", "semicolon"),
        ("They do not support {}. Use --kernels torch.", "pronoun"),
        ("Nothing was found where they were. Look again.", "pronoun"),
        ("Of {} images none is left. Add some.", "bare"),
        ("{} lies in another folder. Move that.", "is in"),
        ("{} is no picture. Give another file.", "is not a"),
        ("The kernels do not know {}. Use --kernels torch.", "support"),
    ],
)
def test_a_fault_in_a_message_is_found(message: str, fault: str) -> None:
    assert any(fault in found for found in faults_of_message(message))


@pytest.mark.parametrize(
    "message",
    [
        "{} is damaged. Copy it again, or name another file.",
        "epochs is {}, expected 1 to 100. Give another number.",
        "{} is not installed. Install it with pip install 'sprat[onnx]'",
        "The classes {} are not in the model, because they were renamed. Name others.",
    ],
)
def test_a_sound_message_passes(message: str) -> None:
    assert faults_of_message(message) == []


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Of all images.", "bare"),
        ("Where pictures are worse.", "bare"),
        ("Report images/s beside PyTorch.", "next to"),
        ("Epochs between judgements.", "evaluate"),
    ],
)
def test_a_fault_in_a_help_is_found(text: str, fault: str) -> None:
    assert any(fault in found for found in faults_of_help(text))


def test_a_fault_in_a_page_is_found_and_code_is_left_out() -> None:
    page = "# Page\n\nRun `sprat tell` as [told](beside.md).\n\n```\nbeside\n```\n"
    assert avoided(prose(page)) == ["'told': report, print, say"]
    template = "<p title='beside'>{{ beside }} {% if anew %}Uneven classes{% endif %}</p>"
    assert avoided(shown_by(template)) == ["'Uneven': imbalanced"]
