"""The commands' common root, which each registers itself with."""

from cyclopts import App, Parameter

from sprat import __version__
from sprat.cli.recipe import recipe_under_options

app = App(
    name="sprat",
    version=__version__,
    help="Train, judge and use image classifiers that fit a hard budget.",
    help_format="plaintext",
    config=[recipe_under_options],
    default_parameter=Parameter(consume_multiple=True, negative_iterable=()),
)
data = App(name="data", help="Look at the datasets; fetch them and check their files.")
augment = App(name="augment", help="Look at augmentation.")
app.command(data)
app.command(augment)
