"""A command's recipe, whose settings stand below those that were typed."""

import contextlib

from cyclopts import App, ArgumentCollection
from cyclopts.config import Dict

from sprat.settings.config import Config
from sprat.settings.recipes import load_recipe, recipe_path

DEFAULT_RECIPE = "quick"
# what a command that takes a recipe's settings begins from
DEFAULT_RECIPES = {("train",): DEFAULT_RECIPE, ("augment", "preview"): "reference"}


class RecipeUnderOptions:
    """Lays the recipe's settings under those that were typed; keeps the recipe for the command."""

    config = Config()

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        if commands not in DEFAULT_RECIPES:
            return
        recipe = _typed(arguments, "--recipe") or DEFAULT_RECIPES[commands]
        config = self.config = load_recipe(recipe)  # says what is wrong with it in our own words
        if typed := _typed(arguments, "--model"):
            config = config.changed({"model": typed})
        typed = _typed(arguments, "--epochs")
        with contextlib.suppress(ValueError):  # what is no number of epochs is refused later
            config = config.changed({"epochs": int(typed)}) if typed else config
        values = config.to_dict()
        for command in reversed(commands):  # or a table named like a command would be taken for it
            values = {command: values}
        Dict(values, source=str(recipe_path(recipe)))(app, commands, arguments)


def _typed(arguments: ArgumentCollection, option: str) -> str | None:
    """Return the value that was typed for an option of the command, the last if it stands twice."""
    try:
        tokens = arguments[option].tokens
    except KeyError:  # the command has no such option
        return None
    return tokens[-1].value if tokens else None


chosen_recipe = RecipeUnderOptions()
