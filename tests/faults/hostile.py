"""Hostile model files and recipes: each is refused with a short message and exit code 2, and none
of its control characters reaches the terminal."""

import dataclasses
import json
import math
import random
import re
import struct
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from faults.cases import Case, FailedError, Kind, naming
from faults.victims import Ended
from faults.world import World

MOST_CPU = 5.0  # seconds; a refusal takes about one on an idle machine
LONGEST = 3_000  # characters of a refusal
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
DEEP = 100_000  # nested brackets
LONG = "a" * 100_000
NAMES = ("\x1b[31mred\x1b[0m", "[red]", "[/x]", "$x$", "a\nb", "\u202eabc", "../../x", LONG)


class Variant(NamedTuple):
    """A hostile input."""

    name: str
    content: bytes
    refused: bool = True  # False: it may also be used


def models(world: World) -> Kind:
    """Model files for every command that reads models, 2 * FAULTS cases at most."""
    model = world.unharmed["train"].folder / "work/run/model.safetensors"
    variants = list(_models(model.read_bytes()))
    picture = world.pictures / "class-0" / "0.png"
    own = ["--dataset", str(world.pictures)]
    commands = (
        ["predict", "hostile.safetensors", str(picture)],
        ["evaluate", "hostile.safetensors", *own],
        ["summary", "hostile.safetensors"],
        ["export", "hostile.safetensors", "--format", "pth", *own],
        ["serve", "hostile.safetensors", "--port", "0"],
    )

    # a server would never end with a model that it may accept
    tried = [(v, words) for v in variants for words in commands if v.refused or words[0] != "serve"]
    random.Random(0).shuffle(tried)

    def attempt(case: Case) -> None:
        case.tried += 1
        variant, words = tried[case.number]
        with world.place("train") as place:
            (place.work / "hostile.safetensors").write_bytes(variant.content)
            _check(f"{words[0]}, {variant.name}", place.sprat(*words), variant.refused)

    return Kind(lambda faults: min(2 * faults, len(tried)), attempt)


def recipes(world: World) -> Kind:
    """Recipes that are hard to parse, and impossible values of settings (2 * FAULTS at most).

    A run that would begin to train ends there.
    """
    texts = [Variant(name, b'dataset = "shapes10"\n' + text) for name, text in TEXTS.items()]
    settings = list(_settings_spoilt(world.recipes["tiny"].read_text()))
    random.Random(0).shuffle(settings)
    variants = texts + settings

    def attempt(case: Case) -> None:
        case.tried += 1
        variant = variants[case.number]
        with world.place("train") as place:
            (place.work / "hostile.toml").write_bytes(variant.content)
            words = ["train", "--recipe", "hostile.toml", "--output", "run", "--quiet"]
            _check(variant.name, place.sprat(*words, prepare=never_train), variant.refused)

    return Kind(lambda faults: min(len(texts) + 2 * faults, len(variants)), attempt)


def _check(name: str, ended: Ended, refused: bool) -> None:
    """Raise FailedError unless a hostile input was handled correctly."""
    with naming(name):
        check_hostile(ended.check(*([2] if refused else [0, 2])))


def check_hostile(ended: Ended, most_cpu: float = MOST_CPU, longest: int = LONGEST) -> None:
    """Raise FailedError if a command with a hostile input took long or printed what it must not."""
    if ended.cpu > most_cpu:
        raise FailedError("lost", f"the command took {ended.cpu:.1f} seconds of CPU time: {ended}")
    if found := CONTROL.search(ended.err + ended.out):
        raise FailedError("silent", f"the command printed the character {found[0]!r}: {ended}")
    if len(ended.err) > longest:
        raise FailedError("lost", f"the error has {len(ended.err):,} characters: {ended.err[:300]}")


def never_train() -> None:
    """Make a run end where it would begin to train."""
    from sprat.training.run import Run

    def train(*args: object) -> None:
        raise SystemExit(0)

    Run.train = train  # type: ignore[method-assign, assignment]


