"""Tests of the wording of everything that people read, as far as a program can check it."""

import ast
import itertools
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import App

import sprat
from sprat.cli.app import app
from sprat.zoo import ZOO

SOURCE = Path(sprat.__file__).parent
ROOT = Path(__file__).parents[2]

# words that begin sentences without a verb and dangling clauses
BARE = {
    *("After", "As", "At", "Before", "By", "For", "From", "How", "In", "Of", "On", "That", "Those"),
    *("To", "What", "When", "Where", "Whether", "Which", "With", "Within", "Without"),
}
PRONOUNS = {"It", "Its", "They", "Them", "Their", "This", "These", "That", "Those"}

# what the glossary replaces -> the words to use
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

# words that a remedy begins with
REMEDIES = (
    *("Add", "Allow", "Change", "Check", "Choose", "Convert", "Copy", "Correct", "Define"),
    *("Delete", "Derive", "Download", "End", "Extract", "Fill", "Free", "Give", "Install", "Keep"),
    *("Leave", "Let", "List", "Lower", "Make", "Measure", "Merge", "Move", "Name", "Pack", "Pool"),
    *("Put", "Raise", "Reduce", "Register", "Remove", "Rename", "Replace", "Restore", "Resume"),
    *("Save", "Search", "See", "Send", "Set", "Simplify", "Slice", "Sort", "Split", "Start"),
    *("Summarize", "Train", "Try", "Upgrade", "Use", "Wait", "Wrap", "Write"),
    *("As", "For", "If", "In", "Then"),  # before the verb
    *("Available:", "Supported:", "The default is"),  # alternatives
)
# after a full stop, or after a value that may end with one
_BETWEEN = re.compile(r"(?<=[.?]) +|(?<=\}) +(?=[A-Z{])|(?<=[.\n])\n")

# what to do belongs in a sentence of its own, not after a semicolon
_JOINED = re.compile(
    r"; (add|allow|ask|choose|close|copy|fetch|give|install|leave|make|name|put|resume|save|see|"
    r"send|set|start|take|train|try|upgrade|use|wait)\b"
)
# a message that begins in lower case begins with the name of its subject
_NAMED = re.compile(
    r"(?!there |it )[a-z_.{}]+ (is|has|contains|or|and|needs|'|\{)|(sprat|torchrun) "
)
_PASTED = re.compile(r"(pip install|sprat|ulimit) .*$|\}$|NEW_PLACE$|with$")


def avoided(text: str) -> list[str]:
    """Return the words of a text that the glossary replaces, with the words to use."""
    return [
        f"{found[0]!r}: {better}"
        for word, better in _AVOIDED.items()
        if (found := word.search(text))
    ]


def faults_of_help(text: str) -> list[str]:
    """Return the faults of a help text."""
    first = re.sub("^With --[a-z]+: ", "", text).split()[0].strip(",:")
    return (["a bare beginning"] if first in BARE - {"How"} else []) + avoided(text)


def faults_of_message(text: str) -> list[str]:
    """Return the faults of a message, in which {} stands for a value."""
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


def faults_of_error(text: str) -> list[str]:
    """Return the faults of an error message, which must also say what to do."""
    first, *others = _BETWEEN.split(text.strip())
    continued = not others and first.endswith((":", "{}"))  # in further lines, or by a value
    remedies = [
        sentence
        for sentence in others or [first]
        if sentence.startswith(tuple(f"{begin} " for begin in REMEDIES))
        or (others and sentence.startswith("{}"))  # a remedy that is filled in
    ]
    return faults_of_message(text) + ([] if continued or remedies else ["no remedy"])


def faults_of_docstring(text: str) -> list[str]:
    """Return the faults of a docstring."""
    bare = text.split()[0].strip(",:") in BARE
    return (["a bare beginning"] if bare else []) + avoided(re.sub("`[^`]*`", "", text))


