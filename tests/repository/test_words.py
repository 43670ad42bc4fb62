"""How docstrings are worded, as far as a program can tell."""

import ast
from pathlib import Path

import sprat

SOURCE = Path(sprat.__file__).parent
# a sentence without a verb, or a clause that hangs in the air, begins with one of these
BARE = {
    *("After", "As", "At", "Before", "By", "For", "From", "How", "In", "Of", "On", "That", "Those"),
    *("To", "What", "When", "Where", "Whether", "Which", "With", "Within", "Without"),
}


def test_no_docstring_begins_with_a_bare_word() -> None:
    read, bare = 0, []
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
                text = ast.get_docstring(node) or ""
                read += bool(text)
                if text and text.split()[0].strip(",:") in BARE:
                    bare.append(f"{path.relative_to(SOURCE)}: {text.splitlines()[0]}")
    assert read > 1000
    assert not bare, "\n".join(bare)