# --- models -------------------------------------------------------------------------------------

# impossible values for each key of the metadata
METADATA: dict[str, list[Any]] = {
    "format": [0, -1, 2, 10**30, "1", None, [1], True, 1.5, math.nan],
    "model": ["", "nothing", 5, None, ["SpratS"], {}, "ResNet18", "../SpratS", *NAMES],
    "classes": [
        [], None, "abc", {}, 3, [1, 2, 3], ["a", "a", "b"], ["a", "b"], ["a", "b", None],
        ["", "", ""], ["a", ["b"], "c"], ["a", "b", ""], [{}] * 3, [True, False, "x"],
    ],
    "mean": [
        None, [], "abc", [0.5] * 2, [0.5] * 4, ["0.5"] * 3, [math.nan] * 3, [math.inf] * 3,
        [1e308] * 3, [None] * 3, 0.5, {"a": 1}, [[0.5]] * 3, [True] * 3,
    ],
    "std": [
        None, [], [0, 0, 0], [0.5] * 4, ["a"] * 3, [-0.2] * 3, [math.nan] * 3, [1e-320] * 3,
        [math.inf] * 3, [None] * 3, 1, [[1]] * 3,
    ],
    "side": [
        100_000, 0, -1, "32", None, 1.5, math.nan, math.inf, True, [32], {}, 2**31, 2**63, 10**30,
    ],
    "about": [None, [], "about", 3, [["dataset", "x"]]],
}  # fmt: skip
ABOUT: dict[str, list[Any]] = {  # the same for the keys of "about"
    "dataset": [5, ["x"], {}, math.nan],
    "dataset_md5": [5, ["x"], {}],
    "pictures": [5, "x", ["x"], {"side": "x"}, {"nothing": 1}, {"side": -1}, {"side": [1]}],
    "test_top1": ["x", [], {}, -1, math.nan, 10**400],
    "recipe": [5, ["x"], {}],
    "seed": ["x", -1, [], {}, 1.5],
}