def faults_of_opening(page: str, folder: str) -> list[str]:
    """Return the faults in the opening of a page of the docs."""
    title, first, *_ = [*page.split("\n\n"), ""]
    opening = {"how-to": "At the end of this page ", "explanation": "This page "}[folder]
    faults = [] if re.fullmatch("# .+", title) else ["no title"]
    return faults + ([] if first.startswith(opening) else [f"does not begin with {opening!r}"])


def prose(markdown: str) -> str:
    """Return the text of a page without code and without the targets of links."""
    text = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"`[^`]*`", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def shown_by(template: str) -> str:
    """Return the text of an HTML template without tags, styles, scripts and placeholders."""
    text = re.sub(r"<style.*?</style>|<script.*?</script>", "", template, flags=re.DOTALL)
    return re.sub(r"\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}|<[^>]*>", " ", text, flags=re.DOTALL)


def files() -> list[Path]:
    """Return every Python file of the repository."""
    folders = (SOURCE, ROOT / "tests", ROOT / "benchmarks", ROOT / "docs")
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def docstrings() -> Iterator[tuple[Path, str, str]]:
    """Yield path, name and text of every docstring, including those of fields."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            has_one = isinstance(
                node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module
            )
            name = getattr(node, "name", "")
            if has_one and (text := ast.get_docstring(node)):
                yield path, name, text
            body = node.body if isinstance(node, ast.ClassDef) else []
            for field, below in itertools.pairwise(body):
                about = below.value if isinstance(below, ast.Expr) else None
                if isinstance(field, ast.AnnAssign) and isinstance(about, ast.Constant):
                    yield path, ast.unparse(field.target), str(about.value)


def comments() -> Iterator[tuple[str, str]]:
    """Yield place and text of every comment."""
    for path in files():
        with tokenize.open(path) as file:
            for token in tokenize.generate_tokens(file.readline):
                if token.type == tokenize.COMMENT:
                    yield f"{path}:{token.start[0]}", token.string


def helps(command: App = app, name: str = "sprat") -> Iterator[tuple[str, str]]:
    """Yield name and text of every help of the command line: commands, arguments and options."""
    yield name, command.help
    for each in command:
        if each not in ("--help", "-h", "--version"):
            yield from helps(command[each], f"{name} {each}")
    if command.default_command is not None:
        for argument in command.assemble_argument_collection(parse_docstring=True):
            if argument.show:
                yield f"{name} {argument.name}", argument.parameter.help or ""


def rendered(node: ast.expr) -> str | None:
    """Return a literal message with {} for each value; None for any other expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            "{}" if isinstance(part, ast.FormattedValue) else str(part.value)  # type: ignore[attr-defined]
            for part in node.values
        )
    return None


# place of the message among the arguments of each call
ERRORS = {"SpratError": 0, "Diverged": 0, "WriteError": 0, "Refused": 2}
WARNINGS = {"warn": 0, "complain": 0}


