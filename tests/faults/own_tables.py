"""Hostile tables in CSV, TSV and JSON lines: odd text, columns, paths, labels and splits."""

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from faults.cases import Kind
from faults.own import Ends, Variant, flip, kind
from faults.sound import Sound
from faults.world import World

LONG = "x" * 100_000


def tables(world: World) -> Kind:
    """Tables with something wrong or odd, for every command that reads tables."""
    sound = Sound(world)
    return kind(
        world,
        sound,
        [*_texts(sound), *_paths(sound), *_labels(sound), *_parts(sound), *_lines(sound)],
    )


def _variant(
    sound: Sound, name: str, ends: Ends, content: bytes | str, file: str = "a.csv"
) -> Variant:
    def make(folder: Path, rng: random.Random) -> Path:
        sound.copy(folder)
        raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        (folder / file).write_bytes(raw)
        return folder / file

    return Variant(name, make, ends)


def _csv(rows: list[tuple[str, ...]], *header: str) -> str:
    return "".join(",".join(row) + "\n" for row in [header or ("path", "label"), *rows])


def _texts(sound: Sound) -> Iterator[Variant]:
    whole, rows = sound.table(), sound.rows
    bytes_of = whole.encode()
    texts: list[tuple[str, Ends, bytes | str]] = [
        ("as it should be", "same", whole),
        ("with a BOM", "same", "\ufeff" + whole),
        ("with two BOMs", "any", "\ufeff\ufeff" + whole),
        ("UTF-16", "refused", whole.encode("utf-16")),
        ("UTF-32", "refused", whole.encode("utf-32")),
        ("Latin-1", "refused", whole.replace("class-1", "é", 1).encode("latin-1")),
        ("Windows' line ends", "same", whole.replace("\n", "\r\n")),
        ("old Macintosh's line ends", "same", whole.replace("\n", "\r")),
        ("without a last line end", "same", whole[:-1]),
        ("NUL at the end", "refused", whole + "\0"),
        ("NULs alone", "refused", bytes(10_000)),
        ("a NUL in a path", "any", whole.replace("0.png", "0\0.png", 1)),
        ("empty", "refused", ""),
        ("line ends alone", "refused", "\n" * 1_000_000),
        ("spaces alone", "refused", " " * 1_000_000),
        ("commas alone", "refused", "," * 1_000_000),
        ("a header alone", "refused", "path,label\n"),
        ("without a header", "refused", _csv(rows[1:], *rows[0])),
        ("a header twice", "unreadable", "path,label\n" + whole),
        (
            "two columns of one name",
            "refused",
            _csv([(*r, "x") for r in rows], "path", "label", "label"),
        ),
        (
            "two columns without a name",
            "any",
            _csv([(*r, "x", "y") for r in rows], "path", "label", "", ""),
        ),
        (
            "an index without a name",
            "same",
            _csv([(str(n), *r) for n, r in enumerate(rows)], "", "path", "label"),
        ),
        ("a million columns", "refused", ",".join(f"c{n}" for n in range(1_000_000)) + "\n"),
        ("a million cells in a row", "any", whole + "class-0/0.png,class-0" + ",x" * 1_000_000),
        ("rows that end too soon", "refused", whole + "class-0/0.png\n"),
        ("rows that are too long", "any", whole.replace("class-2\n", "class-2,x,y\n")),
        ("a quote that never ends", "refused", whole + '"class-0/0.png,class-0'),
        ("a quote within a cell", "any", whole + 'class-0/0.png,cla"ss-0\n'),
        ("a quoted line end", "unreadable", whole + '"class-0/\n0.png",class-0\n'),
        ("quoted cells", "same", whole.replace("class-2/1.png", '"class-2/1.png"')),
        ("a cell of 100,000 characters", "unreadable", whole + f"{LONG},class-0\n"),
        ("a name of 100,000 characters", "any", whole.replace("label\n", f"label,{LONG}\n")),
        ("a cell of 200,000 characters", "refused", whole + f"{LONG}{LONG},class-0\n"),
        ("a control character in a name", "any", whole.replace("label", "\x1b[31mlabel", 1)),
        ("a column of one character that turns", "any", whole.replace("label", "\u202elabel", 1)),
        ("a separator that changes", "refused", whole.replace(",class-2", ";class-2")),
        ("semicolons", "same", sound.table(";")),
        ("tabs", "same", sound.table("\t")),
        ("HTML", "refused", "<!DOCTYPE html><html><body>404, not found</body></html>"),
        ("JSON", "refused", json.dumps(rows)),
        ("a PNG", "refused", b"\x89PNG\r\n\x1a\n" + bytes(100)),
        ("a spreadsheet", "refused", b"PK\3\4" + bytes(100)),
        (
            "a pointer of Git LFS",
            "refused",
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        ),
        ("70 MB", "refused", whole + "\n" * (70 << 20)),
        ("60 MB of rows", "any", whole + "class-0/0.png,class-0\n" * 1_900_000),
        ("2,000,001 rows", "refused", whole + "a,b\n" * 2_000_001),
        ("rows in another order", "same", _csv(rows[::-1])),
        ("a row twice", "same", _csv([*rows, rows[0]])),
        (
            "three columns that are called paths",
            "any",
            _csv([(*r, r[0], r[0]) for r in rows], "path", "label", "file", "image"),
        ),
    ]
    for name, ends, text in texts:
        yield _variant(sound, name, ends, text)
    yield _variant(sound, "a TSV with commas", "refused", whole, "a.tsv")
    yield Variant(
        "cut", lambda f, r: _spoilt(sound, f, bytes_of[: r.randrange(len(bytes_of))]), "any"
    )
    for name in ("changed", "changed again", "changed once more"):
        yield Variant(
            name, lambda f, r: _spoilt(sound, f, flip(bytes_of, r, r.randrange(1, 4))), "any"
        )