def _models(content: bytes) -> Iterator[Variant]:
    import torch
    from safetensors.torch import load, save

    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    meta = json.loads(header["__metadata__"]["sprat"])
    tensors = load(content)

    def with_meta(name: str, value: Any, refused: bool = True) -> Variant:
        return Variant(name, save(tensors, {"sprat": json.dumps(value)}), refused)

    for key, values in METADATA.items():
        yield with_meta(f"without {key}", {k: v for k, v in meta.items() if k != key})
        for value in values:
            yield with_meta(f"{key} = {value!r:.60}", meta | {key: value})
    for key, values in ABOUT.items():
        for value in values:
            about = meta["about"] | {key: value}
            yield with_meta(f"about.{key} = {value!r:.60}", meta | {"about": about}, refused=False)
    for name in NAMES:
        classes = [name, *meta["classes"][1:]]
        yield with_meta(f"a class {name!r:.60}", meta | {"classes": classes}, refused=False)
        about = meta["about"] | {"dataset": name, "recipe": name}
        yield with_meta(f"a dataset {name!r:.60}", meta | {"about": about}, refused=False)

    for name, text in {
        "metadata empty": "",
        "metadata a list": "[]",
        "metadata null": "null",
        "metadata deep": "[" * DEEP,
        "metadata deep and closed": "[" * DEEP + "]" * DEEP,
        "metadata a long integer": '{"format": ' + "9" * 5_000 + "}",
        "metadata surrogate": json.dumps(meta).replace("class-0", "\\ud800"),
        "metadata twice": json.dumps(meta)[:-1] + ', "side": 0}',
    }.items():
        yield Variant(name, save(tensors, {"sprat": text}))
    yield Variant("no metadata", save(tensors))

    text = {"sprat": json.dumps(meta)}
    weight = next(k for k, v in tensors.items() if v.dim() == 4)
    variance = next(k for k in tensors if k.endswith("running_var"))
    for key in (weight, variance):
        for value in (math.nan, math.inf, -math.inf):
            changed = tensors[key].clone()
            changed.view(-1)[0] = value
            yield Variant(f"{key} holds {value}", save(tensors | {key: changed}, text))
    for name, changed in {
        f"{variance} negative": {variance: -tensors[variance].abs() - 1},
        f"{variance} huge and negative": {variance: torch.full_like(tensors[variance], -3e38)},
        f"{weight} huge": {weight: torch.full_like(tensors[weight], 3e38)},
        f"{weight} int64": {weight: tensors[weight].long()},
        f"{weight} bool": {weight: tensors[weight] > 0},
        f"{weight} float64": {weight: tensors[weight].double()},
        f"{weight} flat": {weight: tensors[weight].flatten()},
        f"{weight} empty": {weight: torch.zeros(0)},
        f"{weight} scalar": {weight: torch.zeros(())},
        "one tensor more": {"more": torch.zeros(3)},
    }.items():
        yield Variant(name, save(tensors | changed, text), refused="float64" not in name)
    yield Variant("one tensor less", save({k: v for k, v in tensors.items() if k != weight}, text))
    yield Variant("no tensor", save({}, text))

    yield Variant("empty file", b"")
    yield Variant("seven bytes", b"1234567")
    yield Variant("a header of 2^63 bytes", struct.pack("<Q", 2**63) + content[8:])
    yield Variant("a header of 2^64 - 1 bytes", struct.pack("<Q", 2**64 - 1) + content[8:])
    yield Variant("a header of 90 MB", struct.pack("<Q", 90_000_000) + content[8:])
    for name, text_of_header in {
        "header deep": "[" * DEEP,
        "header a list": "[]",
        "header null": "null",
        "header empty": "",
        "offsets beyond the file": json.dumps(
            header | {weight: header[weight] | {"data_offsets": [0, 2**60]}}
        ),
        "offsets backwards": json.dumps(
            header | {weight: header[weight] | {"data_offsets": [100, 0]}}
        ),
        "a shape of 2^60": json.dumps(header | {weight: header[weight] | {"shape": [2**60]}}),
        "a shape that overflows": json.dumps(
            header | {weight: header[weight] | {"shape": [2**32, 2**32]}}
        ),
        "a negative shape": json.dumps(header | {weight: header[weight] | {"shape": [-1]}}),
        "an unknown type": json.dumps(header | {weight: header[weight] | {"dtype": "F7"}}),
    }.items():
        raw = text_of_header.encode()
        yield Variant(name, struct.pack("<Q", len(raw)) + raw + content[8 + size :])
    yield Variant("a pickle", b"\x80\x04cos\nsystem\n(S'echo hello'\ntR.")
    yield Variant("a zip", b"PK\x03\x04" + bytes(100))
    yield Variant("trailing bytes", content + bytes(10))


# --- recipes ------------------------------------------------------------------------------------

