"""Recipes: TOML files of settings, and the differences of a config from a recipe."""

import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

from sprat.errors import SpratError, did_you_mean, shown
from sprat.readers import read_toml
from sprat.settings.config import IN_EPOCHS, RUN_FIELDS, Config, flatten

MOST_SECONDS = 100 * 24 * 3600


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(f.name.removesuffix(".toml") for f in _shipped().iterdir() if ".toml" in f.name)


def recipe_path(recipe: str) -> Path:
    """Return the file of a recipe, given the name of a shipped one or a path that ends in .toml.

    Raises:
        SpratError: there is no such shipped recipe.
    """
    if recipe.endswith(".toml"):
        return Path(recipe)
    if recipe not in recipe_names():
        hint = did_you_mean(recipe, recipe_names())
        names = ", ".join(recipe_names())
        raise SpratError(
            f"Unknown recipe {shown(recipe)}{hint or '.'} Available: {names}, or the path of a "
            ".toml file."
        )
    return Path(str(_shipped() / f"{recipe}.toml"))


def _shipped() -> Any:
    return resources.files("sprat.settings") / "recipes"


def load_recipe(recipe: str) -> Config:
    """Read a recipe by its name ("quick") or its path ("my.toml").

    Raises:
        SpratError: there is no such recipe, it is not TOML, or a setting or value is invalid.
    """
    path = recipe_path(recipe)
    try:
        values = read_toml(path)
    except FileNotFoundError as error:
        raise SpratError(
            f"There is no recipe file {path}. Write one, or name a recipe: "
            f"{', '.join(recipe_names())}."
        ) from error
    return Config.from_dict(values, source=str(path))


def to_toml(config: Config) -> str:
    """Return a config as a recipe's text, without the settings in RUN_FIELDS."""
    values = {key: value for key, value in config.to_dict().items() if key not in RUN_FIELDS}
    tables = {key: value for key, value in values.items() if isinstance(value, dict)}
    lines = _lines({key: value for key, value in values.items() if key not in tables})
    for name, table in tables.items():
        lines += ["", f"[{name}]", *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: dict[str, Any]) -> list[str]:
    """Return a line for each setting; empty lists are left out, since their default is empty."""
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value != []]


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    # as in JSON, except for one character
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


def overrides(config: Config, recipe: Config) -> dict[str, Any]:
    """Return the settings that differ from the recipe: {"epochs": 20, "optim.lr": 0.4, …}.

    `recipe.changed` with them gives the config again. So if the number of epochs differs, a setting
    that only scales with it is left out, and one that keeps the recipe's value is included.
    """
    return {k: v for k, v in departures(config, recipe).items() if k not in RUN_FIELDS}


def departures(config: Config, recipe: Config) -> dict[str, Any]:
    """Return `overrides` together with the settings in RUN_FIELDS that differ."""
    ours = flatten(config.to_dict())
    theirs = flatten(recipe.in_proportion(config.epochs).to_dict()) | {"epochs": recipe.epochs}
    return {k: v for k, v in ours.items() if v != theirs[k]}


def proportion_note(config: Config, recipe: Config) -> str | None:
    """Return a line about settings that scale with the number of epochs; None if none changed."""
    before, now = flatten(recipe.to_dict()), flatten(config.to_dict())
    departs = overrides(config, recipe)
    followed = [
        f"{name} {_short(now[name])} (was {_short(before[name])})"
        for name in IN_EPOCHS
        if now[name] != before[name] and name not in departs
    ]
    if not followed:
        return None
    return f"{config.epochs} of {recipe.epochs} epochs, so in proportion: {', '.join(followed)}"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parse_time(text: str) -> float:
    """Return the seconds of a time such as 90s, 5m or 1h30m.

    Raises:
        SpratError: it is not a time, is 0, or is above 100 days.
    """
    pattern = r"(?=\d)(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?"
    parts = re.fullmatch(pattern, text) if isinstance(text, str) else None
    hours, minutes, rest = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
    seconds = 3600 * hours + 60 * minutes + rest
    if not 0 < seconds <= MOST_SECONDS:
        raise SpratError(
            f"time is {shown(text)}, expected more than 0 and at most 100 days. Write it as 90s, "
            "5m or 1h30m."
        )
    return float(seconds)
