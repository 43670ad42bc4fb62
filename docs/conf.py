"""Sphinx configuration of the site: README, docs/, the models' cards and the docstrings.

    make docs

Its source is the whole repository, so that relative links work on the site as on a code host.
"""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import sprat

ROOT = Path(__file__).parents[1]
PYTHON = "docs/reference/python"

project = "sprat"
author = "The sprat developers"
project_copyright = author
release = sprat.__version__

root_doc = "README"
cards = [f"src/sprat/zoo/{path.parent.name}/CARD" for path in ROOT.glob("src/sprat/zoo/*/CARD.md")]
more = ["CONTRIBUTING", "CHANGELOG", "benchmarks/README"]
include_patterns = ["README.md", "docs/**.md", *(f"{page}.md" for page in more)]
include_patterns += [f"{card}.md" for card in cards]
exclude_patterns = [".*", "build", "results", "runs", "tests"]  # they contain no pages

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
smartquotes = False  # keeps --option as it is typed
default_role = "code"  # for `name` in docstrings
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring, napoleon_numpy_docstring = True, False
toc_object_entries = False  # the page's own headings are enough
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # types without a page; `public` resolves the others

html_theme = "furo"
html_title = "sprat"
html_favicon = html_logo = "../src/sprat/serve/page/icon.svg"
html_static_path = ["site"]
html_css_files = ["site.css"]
html_copy_source = False  # the sources are in the repository
parts = ("brand-primary", "brand-content", "brand-visited", "api-name", "api-pre-name")
coloured = [f"color-{part}" for part in parts]
html_theme_options = {  # same colours as on the pages of sprat serve
    "light_css_variables": dict.fromkeys(coloured, "#0f6f7c"),
    "dark_css_variables": dict.fromkeys(coloured, "#5cc0cb"),
}


def navigation(readme: str) -> str:
    """Return a table of contents per folder in the README's order; other pages come last."""
    order = re.findall(r"\]\(([\w/.-]+)\.md\)", readme.partition("## Documentation")[2])

    def pages(folder: str) -> list[str]:
        found = sorted(f"{folder}/{path.stem}" for path in (ROOT / folder).glob("*.md"))
        return sorted(found, key=lambda page: order.index(page) if page in order else len(order))

    groups = {
        "How to": pages("docs/how-to"),
        "Why": pages("docs/explanation"),
        "Reference": pages("docs/reference"),
        "Pretrained models": sorted(cards),
        "Project": [*pages("docs"), *more],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```\n"
        for caption, names in groups.items()
    )


def documented(page: str) -> str:
    """Replace the signatures and docstrings of the Python reference with autodoc directives."""

    def directive(found: re.Match[str]) -> str:
        name, thing = found[2].strip("`").removeprefix("sprat."), sprat
        for part in name.split("."):
            thing = getattr(thing, part)
        kind = "class" if isinstance(thing, type) else "method" if "." in name else "function"
        return f"{found[1]} {found[2]}\n\n```{{eval-rst}}\n.. auto{kind}:: sprat.{name}\n```\n\n"

    signature, docstring = r"(?:```python\n[^`]*```\n+)?", r"(?:(?: {4}.*)?\n)*"
    return re.sub(rf"^(##+) (\S+)\n+{signature}{docstring}", directive, page, flags=re.MULTILINE)


def read(app: Sphinx, name: str, source: list[str]) -> None:
    if name == root_doc:
        source[0] += navigation(source[0])
    elif name == PYTHON:
        source[0] = documented(source[0])


def without_fields(
    app: Sphinx, what: str, name: str, thing: Any, options: Any, signature: str, returns: str
) -> tuple[str, None] | None:
    """Omit the signature of a data class, whose fields the page lists."""
    return ("", None) if dataclasses.is_dataclass(thing) and what == "class" else None


def examples(app: Sphinx, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Make an indented paragraph below one that is not indented a code block, as in Markdown."""
    text = re.sub(r"^(\S.*)\n\n(?= {4})", r"\1\n\n::\n\n", "\n".join(lines), flags=re.MULTILINE)
    lines[:] = text.split("\n")


def public(app: Sphinx, env: Any, node: Any, content: Any) -> Any:
    """Link an annotation's full name, or a docstring's short one, to the public name."""
    target = node["reftarget"]
    name = target.split(".")[-1]
    if node.get("refdomain") != "py" or name not in sprat.__all__:
        return None
    if target not in (name, f"{getattr(sprat, name).__module__}.{name}"):
        return None
    return env.domains["py"].resolve_xref(
        env, node["refdoc"], app.builder, "obj", f"sprat.{name}", node, content
    )


def front_page(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        shutil.copy(app.outdir / f"{root_doc}.html", app.outdir / "index.html")


def setup(app: Sphinx) -> None:
    app.connect("source-read", read)
    app.connect("autodoc-process-signature", without_fields)
    app.connect("autodoc-process-docstring", examples, priority=400)  # runs before napoleon
    app.connect("missing-reference", public)
    app.connect("build-finished", front_page)
