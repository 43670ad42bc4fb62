"""The verb of data: check_data."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

from sprat import names
from sprat.api.images import check_dataset
from sprat.data import Dataset
from sprat.data.own import PicturesConfig
from sprat.deferred import deferred

if TYPE_CHECKING:
    from sprat.data import check as checking
else:
    checking = deferred("sprat.data.check")


def check_data(
    dataset: Dataset | str | Path = "auto",
    *,
    output: str | Path | None = None,
    overwrite: bool = False,
    data_dir: str | Path | None = None,
    pictures: PicturesConfig = PicturesConfig(),  # noqa: B008
    quiet: bool = False,
) -> "checking.DataCheck":
    """Look for leaks between train, val and test, duplicates, conflicting labels of the same
    picture, files that are no pictures, and pictures that are tiny, blank or nearly constant.

    Near copies are found where they were resized, brightened, mirrored, saved again or moved a
    little. Files that cannot be read are reported, not refused.

    Args:
        dataset: name of a dataset, folder of own pictures, or a dataset in memory.
        output: HTML file to write, which shows what was found.
        overwrite: whether an output that exists is replaced.
        data_dir: folder of the dataset; by default $SPRAT_DATA, the user's cache, or a download.
        pictures: how own pictures are read.
        quiet: whether to show no progress on stderr.

    Raises:
        SpratError: there is no such dataset, or the output exists or is no HTML file.
    """
    check_dataset(dataset)
    path = None if output is None else names.check_page(Path(output), overwrite)

    from sprat.display import doing, load_shown, make_console

    console = make_console(stderr=True, quiet=quiet)
    if not isinstance(dataset, Dataset):
        place = None if data_dir is None else Path(data_dir)
        skipping = dataclasses.replace(pictures, unreadable="skip")
        dataset = load_shown(console, str(dataset), place, skipping)
    with doing(console, "comparing pictures"):
        found = checking.check(dataset)
    if path is not None:
        from sprat.reporting.data import write_page

        write_page(found, path)
    return found