def messages(calls: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yield place and text of every literal message in these calls."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
                place = calls.get(called, len(node.args))
                text = rendered(node.args[place]) if place < len(node.args) else None
                if text and text.strip("{} "):
                    yield f"{path.relative_to(SOURCE)}:{node.lineno}", text


def pages() -> list[Path]:
    """Return every hand-written Markdown page and every model's card."""
    hands = [path for path in (ROOT / "docs").rglob("*.md") if path.parent.name != "reference"]
    tops = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
    return sorted([*hands, *tops, ROOT / "benchmarks" / "README.md", *ZOO.rglob("CARD.md")])


def test_docstrings_follow_the_wording_rules() -> None:
    found = list(docstrings())
    assert len(found) > 1600
    wrong = [
        f"{path}, {name}: {fault}: {text.splitlines()[0]}"
        for path, name, text in found
        for fault in faults_of_docstring(text)
    ]
    assert not wrong, "\n".join(wrong)


def test_comments_use_the_words_of_the_glossary() -> None:
    found = list(comments())
    assert len(found) > 700
    wrong = [f"{at}: {fault}: {text}" for at, text in found for fault in avoided(text)]
    assert not wrong, "\n".join(wrong)


def test_help_texts_are_sentences_and_follow_the_glossary() -> None:
    found = dict(helps())
    assert len(found) > 250
    wrong = [f"{name}: nothing" for name, text in found.items() if not text.strip()]
    for name, text in found.items():
        wrong += [f"{name}: {fault}" for fault in faults_of_help(text or "…")]
        if not text.rstrip().endswith("."):
            wrong.append(f"{name}: no full stop")
    assert not wrong, "\n".join(wrong)


def test_errors_state_the_problem_and_a_remedy() -> None:
    found = list(messages(ERRORS))
    assert len(found) > 250
    wrong = [f"{at}: {fault}: {text}" for at, text in found for fault in faults_of_error(text)]
    assert not wrong, "\n".join(wrong)


def test_warnings_follow_the_wording_rules() -> None:
    found = list(messages(WARNINGS))
    assert len(found) > 10
    wrong = [f"{at}: {fault}: {text}" for at, text in found for fault in faults_of_message(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("page", pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_page_uses_the_words_of_the_glossary(page: Path) -> None:
    assert not avoided(prose(page.read_text()))


@pytest.mark.parametrize("folder", ["how-to", "explanation"])
def test_every_page_has_the_standard_opening(folder: str) -> None:
    for page in sorted((ROOT / "docs" / folder).glob("*.md")):
        assert faults_of_opening(page.read_text(), folder) == [], page


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
    "message",
    [
        "{} is damaged.",
        "epochs is {}, expected 1 to 100. It was 200.",
        "Trial {} is missing. The journal lacks it.",
    ],
)
def test_an_error_without_a_remedy_is_found(message: str) -> None:
    assert faults_of_error(message) == ["no remedy"]


@pytest.mark.parametrize(
    "message",
    [
        "{} is damaged. Copy it again, or name another file.",
        "Unknown format {}{} Available: {}.",  # the second value is a question or a full stop
        "Give at least one limit, such as --max-parameters 200k.",
        "{} cannot be written: {}",  # a reason that ends with what to do
        "No source provided {} bytes with md5 {}:",  # further lines follow
    ],
)
def test_an_error_with_a_remedy_passes(message: str) -> None:
    assert faults_of_error(message) == []


def test_rendered_joins_the_parts_of_a_message() -> None:
    call = ast.parse("""SpratError("one " f"is {1} " "and {two}.")""", mode="eval").body
    assert isinstance(call, ast.Call)
    assert rendered(call.args[0]) == "one is {} and {two}."
    assert rendered(ast.parse("words", mode="eval").body) is None


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Of the images, a share.", "bare"),
        ("How the images are read.", "bare"),
        ("What can be known before any data is there.", "bare"),
        ("Where pictures are worse.", "bare"),
        ("Return the figures beside the limits.", "next to"),
        ("Return the state.\n\nA run goes on from it.", "resume"),
    ],
)
def test_a_fault_in_a_docstring_is_found(text: str, fault: str) -> None:
    assert any(fault in found for found in faults_of_docstring(text))


@pytest.mark.parametrize(
    "text",
    ["Return the accuracy.", "Accuracy on val.", "`beside` is a parameter."],
)
def test_a_sound_docstring_passes(text: str) -> None:
    assert faults_of_docstring(text) == []


@pytest.mark.parametrize(
    ("page", "folder", "fault"),
    [
        ("# Export\n\nThis page explains exporting.", "how-to", "At the end"),
        ("# Scale\n\nAt the end of this page you know.", "explanation", "This page"),
        ("Export\n\nAt the end of this page you have a file.", "how-to", "title"),
        ("# Export", "how-to", "At the end"),
    ],
)
def test_a_fault_in_an_opening_is_found(page: str, folder: str, fault: str) -> None:
    assert any(fault in found for found in faults_of_opening(page, folder))


def test_a_sound_opening_passes() -> None:
    page = "# Export\n\nAt the end of this page you have an ONNX file.\n\nMore.\n"
    assert faults_of_opening(page, "how-to") == []


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
