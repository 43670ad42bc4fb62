"""Files of a published dataset, in their archive or extracted."""

from __future__ import annotations

import gzip
import tarfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sprat.deferred import deferred
from sprat.errors import SpratError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from sprat.data import fetch
else:
    fetch = deferred("sprat.data.fetch")

_LARGEST = 1 << 28  # bytes of a file in an archive; the largest published one is 156 MB


@dataclass(frozen=True)
class Packed:
    """One published form of a dataset.

    folder: name of the folder in the archive. archive: name of the tar.gz.
    needed: names of the files to read. md5s: published md5s by file name.
    """

    folder: str
    archive: str
    archive_md5: str
    needed: tuple[str, ...]
    md5s: Mapping[str, str]

    def find(self, folder: Path) -> Path | None:
        """Return the folder of the extracted files (`folder` or the one in it), else the archive,
        else None."""
        places = (folder / self.folder, folder, folder / self.archive)
        return next((place for place in places if self.holds(place)), None)

    def holds(self, place: Path) -> bool:
        """Return whether `place` is the archive, or a folder with all needed files."""
        if place.name == self.archive:
            return place.is_file()
        return all((place / name).is_file() for name in self.needed)

    def read(self, place: Path) -> dict[str, bytes]:
        """Return the content of the needed files by name, from what `find` returned.

        Raises:
            SpratError: the archive is damaged or lacks one of them.
        """
        if place.is_file():
            return self._read_archive(place)
        return {name: (place / name).read_bytes() for name in self.needed}

    def verify(self, folder: Path) -> dict[Path, str]:
        """Return the state of each published file in `folder`, by md5: "ok", "damaged" or
        "missing".

        An archive or a folder that is not there at all is not reported as missing.
        """
        archive = folder if folder.name == self.archive else folder / self.archive
        expected = {archive: self.archive_md5} if archive.is_file() else {}
        for place in (folder / self.folder, folder):
            if place.is_dir() and any((place / name).exists() for name in self.md5s):
                expected |= {place / name: md5 for name, md5 in self.md5s.items()}
                break
        return {path: state_of(path, md5) for path, md5 in expected.items()}

    def _read_archive(self, archive: Path) -> dict[str, bytes]:
        """Read the archive without extracting it, so that paths in it do not matter."""
        files = {}
        with archive.open("rb") as packed:
            try:
                with gzip.open(packed) as content, tarfile.open(fileobj=content, mode="r:") as tar:
                    for member in tar:
                        name = member.name.removeprefix(f"{self.folder}/")
                        if member.isfile() and name in self.needed:
                            if member.size > _LARGEST:
                                raise tarfile.TarError(f"{name} has {member.size:,} bytes in it")
                            file = tar.extractfile(member)
                            assert file is not None
                            files[name] = file.read()
                    while content.read(1 << 20):  # the checksum is compared at the very end
                        pass
            except Exception as error:  # damaged archives raise all sorts
                raise SpratError(
                    f"{archive} cannot be read as a tar.gz ({error}). Delete it and download it "
                    "again."
                ) from error
        missing = set(self.needed) - set(files)
        if missing:
            raise SpratError(
                f"{archive} lacks {', '.join(sorted(missing))}. Delete it and download it again."
            )
        return files


def state_of(path: Path, md5: str) -> str:
    """Return "ok", "damaged" or "missing" by comparing a file with its published md5."""
    if not path.is_file():
        return "missing"
    return "ok" if fetch.md5_of(path) == md5 else "damaged"