TEXTS: dict[str, bytes] = {
    "nested brackets": b"epochs = " + b"[" * DEEP,
    "nested brackets, closed": b"epochs = " + b"[" * DEEP + b"]" * DEEP,
    "nested tables": b"epochs = " + b"{a=" * DEEP,
    "an integer of 5,000 digits": b"epochs = " + b"9" * 5_000,
    "a hexadecimal of 5,000 digits": b"epochs = 0x" + b"f" * 5_000,
    "a float of 500,000 digits": b"dropout = 0." + b"1" * 500_000,
    "a dotted key of 20,000 parts": b".".join([b"a"] * 20_000) + b" = 1",
    "a table of 20,000 parts": b"[" + b".".join([b"a"] * 20_000) + b"]",
    "400 tables within one another": b"".join(
        b"[" + b".".join([b"a"] * n) + b"]\n" for n in range(1, 401)
    ),
    "a million empty lines": b"\n" * 1_000_000 + b"epochs = 0",
    "a hundred thousand keys": b"".join(b"key%d = 1\n" % n for n in range(100_000)),
    "a string of 10 MB": b'model = "' + b"a" * 10_000_000 + b'"',
    "quotes that never end": b'model = """' + b"a" * 1_000_000,
    "a number that cannot be held": b"threads = 99999999999999",
    "epochs beyond all": b"epochs = 99999999999999999999",
    "a date": b"epochs = 1979-05-27T07:32:00Z",
    "a date without a day": b"epochs = 1979-02-30",
    "UTF-16": "epochs = 2".encode("utf-16"),
    "Latin-1": "model = 'é'".encode("latin-1"),
    "zero bytes": bytes(1_000),
    "a control character": b'model = "\x1b[31m"',
    "an escaped control character": b'model = "\\u001b[31m"',
    "a key with a control character": b'"\\u001b[31m" = 1',
    "a key with markup": b'"[/x]" = 1',
    "a table for a number": b"[epochs]\na = 1",
    "a number for a table": b"optim = 3",
    "a list for a table": b"[[optim]]\nlr = 1",
    "a key twice": b"epochs = 1\nepochs = 2",
    "a PNG": b"\x89PNG\r\n\x1a\n" + bytes(100),
}
# impossible values, in TOML, for a setting of each type
WRONG: dict[type, list[str]] = {
    int: ['"x"', "1.5", "true", "[]", "{}", "nan", "-9223372036854775809", "1979-05-27", "[1]"],
    float: ['"x"', "true", "[]", "{}", "nan", "inf", "-inf", "-1e308", "1979-05-27", "[0.5]"],
    bool: ['"x"', "1", "0.0", "[]", "{}", "nan"],
    str: ["1", "1.5", "true", "[]", "{}", "nan", '["x"]', *map(json.dumps, NAMES)],
    tuple: ['"x"', "1", "true", "{}", '["x"]', "[[8]]", "[nan]", "[-1]", "[99999999999999999999]"],
}
EXTREME: dict[type, list[str]] = {  # which some settings allow
    int: ["99999999999999999999", "99999999999999", "2147483648", "-1", "0"],
    float: ["1e308", "5e-324", "-0.0", "0", "9" * 400],
}


def _settings_spoilt(sound: str) -> Iterator[Variant]:
    """Yield a valid recipe with one setting changed, for every setting and value."""
    for key, hint in _settings():
        for values, refused in ((WRONG, True), (EXTREME, False)):
            for value in values.get(hint, []):
                yield Variant(f"{key} = {value:.60}", _set(sound, key, value), refused)


def _settings() -> Iterator[tuple[str, type]]:
    """Return the dotted name and the type of every setting of a recipe."""
    from sprat.settings.config import Config

    def settings(cls: Any, prefix: str) -> Iterator[tuple[str, type]]:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            hint = hints[field.name]
            if dataclasses.is_dataclass(hint):
                yield from settings(hint, f"{prefix}{field.name}.")
            elif typing.get_origin(hint) is typing.Literal:
                yield prefix + field.name, str
            else:
                yield prefix + field.name, typing.get_origin(hint) or hint

    return settings(Config, "")


def _set(sound: str, key: str, value: str) -> bytes:
    """Return a valid recipe in which one setting has the given value."""
    table, _, name = key.rpartition(".")
    lines, where, done = [], "", False
    for line in sound.splitlines():
        if line.startswith("["):
            if where == table and not done:
                lines.append(f"{name} = {value}")
                done = True
            where = line.strip("[]")
        if where == table and line.partition(" = ")[0] == name:
            line, done = f"{name} = {value}", True
        lines.append(line)
    if not done:
        lines += [f"{name} = {value}"] if where == table else [f"[{table}]", f"{name} = {value}"]
    return "\n".join(lines).encode()
