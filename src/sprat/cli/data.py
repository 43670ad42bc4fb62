"""Commands for data and augmentation: data show, fetch, verify, check; augment preview."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from sprat.cli.app import augment, data
from sprat.cli.errors import complain
from sprat.cli.options import Code, DataDir, Flag, JsonOutput, check_picture
from sprat.cli.recipe import DEFAULT_RECIPES
from sprat.data import ACCEPTED, PREFERRED, PUBLISHED, check_dataset, check_published
from sprat.data.own import PicturesConfig
from sprat.errors import SpratError
from sprat.names import CHECK_FOLDS
from sprat.settings.config import Config
from sprat.text import visible

PublishedDataset = Annotated[str, Parameter(help=f"{', '.join(PUBLISHED)}.")]


@data.command
def show(
    *,
    dataset: Annotated[str, Parameter(help=f"{ACCEPTED}.")] = "auto",
    output: Path | None = None,
    columns: int = 12,
    data_dir: DataDir = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
) -> None:
    """Draw a contact sheet of training images, one row per class.

    Parameters
    ----------
    output
        PNG file to write; by default DATASET.png.
    columns
        Number of images in a row.
    """
    check_picture(output, columns)
    check_dataset(dataset)

    from sprat.display import load_shown, make_console
    from sprat.figures.png import draw_contact_sheet

    console = make_console()
    loaded = load_shown(console, dataset, data_dir, pictures)
    title = f"{loaded.name}: {len(loaded.train):,} training, {len(loaded.test):,} test images"
    path = output or Path(f"{Path(loaded.name).name}.png")
    draw_contact_sheet(loaded.train, title, path, columns)
    print(visible(path))


@data.command
def fetch(
    *,
    dataset: PublishedDataset = PREFERRED,
    data_dir: Annotated[
        Path | None,
        Parameter(
            help="Folder to download into; by default your cache, unless $SPRAT_DATA has the "
            "dataset."
        ),
    ] = None,
) -> None:
    """Download a dataset unless it is complete, and print where it is. An interrupted download
    resumes.
    """
    check_published(dataset)

    from sprat.data import fetch_dataset
    from sprat.display import loading, make_console, noting

    console = make_console(stderr=True)
    with loading(console, f"looking for {dataset}") as progress:
        place = fetch_dataset(dataset, data_dir, progress, noting(console))
    print(visible(place))


@data.command
def verify(
    *,
    dataset: PublishedDataset = PREFERRED,
    data_dir: Annotated[
        Path | None,
        Parameter(help="Folder of the dataset; by default $SPRAT_DATA, then your cache."),
    ] = None,
    json_output: JsonOutput = False,
) -> int:
    """Compare a dataset's files with their published md5s, one line each. The exit code is 0 if all
    files are complete, else 1.
    """
    check_published(dataset)

    from sprat.data import verify_dataset

    folder, states = verify_dataset(dataset, data_dir)
    ok = all(state == "ok" for state in states.values())
    if json_output:
        named = {str(path): state for path, state in states.items()}
        print(json.dumps({"folder": str(folder), "ok": ok, "files": named}))
    else:
        for path, state in states.items():
            print(f"{visible(path)}   {'DAMAGED' if state == 'damaged' else state}")
    return 0 if ok else 1


@data.command
def check(
    dataset: Annotated[str, Parameter(help=f"{ACCEPTED}.")] = "auto",
    *,
    output: Path | None = None,
    overwrite: Flag = False,
    labels: Flag = False,
    folds: int = CHECK_FOLDS,
    recipe: str = "",
    code: Code = (),
    runs: Path | None = None,
    data_dir: DataDir = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
    json_output: JsonOutput = False,
) -> int:
    """Find leaks between train, val and test, duplicates, conflicting labels, and pictures that are
    unreadable, tiny, blank or nearly constant. The exit code is 1 if there are leaks or conflicts.

    Parameters
    ----------
    output
        HTML file to write, which shows the pictures that were found.
    overwrite
        Replace an existing file.
    labels
        Also list labels that are probably wrong; this trains models for some minutes.
    folds
        With --labels: number of models to train; each checks the labels of the pictures that it was
        not trained on.
    recipe
        With --labels: name or path of the recipe; by default sprint, with the number of epochs
        adjusted to the number of pictures.
    runs
        With --labels: folder for the models' runs, which the same command resumes. Default: runs.
    """
    if not labels and (folds != CHECK_FOLDS or recipe or code or runs):
        raise SpratError("--folds, --recipe, --code and --runs need --labels. Add --labels.")

    from sprat import api

    try:
        found = api.check_data(
            dataset,
            labels=labels,
            folds=folds,
            recipe=recipe,
            code=code,
            runs=runs,
            output=output,
            overwrite=overwrite,
            data_dir=data_dir,
            pictures=pictures,
        )
    except KeyboardInterrupt:
        if labels:
            complain("Interrupted. The same command resumes after the last finished epoch.")
            return 130
        raise
    if json_output:
        print(json.dumps(found.to_dict()))
    else:
        from sprat.display import make_console, print_check

        print_check(make_console(), found)
        if output is not None:
            print(visible(output))
    return 0 if found.ok else 1


@augment.command
def preview(
    *,
    recipe: str = DEFAULT_RECIPES["augment", "preview"],
    model: Annotated[str, Parameter(show=False)] = "",  # as of sprat train; no effect here
    output: Path | None = None,
    columns: int = 8,
    data_dir: DataDir = None,
    config: Annotated[Config, Parameter(name="*")] = Config(),  # noqa: B008
) -> None:
    """Draw what a recipe does to training images: each transform alone at its limits, all of them
    together, and each mixer with its weights.

    Parameters
    ----------
    recipe
        Name of a recipe that comes with sprat, or path of a .toml file. Options change its
        settings.
    output
        PNG file to write; by default augment-RECIPE.png.
    columns
        Number of pictures in a row, each of a different class.
    """
    check_picture(output, columns)
    from sprat.api.runs import check_names

    check_names(config)

    from sprat.display import load_shown, make_console
    from sprat.figures.png import draw_preview
    from sprat.training.images import preview_augmentation

    loaded = load_shown(make_console(), config.dataset, data_dir, config.pictures)
    rows = preview_augmentation(config, loaded.train, columns)
    name = Path(recipe).stem
    path = output or Path(f"augment-{name}.png")
    draw_preview(rows, f"{name} on {loaded.name}", path)
    print(visible(path))