def _spoilt(sound: Sound, folder: Path, content: bytes) -> Path:
    return _variant(sound, "", "any", content).make(folder, random.Random(0))


def _paths(sound: Sound) -> Iterator[Variant]:
    refused = (
        "/etc/passwd",
        "../x.png",
        "class-0/../../x.png",
        "..",
        ".",
        "",
        "\\\\x\\y",
        "../in",
        "class-0/0.png/../../../../etc/passwd",
        "\ud800.png",
    )
    missing = (
        "class-0",
        "class-0/",
        "more.png",
        "class-0/more.png",
        "~/x.png",
        "$HOME",
        "a" * 300 + ".png",
        "a/" * 3_000,
        "\x1b[31m.png",
        "https://example.org/1.png",
        "file:///etc/passwd",
        "C:\\x.png",
        "-rf",
        "class-0/0.png\x07",
        "class-0/pipe.png",
        "class-0/text.png",
        "class-0/link.png",
        "class-0/.hidden.png",
    )
    for path in (*refused, *missing):

        def make(folder: Path, rng: random.Random, path: str = path) -> Path:
            place = _variant(sound, "", "any", sound.table() + f'"{path}",class-0\n').make(
                folder, rng
            )
            os.mkfifo(folder / "class-0/pipe.png")
            (folder / "class-0/text.png").write_text("no picture")
            (folder / "class-0/.hidden.png").write_bytes((folder / "class-0/0.png").read_bytes())
            (folder / "class-0/link.png").symlink_to("link.png")
            return place

        ends: Ends = "refused" if path in refused else "unreadable"
        yield Variant(f"a path {path!r:.60}", make, ends)
    for name, path in {
        "in full": "{folder}/class-0/0.png",
        "by a detour": "class-1/../class-0/0.png",
        "as Windows writes it": "class-0\\0.png",
        "without a suffix": "class-0/0",
        "with spaces around": "  class-0/0.png  ",
        "with slashes": "class-0//0.png",
    }.items():

        def used(folder: Path, rng: random.Random, path: str = path) -> Path:
            text = sound.table().replace("class-0/0.png", path.format(folder=folder.resolve()))
            return _variant(sound, "", "any", text).make(folder, rng)

        yield Variant(f"a path {name}", used, "same")

    def outside(folder: Path, rng: random.Random) -> Path:
        """Write a table that lists a link to a file outside the folder."""
        place = _variant(sound, "", "any", sound.table() + "class-0/out.png,class-0\n").make(
            folder, rng
        )
        (folder / "class-0/out.png").symlink_to("/etc/passwd")
        return place

    yield Variant("a path of a link to a file that is no picture", outside, "unreadable")
    for name in ("a folder", "a pipe", "a link to itself", "nothing"):

        def no_table(folder: Path, rng: random.Random, name: str = name) -> Path:
            place = sound.copy(folder) / "a.csv"
            {
                "a folder": place.mkdir,
                "a pipe": lambda: os.mkfifo(place),
                "a link to itself": lambda: place.symlink_to(place.name),
                "nothing": lambda: None,
            }[name]()
            return place

        yield Variant(f"a table that is {name}", no_table, "refused")


