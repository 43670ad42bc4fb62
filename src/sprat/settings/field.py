"""Declarations of settings: type, default, bounds or choices, unit and help text, in one place.

    @dataclass(frozen=True, kw_only=True)
    class OptimConfig(Table, name="optim"):
        lr: float = setting(0.25, "Peak learning rate", above=0)

The command line's help, docs/reference and all error messages are made from these declarations.
"""

import dataclasses
import inspect
import math
import os
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from sprat.errors import SpratError, shown
from sprat.option import Parameter, Token, convert

LARGEST = 2**53  # floats represent all whole numbers up to here
MOST_SEED = 2**63 - 1
LONGEST_TEXT = 4_096  # characters; no path is longer


@dataclass(frozen=True)
class Scale:
    """Short forms for large whole numbers: "64K" bytes, "100k" parameters."""

    suffixes: Mapping[str, int]
    example: str
    unit: str = ""

    @property
    def expected(self) -> str:
        """Description of the expected value, for error messages."""
        factors = ", ".join(f"{suffix} is {factor:,}" for suffix, factor in self.suffixes.items())
        of_unit = f" of {self.unit}" if self.unit else ""
        plain = self.number(self.example)
        return f"a whole number{of_unit}, such as {plain} or {self.example} ({factors})"

    def number(self, text: str) -> int | None:
        """Return the number that a text represents; None if it is not a whole number.

        Case matters: k is 1,000 and K is 1,024.
        """
        try:
            return int(text, 0)  # 0x10000 and 20_000_000 too
        except ValueError:
            parts = re.fullmatch(r"(\d{1,16}(?:\.\d{1,16})?)([A-Za-z]?)", text, re.ASCII)
        if parts is None or parts[2] not in ("", *self.suffixes):
            return None
        number = Fraction(parts[1]) * self.suffixes.get(parts[2], 1)
        return int(number) if number.denominator == 1 else None


