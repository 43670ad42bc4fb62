"""One HTML page about a dataset: what is wrong with it, as pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sprat import __version__
from sprat.data.check import DataCheck
from sprat.data.duplicates import NEAR_BITS, NEAR_CORRELATION
from sprat.files import write_whole
from sprat.reporting import make_environment

MOST_PAIRS = 60  # of a kind that are shown
MOST_BYTES = 500_000  # of a kind's pixels, so that a page stays under about 3 MB


@dataclass(frozen=True)
class _Picture:
    """A picture as the page shows it: image is uint8, C x H x W."""

    image: Tensor
    name: str
    label: str


def write_page(found: DataCheck, path: Path) -> None:
    """Write a page about what was found, which needs no network, no script and no other file.

    Raises:
        WriteError: it cannot be written.
    """
    most = max(1, min(MOST_PAIRS, MOST_BYTES // (2 * found.images.images.shape[1:].numel())))
    pairs = {"leaks": found.leaks, "conflicts": found.conflicts, "duplicates": found.duplicates}
    alone = {"tiny": found.tiny, "blank": found.blank, "constant": found.nearly_constant}
    page = (
        make_environment()
        .get_template("data.html")
        .render(
            found=found,
            title=Path(found.dataset).name,
            pairs={
                kind: [(pair.exact, *_pictures(found, [pair.first, pair.second])) for pair in each]
                for kind, each in ((kind, each[:most]) for kind, each in pairs.items())
            },
            alone={kind: _pictures(found, each[: 2 * most]) for kind, each in alone.items()},
            unreadable=[(_short(found, name), why) for name, why in found.unreadable[:MOST_PAIRS]],
            near_bits=NEAR_BITS,
            near_correlation=NEAR_CORRELATION,
            version=__version__,
        )
    )
    write_whole(path, page)


def _pictures(found: DataCheck, places: list[int]) -> list[_Picture]:
    images = found.images.images[torch.tensor(places, dtype=torch.int64)]
    shown = []
    for place, image in zip(places, images, strict=True):
        name, part = _short(found, found.names[place]), found.parts[place]
        where = name if name.startswith(f"{part}/") else f"{part}: {name}"
        shown.append(_Picture(image, where, found.label(place)))
    return shown


def _short(found: DataCheck, name: str) -> str:
    """Return a picture's path within its dataset."""
    return name.removeprefix(f"{found.dataset}/")