def _labels(sound: Sound) -> Iterator[Variant]:
    rows = sound.rows

    def labelled(label: Callable[[int, str], str]) -> str:
        return _csv([(path, f'"{label(n, name)}"') for n, (path, name) in enumerate(rows)])

    for name, ends, text in (
        ("one class", "refused", labelled(lambda n, c: "one")),
        ("a class for each picture", "any", labelled(lambda n, c: str(n))),
        ("numbers", "same", labelled(lambda n, c: c[-1])),
        ("numbers with zeros", "same", labelled(lambda n, c: f"0{c[-1]}")),
        ("numbers with zeros and without", "used", labelled(lambda n, c: ("0" * (n % 2)) + c[-1])),
        ("fractions", "same", labelled(lambda n, c: f"{c[-1]}.0")),
        (
            "a number beyond all",
            "used",
            labelled(lambda n, c: "9" * 200 if c == "class-2" else c[-1]),
        ),
        (
            "digits of another script",
            "used",
            labelled(lambda n, c: "٣" if c == "class-2" else c[-1]),
        ),
        ("a superscript", "used", labelled(lambda n, c: "²" if c == "class-2" else c[-1])),
        ("NaN", "used", labelled(lambda n, c: "NaN" if c == "class-2" else c)),
        ("an empty label", "refused", labelled(lambda n, c: "" if n == 9 else c)),
        ("a label of spaces", "refused", labelled(lambda n, c: "  " if n == 9 else c)),
        ("a label of 256 characters", "refused", labelled(lambda n, c: "a" * 256 if n < 9 else c)),
        (
            "a label of 255 wide characters",
            "any",
            labelled(lambda n, c: "😀" * 255 if n < 6 else c),
        ),
        ("a label that colours", "any", labelled(lambda n, c: "\x1b[31mred" if n < 6 else c)),
        ("a label that turns", "any", labelled(lambda n, c: "\u202eabc" if n < 6 else c)),
        ("a label of two lines", "any", labelled(lambda n, c: "a\nb" if n < 6 else c)),
        ("a label of markup", "any", labelled(lambda n, c: "[/x]<b>$x$" if n < 6 else c)),
        ("a label that is no Unicode", "refused", labelled(lambda n, c: "\ud800" if n < 6 else c)),
        ("labels that differ in case", "used", labelled(lambda n, c: c.upper() if n % 2 else c)),
        ("a picture with two labels", "refused", _csv([*rows, (rows[0][0], "class-1")])),
        (
            "pictures of two labels by two paths",
            "refused",
            _csv([*rows, (f"./{rows[0][0]}", "class-1")]),
        ),
    ):
        yield _variant(sound, f"labels: {name}", ends, text)

    def many(folder: Path, rng: random.Random) -> Path:
        text = _csv([("class-0/0.png", f"c{n}") for n in range(70_000)])
        return _variant(sound, "", "any", text).make(folder, rng)

    yield Variant("labels: 70,000 of a picture", many, "refused")


