"""Report of a dataset's problems: one HTML page that shows the pictures."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sprat import __version__
from sprat.data.check import DataCheck
from sprat.data.duplicates import NEAR_BITS, NEAR_CORRELATION
from sprat.data.suspects import Suspect
from sprat.files import write_whole
from sprat.reporting import make_environment

MOST_PAIRS = 60  # of each kind, shown at most
MOST_BYTES = 500_000  # of pixels of each kind, so that a page stays under about 3 MB


@dataclass(frozen=True)
class _Picture:
    """A picture as the page shows it: image is uint8, C x H x W."""

    image: Tensor
    name: str
    label: str


@dataclass(frozen=True)
class _Sheet:
    """The suspect labels of one class, `count` of them.

    shown: the worst, each with its picture and the name of the suggested class.
    """

    label: str
    count: int
    shown: list[tuple[_Picture, str, Suspect]]


def write_page(found: DataCheck, path: Path) -> None:
    """Write the page, which needs no network, no script and no other file.

    Raises:
        WriteError: it cannot be written.
    """
    most = max(1, min(MOST_PAIRS, MOST_BYTES // (2 * found.images.images.shape[1:].numel())))
    pairs = {"leaks": found.leaks, "conflicts": found.conflicts, "duplicates": found.duplicates}
    alone = {"tiny": found.tiny, "blank": found.blank, "constant": found.nearly_constant}
    environment = make_environment()
    environment.filters["whole"] = lambda share: f"{100 * share:.0f}\N{NO-BREAK SPACE}%"
    page = environment.get_template("data.html").render(
        found=found,
        title=Path(found.dataset).name,
        pairs={
            kind: [(pair.exact, *_pictures(found, [pair.first, pair.second])) for pair in each]
            for kind, each in ((kind, each[:most]) for kind, each in pairs.items())
        },
        alone={kind: _pictures(found, each[: 2 * most]) for kind, each in alone.items()},
        sheets=_sheets(found, 2 * most),
        unreadable=[(found.short(name), why) for name, why in found.unreadable[:MOST_PAIRS]],
        near_bits=NEAR_BITS,
        near_correlation=NEAR_CORRELATION,
        version=__version__,
    )
    write_whole(path, page)


def _pictures(found: DataCheck, places: list[int]) -> list[_Picture]:
    images = found.images.images[torch.tensor(places, dtype=torch.int64)]
    shown = []
    for place, image in zip(places, images, strict=True):
        name, part = found.short(found.names[place]), found.parts[place]
        where = name if name.startswith(f"{part}/") else f"{part}: {name}"
        shown.append(_Picture(image, where, found.label(place)))
    return shown


def _sheets(found: DataCheck, most: int) -> list[_Sheet]:
    """Return a sheet for each class that has suspect labels, all together of about `most`."""
    by_class: dict[int, list[Suspect]] = {}
    for each in found.labels.suspects if found.labels else []:
        by_class.setdefault(each.label, []).append(each)
    sheets = []
    for label, suspects in sorted(by_class.items()):
        worst = suspects[: max(1, most // len(by_class))]
        names = [found.images.classes[each.suggested] for each in worst]
        pictures = _pictures(found, [each.place for each in worst])
        shown = list(zip(pictures, names, worst, strict=True))
        sheets.append(_Sheet(found.images.classes[label], len(suspects), shown))
    return sheets
