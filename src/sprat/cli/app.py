"""The root application, with which every command registers itself."""

from cyclopts import App, Parameter

from sprat import __version__
from sprat.cli.recipe import chosen_recipe

app = App(
    name="sprat",
    version=__version__,
    help="Train, evaluate and use image classifiers that fit a hard budget.",
    help_format="plaintext",
    config=[chosen_recipe],
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
data = App(name="data", help="Show, download and check datasets.")
augment = App(name="augment", help="Preview augmentation.")
app.command(data)
app.command(augment)
