"""A command's recipe, whose settings stand below those that were typed."""

import contextlib

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from sprat.settings.recipes import load_recipe, recipe_path

DEFAULT_RECIPE = "quick"
# what a command that takes a recipe's settings begins from
DEFAULT_RECIPES = {("train",): DEFAULT_RECIPE, ("augment", "preview"): "reference"}


def recipe_under_options(
    app: App, commands: tuple[str, ...], arguments: ArgumentCollection
) -> None:
    """Lays the recipe's settings under those that were typed."""
    if commands not in DEFAULT_RECIPES:
        return
    typed = arguments["--recipe"].tokens
    recipe = typed[-1].value if typed else DEFAULT_RECIPES[commands]
    config = load_recipe(recipe)  # says what is wrong with it in our own words
    typed = arguments["--epochs"].tokens
    with contextlib.suppress(ValueError):  # what is no number of epochs is refused later
        config = config.changed({"epochs": int(typed[-1].value)}) if typed else config
    values = config.to_dict()
    for command in reversed(commands):  # or a table named like a command would be taken for it
        values = {command: values}
    Dict(values, source=str(recipe_path(recipe)))(app, commands, arguments)
