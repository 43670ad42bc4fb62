"""Parser of HTML pages for tests."""

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Elements of an HTML page with attributes and text, in order. Fails if tags do not nest."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[tuple[str, dict[str, str], list[str]]] = []
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags are left open"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert len(values) == len(attrs), f"an attribute of {tag} is given twice"
        element: tuple[str, dict[str, str], list[str]] = (tag, values, [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}, []))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"{tag} is closed but was not open"
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, _, text in self.open:
            text.append(data)

    def all(self, *tags: str, **with_values: str) -> Iterator[tuple[dict[str, str], str]]:
        """Yield attributes and text of elements with these tags; all white space becomes spaces."""
        for tag, values, text in self.elements:
            if tag in tags and with_values.items() <= values.items():
                yield values, " ".join("".join(text).split())

    @property
    def text(self) -> str:
        return next(self.all("body"))[1]

    def tables(self) -> Iterator[list[list[str]]]:
        """Yield the rows of each table, each as a list of its cells' text."""
        for part in re.findall(r"<table.*?</table>", self.source, re.DOTALL):
            rows = re.findall(r"<tr.*?</tr>", part, re.DOTALL)
            cells = [re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows]
            yield [[" ".join(re.sub("<[^>]*>", "", cell).split()) for cell in row] for row in cells]
