"""Recipes on the command line: defaults for the settings that are not given as options."""

import contextlib

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, recipe_path

DEFAULT_RECIPE = "quick"
# default recipe of each command whose options are a recipe's settings
DEFAULT_RECIPES = {("train",): DEFAULT_RECIPE, ("augment", "preview"): "reference"}


class RecipeUnderOptions:
    """Use the recipe's settings as defaults of the options; keep the recipe for the command."""

    config = Config()

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        if commands not in DEFAULT_RECIPES:
            return
        recipe = _typed(arguments, "--recipe") or DEFAULT_RECIPES[commands]
        config = self.config = load_recipe(recipe)  # reports errors in sprat's own words
        if typed := _typed(arguments, "--model"):
            config = config.changed({"model": typed})
        typed = _typed(arguments, "--epochs")
        with contextlib.suppress(ValueError):  # an invalid number is refused later
            config = config.changed({"epochs": int(typed)}) if typed else config
        values = config.to_dict()
        for command in reversed(commands):  # else a table could be mistaken for a command
            values = {command: values}
        Dict(values, source=str(recipe_path(recipe)))(app, commands, arguments)


def _typed(arguments: ArgumentCollection, option: str) -> str | None:
    """Return the value given for an option of the command; if there are several, the last."""
    try:
        tokens = arguments[option].tokens
    except KeyError:  # the command has no such option
        return None
    return tokens[-1].value if tokens else None


chosen_recipe = RecipeUnderOptions()