COUNT = Scale({"k": 10**3, "M": 10**6, "G": 10**9}, "100k")
BYTES = Scale({"K": 2**10, "M": 2**20, "G": 2**30}, "64K", "bytes")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Declaration of a setting, made by `setting`."""

    about: str
    default: Any
    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None
    choices: tuple[Any, ...]
    unit: str
    zero: str
    scale: Scale | None
    formerly: str
    name: str = ""
    """Name with its table: "optim.lr"."""
    type: Any = None

    @property
    def help(self) -> str:
        """Help text for the command line and the reference, in one line."""
        about = self.about
        if self.unit not in about:
            about += f", in {self.unit}"
        if self.choices and not isinstance(self.choices[0], str):  # cyclopts lists names
            about += f": {either(self.choices)}"
        if self.scale is not None:
            about += f", such as {self.scale.example}"
        return f"{about}; 0: {self.zero}." if self.zero else f"{about}."

    def converted(self, value: Any) -> Any:
        """Return a value in the setting's type: a whole number as a float if the setting is one, a
        list or a single item of a list as a tuple.

        Raises:
            SpratError: it has another type, is out of bounds or is not one of the choices.
        """
        if typing.get_origin(self.type) is not tuple:
            return self._converted(value, value)
        items = [value] if isinstance(value, str | int | float) else value
        items = [] if value == "" else items
        if not isinstance(items, list | tuple):
            raise self._refused(value, self._expected)
        return tuple(self._converted(item, value) for item in items)

    def _converted(self, item: Any, value: Any) -> Any:
        """Return `item`, which is `value` or an item of the list `value`, in the setting's type."""
        if self.choices:
            if not any(item == choice and type(item) is type(choice) for choice in self.choices):
                raise self._refused(value, self._expected)
            return item
        if self.scale is not None and isinstance(item, str):
            item = self.scale.number(item)
            value = value if item is None else item
        if self._kind is float and type(item) is int and abs(item) <= LARGEST:
            item = float(item)
        if not self._has_type(item):
            raise self._refused(value, self._expected_type)
        if self._kind in (int, float) and not self._within(item):
            raise self._refused(value, self._expected)
        return item

    def _has_type(self, item: Any) -> bool:
        if self._kind is str:
            names = isinstance(item, str) and _can_name_a_file(item)
            return names and not (self._is_list and not item)
        return isinstance(item, self._kind) and (self._kind is bool or not isinstance(item, bool))

    def _within(self, number: float) -> bool:
        return (
            not (isinstance(number, float) and not math.isfinite(number))
            and (self.at_least is None or number >= self.at_least)
            and (self.above is None or number > self.above)
            and (self.at_most is None or number <= self.at_most)
            and (self.below is None or number < self.below)
        )

    @property
    def _kind(self) -> Any:
        """The setting's type, or that of its items if it is a list."""
        return typing.get_args(self.type)[0] if self._is_list else self.type

    @property
    def _is_list(self) -> bool:
        return typing.get_origin(self.type) is tuple

    @property
    def _expected_type(self) -> str:
        if self.scale is not None:
            return self.scale.expected
        least = 1 if self._is_list else 0
        kind = {
            int: "a whole number",
            float: "a number",
            bool: "true or false",
            str: f"a string of {least} to {LONGEST_TEXT:,} characters that can name a file",
        }[self._kind]
        bounds = f", {self._bounds}" if self._bounds else ""
        return self._each(kind + bounds)

    @property
    def _expected(self) -> str:
        if self.choices:
            return self._each(either(self.choices))
        if self._kind is str:
            return self._expected_type
        if self.at_least is not None and self.at_most is not None:
            return self._each(self._bounds)
        return self._each(f"a number {'' if self.at_least is None else 'of '}{self._bounds}")

    @property
    def _bounds(self) -> str:
        """Bounds: "0 (one per core) to 1,024", "above 0 and at most 0.5", "0 to 180 degrees"."""
        low, high = self.at_least, self.at_most
        zero = f" ({self.zero})" if self.zero and low == 0 else ""
        unit = f" {self.unit}" if self.unit else ""
        if low is not None and high is not None:
            return f"{low:,}{zero} to {high:,}{unit}"
        parts = [
            f"{word} {bound:,}"
            for word, bound in (
                ("at least", low), ("above", self.above), ("at most", high), ("below", self.below)
            )
            if bound is not None
        ]  # fmt: skip
        return " and ".join(parts) + (unit + zero if parts else "")

    def _each(self, expected: str) -> str:
        return f"a list, each item {expected}" if self._is_list else expected

    def _refused(self, value: Any, expected: str) -> SpratError:
        default = repr(list(self.default) if self._is_list else self.default)
        default = default.lower() if isinstance(self.default, bool) else default
        return refused(self.name, value, expected, f"The default is {default}.")


def setting(
    default: Any,
    about: str,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Iterable[Any] = (),
    unit: str = "",
    zero: str = "",
    scale: Scale | None = None,
    formerly: str = "",
) -> Any:
    """Declare a setting of a `Table`. The field's annotation is its type: int, float, bool, str,
    a Literal of its choices, or a tuple of one of these.

    Args:
        about: what it does, without a full stop; `Setting.help` adds unit, choices and zero.
        choices: permitted values.
        unit: unit of the value, such as "pixels".
        zero: meaning of 0, if that is special.
        scale: COUNT or BYTES, if the value may be written as 100k or 64K.
        formerly: former name, which recipes and recorded runs may still use, and commands too if
            there is a scale.
    """
    declared = Setting(
        about=about,
        default=default,
        at_least=at_least,
        above=above,
        at_most=at_most,
        below=below,
        choices=tuple(choices),
        unit=unit or (scale.unit if scale else ""),
        zero=zero,
        scale=scale,
        formerly=formerly,
    )
    # cyclopts reads "help" from the metadata
    return dataclasses.field(default=default, metadata={"setting": declared, "help": declared.help})


def limit(about: str, unit: str = "", **how: Any) -> Any:
    """Declare a `setting` that is a limit: a whole number, 0 for no limit."""
    return setting(0, about, at_least=0, at_most=LARGEST, unit=unit, zero="no limit", **how)


