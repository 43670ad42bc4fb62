"""Schemas for plain values from JSON: what a file must contain for the code that reads it.

A shape is a `Kind`; a dict from each key of a table to its shape, where a key that ends in "?" may
be missing and other keys are ignored; or `ListOf`, `TableOf` or `Maybe` of a shape. `shape_of`
derives it from a TypedDict, which then declares types and bounds once.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NotRequired,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

from sprat.errors import shown

MOST_CLASSES, LARGEST_SIDE = 10_000, 512
HUGE = 1e30  # above every loss, learning rate and duration, but arithmetic on it stays finite


@dataclass(frozen=True)
class Kind:
    """A kind of value. expected: the description of valid values in messages."""

    expected: str
    fits: Callable[[Any], bool]


@dataclass(frozen=True)
class ListOf:
    """A list or tuple of `low` to `high` values of one shape."""

    each: "Shape"
    low: int = 0
    high: int = 2**63


@dataclass(frozen=True)
class TableOf:
    """A table with any keys and values of one shape. low: least number of entries."""

    each: "Shape"
    low: int = 0


@dataclass(frozen=True)
class Maybe:
    """A value of a shape, or null."""

    of: "Shape"


Shape = Kind | ListOf | TableOf | Maybe | Mapping[str, "Shape"]


def mismatch(value: Any, shape: Shape, name: str = "") -> str | None:
    """Return what is wrong with a value, such as "test.top1 is 'x', expected …"; None if it has the
    shape."""
    if isinstance(shape, Kind):
        return None if shape.fits(value) else _wrong(value, shape.expected, name)
    if isinstance(shape, Maybe):
        return None if value is None else mismatch(value, shape.of, name)
    inner: list[tuple[str, Any, Shape]]
    if isinstance(shape, ListOf):
        if not isinstance(value, list | tuple) or not shape.low <= len(value) <= shape.high:
            count = f"{shape.low} to {shape.high:,}" if shape.high < 2**63 else f"{shape.low} up"
            return _wrong(value, f"a list ({count} values)", name)
        inner = [(f"[{place}]", each, shape.each) for place, each in enumerate(value)]
    elif not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return _wrong(value, "a table", name)
    elif isinstance(shape, TableOf):
        if len(value) < shape.low:
            return _wrong(value, f"a table of at least {shape.low}", name)
        inner = [(f".{shown(key)}", each, shape.each) for key, each in value.items()]
    else:
        named = {key.removesuffix("?"): each for key, each in shape.items()}
        for key in shape:
            if key not in value and not key.endswith("?"):
                return f"{name}.{key} is missing".removeprefix(".")
        inner = [(f".{key}", value[key], each) for key, each in named.items() if key in value]
    wrong = (mismatch(each, of, f"{name}{path}".removeprefix(".")) for path, each, of in inner)
    return next(filter(None, wrong), None)


def _wrong(value: Any, expected: str, name: str) -> str:
    return f"{name or 'it'} is {shown(value)}, expected {expected}"


def number(low: float = -HUGE, high: float = HUGE) -> Kind:
    """Return the kind of a finite number, whole or not."""

    def fits(value: Any) -> bool:
        return type(value) in (int, float) and low <= value <= high and math.isfinite(value)

    return Kind(f"a number from {low:g} to {high:g}", fits)


def whole(low: int = 0, high: int = 2**63 - 1) -> Kind:
    """Return the kind of a whole number."""
    return Kind(
        f"a whole number from {low} to {high}", lambda v: type(v) is int and low <= v <= high
    )


def one_of(*values: str) -> Kind:
    """Return the kind of one of several words."""
    return Kind(" or ".join(map(repr, values)), lambda v: type(v) is str and v in values)


ANYTHING = Kind("anything", lambda v: True)
NOTHING = Kind("null", lambda v: v is None)
SHARE = number(0, 1)
POSITIVE = number(0)
FLAG = Kind("true or false", lambda v: type(v) is bool)
TEXT = Kind("a string", lambda v: type(v) is str and "\0" not in v)
SIDE = whole(1, LARGEST_SIDE)
SCALAR = Kind("a plain value", lambda v: v is None or type(v) in (bool, int, float, str))
SETTING = Kind(
    "a plain value or a list of such",
    lambda v: all(map(SCALAR.fits, v)) if type(v) is list else SCALAR.fits(v),
)
_PLAIN: dict[Any, Kind] = {
    bool: FLAG,
    int: whole(-(2**63)),
    float: number(),
    str: TEXT,
    Any: ANYTHING,
}


def shape_of(hint: Any) -> Shape:
    """Return the shape that a TypedDict, or a type within one, describes.

    `Annotated[float, SHARE]` has the shape SHARE; a key of type `NotRequired[...]` may be missing.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if is_typeddict(hint):
        hints = get_type_hints(hint, include_extras=True)
        return {
            f"{key}?" if get_origin(each) is NotRequired else key: shape_of(each)
            for key, each in hints.items()
        }
    if origin is Annotated:
        return parts[1]
    if origin is NotRequired:
        return shape_of(parts[0])
    if origin is Literal:
        return one_of(*parts)
    if origin is list:
        return ListOf(shape_of(parts[0]))
    if origin is dict:
        return TableOf(shape_of(parts[1]))
    if origin in (UnionType, Union):
        (some,) = (part for part in parts if part is not NoneType)
        return Maybe(shape_of(some))
    return _PLAIN[hint]