def _parts(sound: Sound) -> Iterator[Variant]:
    rows = sound.rows

    def parted(part: Callable[[int], str]) -> str:
        named = [(*row, part(n)) for n, row in enumerate(rows)]
        return _csv(named, "path", "label", "split")

    for name, ends, text in (
        ("a case for each", "used", parted(lambda n: ("Train", "TRAIN", "VaL", "testing")[n % 4])),
        ("unknown", "refused", parted(lambda n: "holdout" if n == 5 else "train")),
        ("all unknown", "same", parted(lambda n: f"fold{n % 3}")),
        ("empty", "refused", parted(lambda n: "" if n == 5 else "train")),
        ("all empty", "same", parted(lambda n: "")),
        ("train alone", "used", parted(lambda n: "train")),
        ("test alone", "refused", parted(lambda n: "test")),
        ("val alone", "refused", parted(lambda n: "val")),
        ("a class in val alone", "refused", parted(lambda n: "val" if n < 6 else "train")),
        ("a class in test alone", "refused", parted(lambda n: "test" if n < 6 else "train")),
        ("a control character", "refused", parted(lambda n: "\x1b[31m" if n == 5 else "train")),
        ("long", "refused", parted(lambda n: LONG if n == 5 else "train")),
    ):
        yield _variant(sound, f"parts: {name}", ends, text)


def _lines(sound: Sound) -> Iterator[Variant]:
    def lines(change: Callable[[int, dict[str, Any]], object] = lambda n, row: row) -> str:
        rows = [{"path": path, "label": label} for path, label in sound.rows]
        changed = (change(n, row) for n, row in enumerate(rows))
        return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in changed)

    def label(value: object, most: int = 6) -> str:
        return lines(lambda n, row: row | {"label": value} if n < most else row)

    deep, closed = "[" * 100_000, "]" * 100_000
    texts: list[tuple[str, Ends, str]] = [
        ("as it should be", "same", lines()),
        ("empty lines between", "same", lines().replace("\n", "\n\n")),
        ("more in each", "same", lines(lambda n, row: row | {"box": [1, {"a": None}]})),
        ("a list instead", "refused", json.dumps(sound.rows)),
        ("a list of objects", "refused", f"[{lines()}]".replace("\n", ",\n")),
        ("one object", "refused", json.dumps({"path": [p for p, _ in sound.rows]})),
        ("a line that is a list", "refused", lines() + "\n[1]"),
        ("a line that is null", "refused", lines() + "\nnull"),
        ("a line that is cut", "refused", lines()[:-3]),
        ("a label twice", "any", lines().replace('"label"', '"label": "x", "label"')),
        ("a label null", "refused", label(None)),
        ("a label of a list", "refused", label(["a"])),
        ("a label of an object", "refused", label({"a": 1})),
        ("a label true", "any", label(True)),
        ("a label 1", "any", label(1)),
        (
            "labels 1 and 1.0 and true",
            "any",
            lines(lambda n, row: row | {"label": (1, 1.0, True)[n % 3]}),
        ),
        ("a label NaN", "refused", label(float("nan"))),
        ("a label infinite", "refused", label(float("inf"))),
        ("a label of 5,000 digits", "refused", lines().replace('"class-0"', "9" * 5_000)),
        ("a label beyond 64 bits", "refused", label(2**70)),
        ("a label that is no Unicode", "refused", label("\ud800")),
        ("a label that is empty", "refused", label("")),
        ("a label of two lines", "any", label("a\nb")),
        ("a path that is a number", "any", lines(lambda n, row: row | {"path": n})),
        ("a path that is no Unicode", "any", lines(lambda n, row: row | {"path": "\ud800"})),
        ("a path with NUL", "any", lines(lambda n, row: row | {"path": "a\0b"})),
        ("another object in each line", "refused", lines(lambda n, row: {f"path{n}": n, "x": 1})),
        ("deep", "refused", lines() + "\n" + deep),
        ("deep and closed", "refused", lines() + "\n" + deep + closed),
        (
            "a value that is deep",
            "refused",
            lines(lambda n, row: '{"path": "a", "x": ' + "[" * 90 + "]" * 90 + "}"),
        ),
        ("objects that are deep", "refused", lines() + "\n" + '{"a":' * 50_000),
        ("2,000 columns", "refused", json.dumps({f"c{n}": n for n in range(2_000)})),
        ("100,000 columns by line", "refused", "\n".join(f'{{"c{n}": 1}}' for n in range(100_000))),
        ("BOM", "same", "\ufeff" + lines()),
        ("comments", "refused", "// pictures\n" + lines()),
        ("single quotes", "refused", lines().replace('"', "'")),
    ]
    for name, ends, text in texts:
        yield _variant(sound, f"lines: {name}", ends, text, "a.jsonl")