def probability_setting(default: float, about: str) -> Any:
    """Declare a `setting` from 0 to 1."""
    return setting(default, about, at_least=0, at_most=1)


class Table:
    """Settings that belong together; making a table checks each of them.

    Subclasses are frozen dataclasses whose fields are settings or tables.
    """

    settings: ClassVar[dict[str, Setting]]
    tables: ClassVar[dict[str, type["Table"]]]

    def __init_subclass__(cls, name: str = "") -> None:
        cls.settings = dict(getattr(cls, "settings", {}))
        cls.tables = dict(getattr(cls, "tables", {}))
        hints = typing.get_type_hints(cls)
        for key in inspect.get_annotations(cls):
            declared = getattr(cls.__dict__.get(key), "metadata", {}).get("setting")
            if declared is None:
                if isinstance(hints[key], type) and issubclass(hints[key], Table):
                    cls.tables[key] = hints[key]
                continue
            choices = declared.choices or _literals(hints[key])
            place = f"{name}.{key}" if name else key
            cls.settings[key] = dataclasses.replace(
                declared, name=place, type=hints[key], choices=choices
            )
            if hints[key] is str and choices:  # so that the command line lists them
                cls.__annotations__[key] = Literal.__getitem__(choices)
            if hints[key] in (tuple[int, ...], tuple[float, ...]):
                cls.__annotations__[key] = Annotated[hints[key], Parameter(converter=_split)]
            if declared.scale is not None:
                former = declared.formerly.replace("_", "-")
                how = Parameter(converter=_read_by(cls.settings[key]), alias=former or None)
                cls.__annotations__[key] = Annotated[hints[key], how]

    @classmethod
    def with_names_of_today(cls, values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """Return values by the settings' current names; they may be given by former names.

        Args:
            prefix: prefix of every name in `values`, such as "budget." if settings of other tables
                are among them.

        Raises:
            SpratError: a setting is given by both names with different values.
        """
        renamed = dict(values)
        for key, declared in cls.settings.items():
            now, then = f"{prefix}{key}", f"{prefix}{declared.formerly}"
            if not declared.formerly or then not in renamed:
                continue
            value = declared.converted(renamed.pop(then))
            other = declared.converted(renamed.get(now, declared.default))
            if declared.default not in (value, other) and value != other:
                raise SpratError(
                    f"{declared.name} is {other}, but {declared.formerly}, its former name, is "
                    f"{value}. Keep only {key}."
                )
            if other == declared.default:
                renamed[now] = value
        return renamed

    def __post_init__(self) -> None:
        for key, declared in self.settings.items():
            object.__setattr__(self, key, declared.converted(getattr(self, key)))
        self.check_together()

    def check_together(self) -> None:
        """Check conditions that involve more than one setting.

        Raises:
            SpratError: settings contradict each other.
        """


def refused(name: str, value: Any, expected: str, remedy: str) -> SpratError:
    """Return the error for a value: "optim.lr is -1.0, expected a number above 0. …"."""
    return SpratError(f"{name} is {shown(value)}, expected {expected}. {remedy}")


def either(choices: Iterable[Any]) -> str:
    """Return "'a', 'b' or 'c'"."""
    *most, last = map(repr, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _split(hint: Any, tokens: Sequence[Token]) -> Any:
    """Return the numbers of an option given as 40,72 or as 40 72."""
    return convert(hint, [t.evolve(value=part) for t in tokens for part in t.value.split(",")])


def _read_by(declared: Setting) -> Callable[[Any, Sequence[Token]], Any]:
    """Return a converter of command-line text by the setting's scale."""

    def read(hint: Any, tokens: Sequence[Token]) -> Any:
        return declared.converted(tokens[-1].value)

    return read


def _literals(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()


def _can_name_a_file(text: str) -> bool:
    try:
        return len(text) <= LONGEST_TEXT and b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half a surrogate pair
        return False
