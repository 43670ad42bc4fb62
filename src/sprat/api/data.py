"""The function check_data."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sprat import names
from sprat.api.images import check_dataset
from sprat.api.runs import check_names
from sprat.data import Dataset
from sprat.data.own import PicturesConfig
from sprat.deferred import deferred
from sprat.errors import SpratError
from sprat.models.code import Code, use_all
from sprat.settings.config import MOST_FOLDS, Config
from sprat.settings.recipes import load_recipe, overrides
from sprat.text import visible

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.data import check as checking
    from sprat.data.suspects import LabelCheck
else:
    checking = deferred("sprat.data.check")


def check_data(
    dataset: Dataset | str | Path = "auto",
    *,
    labels: bool = False,
    folds: int = names.CHECK_FOLDS,
    recipe: str = "",
    code: Code = (),
    runs: str | Path | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
    quiet: bool = False,
) -> "checking.DataCheck":
    """Find leaks between train, val and test, duplicates, conflicting labels of the same picture,
    files that are not pictures, and pictures that are tiny, blank or nearly constant; with
    `labels`, also labels that are probably wrong.

    Near copies are found even if they were resized, brightened, mirrored, saved again or shifted a
    little. Files that cannot be read are reported, not refused.

    Args:
        dataset: name of a dataset, folder of own pictures, or a dataset in memory.
        labels: whether to train `folds` models, each without one fold of the pictures, and to
            compare every label with the prediction of the model trained without its picture.
        folds: number of folds. A picture and its copies are in the same fold.
        recipe: name or path of the recipe; by default sprint, with epochs and batches adjusted to
            the number of pictures.
        code: Python file or module that defines the recipe's network, if that is your own.
        runs: folder to put the models' runs into, which the same check of the same pictures resumes
            or reuses; by default runs.
        output: HTML file to write, which shows the pictures that were found.
        overwrite: whether to replace an existing file.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache, or a download.
        pictures: settings for reading own pictures.
        quiet: whether to suppress progress on stderr.

    Raises:
        SpratError: there is no such dataset or recipe, the output exists or is not an HTML file, or
            a class has fewer pictures than there are folds.
        KeyboardInterrupt: it was interrupted; the same call resumes.
    """
    check_dataset(dataset)
    path = None if output is None else names.check_page(Path(output), overwrite)
    config = _check_recipe(folds, recipe, code) if labels else None

    from sprat.display import doing, load_shown, make_console

    console = make_console(stderr=True, quiet=quiet)
    if not isinstance(dataset, Dataset):
        place = None if data_dir is None else Path(data_dir)
        skipping = dataclasses.replace(pictures, unreadable="skip")
        dataset = load_shown(console, str(dataset), place, skipping)
    with doing(console, "comparing pictures"):
        found = checking.check(dataset)
    if labels:
        checked = _check_labels(
            console, found, dataset, folds, config, recipe, Path(runs or "runs")
        )
        found = dataclasses.replace(found, labels=checked)
    if path is not None:
        from sprat.reporting.data import write_page

        write_page(found, path)
    return found


def _check_recipe(folds: int, recipe: str, code: Code) -> Config | None:
    """Return the settings of the recipe for checking labels, or None for the default recipe.

    Raises:
        SpratError: there is no such recipe or network, or too few or too many folds.
    """
    if not 2 <= folds <= MOST_FOLDS:
        raise SpratError(f"folds is {folds}, expected 2 to {MOST_FOLDS:,}. Give another number.")
    use_all(code)
    if not recipe:
        return None
    config = load_recipe(recipe).changed({"final": False, "folds": folds, "fold": 0})
    check_names(config)
    return config


def _check_labels(
    console: "Console",
    found: "checking.DataCheck",
    dataset: Dataset,
    folds: int,
    config: Config | None,
    recipe: str,
    runs: Path,
) -> "LabelCheck":
    from sprat.display import FoldsDisplay
    from sprat.training import labels
    from sprat.training.start import settle_for

    images = labels.labelled(found, dataset)
    labels.check_foldable(images, folds)
    began_as = config or labels.quick_config(images, folds)
    how = {"folds": folds, "tta": 1, "evaluate_every": began_as.epochs}
    with FoldsDisplay(console) as display:
        settled = settle_for(began_as.changed(how), images, display)
        folder = runs / labels.name_of_runs(images, settled)
        count = len(images.train)
        console.print(
            f"checking the labels of {count:,} pictures: {folds} folds, {settled.epochs} epochs "
            f"each, in {visible(folder)}"
        )
        name = recipe or labels.RECIPE
        changed = overrides(settled, load_recipe(name))
        return labels.check_labels(
            images, settled, folder, recipe=name, overrides=changed, observer=display
        )
