"""Hostile parquet files: columns of other kinds, labels without names, shards that disagree."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from faults.cases import Kind
from faults.own import Ends, Variant, flip, kind
from faults.sound import Sound, in_a_process
from faults.world import World


def shards(world: World) -> Kind:
    """Parquet files with something wrong or odd, for every command that reads them."""
    sound = Sound(world)
    if not sound.shards.exists():
        in_a_process(lambda: _write_all(sound))
    return kind(world, sound, [*_as_written(sound), *_spoilt(sound)])


def _as_written(sound: Sound) -> Iterator[Variant]:
    """Yield what `_write_all` wrote: files, and folders of files."""
    for name, end in ENDS.items():

        def make(folder: Path, rng: random.Random, name: str = name) -> Path:
            written = sorted(sound.shards.glob(f"{name}@*.parquet"))
            for file in written:
                to = folder / (file.name.partition("@")[2] or "a.parquet")
                to.write_bytes(file.read_bytes())
            return folder if len(written) > 1 else to

        yield Variant(name, make, end)


def _spoilt(sound: Sound) -> Iterator[Variant]:
    def variant(name: str, spoil: Any) -> Variant:
        def make(folder: Path, rng: random.Random) -> Path:
            content = (sound.shards / "sound.parquet").read_bytes()
            (folder / "a.parquet").write_bytes(spoil(content, rng))
            return folder / "a.parquet"

        return Variant(name, make, "any")

    for turn in range(5):
        yield variant(f"cut {turn}", lambda c, r: c[: r.randrange(len(c))])
        yield variant(f"changed {turn}", lambda c, r: flip(c, r, r.randrange(1, 4)))
        yield variant(f"its end changed {turn}", lambda c, r: flip(c, r, r.randrange(1, 4), -2_000))
    yield variant("empty", lambda c, r: b"")
    yield variant("PAR1", lambda c, r: b"PAR1" * 3)
    yield variant("a footer of 4 GB", lambda c, r: c[:-8] + b"\xff\xff\xff\xff" + c[-4:])
    yield variant("encrypted", lambda c, r: c[:-4] + b"PARE")
    yield variant("Arrow", lambda c, r: b"ARROW1" + c)


ENDS: dict[str, Ends] = {
    "sound": "same",
    "names": "same",
    "numbers": "same",
    "words in a dictionary": "same",
    "binary": "same",
    "large binary": "any",
    "a path string": "refused",
    "no picture column": "refused",
    "a list of pictures": "refused",
    "pictures null": "any",
    "bytes null": "any",
    "paths outside": "any",
    "a path of a device": "any",
    "a path of a folder": "any",
    "a path with NUL": "any",
    "bytes empty": "any",
    "bytes of text": "any",
    "no label": "refused",
    "labels null": "refused",
    "a label null": "refused",
    "labels of lists": "refused",
    "labels of floats": "refused",
    "labels of booleans": "refused",
    "labels of bytes": "refused",
    "labels of times": "refused",
    "labels of structs": "refused",
    "a label beyond the names": "refused",
    "a negative label": "refused",
    "labels of uint64": "any",
    "a label of 300 characters": "refused",
    "a label that colours": "any",
    "an empty label": "refused",
    "names missing": "same",
    "names too few": "refused",
    "names twice": "any",
    "names no list": "any",
    "names empty": "any",
    "names of numbers": "any",
    "names that are no Unicode": "any",
    "names of 300 characters": "refused",
    "names of a thousand more": "same",
    "metadata no JSON": "same",
    "metadata deep": "same",
    "metadata a list": "same",
    "one class": "refused",
    "no rows": "refused",
    "a class in val alone": "refused",
    "parts unknown": "refused",
    "parts null": "refused",
    "two pictures columns": "any",
    "a column twice": "any",
    "a name of 100,000 characters": "any",
    "1,000 columns": "any",
    "no column": "refused",
    "shards that agree": "same",
    "shards of other columns": "refused",
    "shards of other names": "refused",
    "shards of other types": "any",
    "a shard without rows": "refused",
    "shards without parts": "refused",
    "the same shard twice": "any",
}


def _write_all(sound: Sound) -> None:
    """Write every file of ENDS as NAME@FILE.parquet, and sound.parquet."""
    import pyarrow as pa
    from pyarrow import parquet

    sound.shards.mkdir(parents=True)
    contents = [(sound.folder / path).read_bytes() for path, _ in sound.rows]
    words = [label for _, label in sound.rows]
    numbers = [int(label[-1]) for label in words]
    names = sorted(set(words))
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    count = len(contents)

    def pictures(change: Any = lambda n, row: row) -> Any:
        rows = [{"bytes": c, "path": f"{n}.png"} for n, c in enumerate(contents)]
        return pa.array([change(n, row) for n, row in enumerate(rows)], kind)

    def about(class_names: object) -> dict[bytes, bytes]:
        features = {"image": {"_type": "Image"}, "label": {"names": class_names}}
        return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}

    def write(
        name: str, file: str = "a", metadata: Any = None, rows: Any = slice(None), **columns: Any
    ) -> None:
        given = {"image": pictures(), "label": words} | columns
        table = pa.table({key: value for key, value in given.items() if value is not None})
        table = table.slice(
            *rows.indices(count)[:1], rows.indices(count)[1] - rows.indices(count)[0]
        )
        if metadata is not None:
            table = table.replace_schema_metadata(metadata)
        parquet.write_table(table, sound.shards / f"{name}@{file}.parquet", row_group_size=5)

    write("sound")
    (sound.shards / "sound.parquet").write_bytes((sound.shards / "sound@a.parquet").read_bytes())
    write("names", metadata=about(names), label=numbers)
    write("numbers", label=numbers)
    write("words in a dictionary", label=pa.array(words).dictionary_encode())
    write("binary", image=contents)
    write("large binary", image=pa.array(contents, pa.large_binary()))
    write("a path string", image=[path for path, _ in sound.rows])
    write("no picture column", image=None, path=[path for path, _ in sound.rows])
    write("a list of pictures", image=[[c] for c in contents])
    write("pictures null", image=pa.array([None] * count, kind))
    null = pictures(lambda n, row: {"bytes": None, "path": None} if n == 7 else row)
    write("bytes null", image=null)
    for name, path in (
        ("paths outside", "../x.png"),
        ("a path of a device", "/dev/zero"),
        ("a path of a folder", "."),
        ("a path with NUL", "a\0b"),
    ):
        write(
            name,
            image=pictures(lambda n, row, p=path: {"bytes": None, "path": p} if n == 7 else row),
        )
    for name, content in (("bytes empty", b""), ("bytes of text", b"no picture")):
        write(name, image=pictures(lambda n, row, c=content: row | {"bytes": c} if n == 7 else row))
    write("no label", label=None)
    write("labels null", label=pa.nulls(count))
    write("a label null", label=[None, *words[1:]])
    write("labels of lists", label=[[n] for n in numbers])
    write("labels of floats", label=[n / 2 for n in numbers])
    write("labels of booleans", label=[n > 0 for n in numbers])
    write("labels of bytes", label=[word.encode() for word in words])
    write("labels of times", label=pa.array(numbers, pa.timestamp("s")))
    write("labels of structs", label=[{"a": n} for n in numbers])
    write("a label beyond the names", metadata=about(names), label=[9, *numbers[1:]])
    write("a negative label", metadata=about(names), label=[-1, *numbers[1:]])
    write("labels of uint64", label=pa.array([2**64 - 1 - n for n in numbers], pa.uint64()))
    write("a label of 300 characters", label=["x" * 300, *words[1:]])
    write(
        "a label that colours",
        label=["\x1b[31m" if n == 0 else w for n, w in zip(numbers, words, strict=True)],
    )
    write("an empty label", label=["", *words[1:]])
    write("names missing", metadata={b"huggingface": b"{}"}, label=numbers)
    for name, class_names in (
        ("names too few", names[:1]),
        ("names twice", ["a", "a", "b"]),
        ("names no list", {"a": 1}),
        ("names empty", ["", "a", "b"]),
        ("names of numbers", [1, 2, 3]),
        ("names that are no Unicode", ["\ud800", "a", "b"]),
        ("names of 300 characters", ["x" * 300, "a", "b"]),
        ("names of a thousand more", [*names, *map(str, range(1_000))]),
    ):
        write(name, metadata=about(class_names), label=numbers)
    for name, text in (("no JSON", b"{"), ("deep", b"[" * 100_000), ("a list", b"[]")):
        write(f"metadata {name}", metadata={b"huggingface": text})
    write("one class", label=["one"] * count)
    write("no rows", rows=slice(0, 0))
    write("a class in val alone", split=["val" if n == 0 else "train" for n in numbers])
    write("parts unknown", split=["fold" if n == 0 else "train" for n in range(count)])
    write("parts null", split=[None if n == 0 else "train" for n in range(count)])
    write("two pictures columns", picture=pictures())
    twice = pa.table(
        [pictures(), pa.array(words), pa.array(words)], names=["image", "label", "label"]
    )
    parquet.write_table(twice, sound.shards / "a column twice@a.parquet")
    write("a name of 100,000 characters", **{"x" * 100_000: words})
    write("1,000 columns", **{f"c{n}": words for n in range(1_000)})
    write("no column", image=None, label=None, x=numbers)
    half, rest = slice(0, 9), slice(9, count)
    write("shards that agree", "train-0", rows=half)
    write("shards that agree", "train-1", rows=rest)
    write("shards of other columns", "train-0", rows=half)
    write("shards of other columns", "train-1", rows=rest, label=None, target=words)
    write("shards of other names", "train-0", rows=half, metadata=about(names), label=numbers)
    write("shards of other names", "train-1", rows=rest, metadata=about(names[::-1]), label=numbers)
    write("shards of other types", "train-0", rows=half)
    write("shards of other types", "train-1", rows=rest, label=numbers)
    write("a shard without rows", "train-0")
    write("a shard without rows", "train-1", rows=slice(0, 0))
    write("shards without parts", "train-0", rows=half)
    write("shards without parts", "more", rows=rest)
    write("the same shard twice", "train-0")
    write("the same shard twice", "train-1")
