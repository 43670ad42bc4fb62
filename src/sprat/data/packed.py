"""Published files: in their archive, or in the folder that the archive holds."""

import gzip
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sprat.data.fetch import md5_of
from sprat.errors import SpratError

_LARGEST = 1 << 28  # bytes of a file in an archive; the largest published one has 156 million


@dataclass(frozen=True)
class Packed:
    """One form in which a dataset was published.

    folder: its name in the archive, and where that was extracted. archive: its name, a tar.gz.
    needed: names of the files that are read. md5s: the published ones, by name.
    """

    folder: str
    archive: str
    archive_md5: str
    needed: tuple[str, ...]
    md5s: Mapping[str, str]

    def find(self, folder: Path) -> Path | None:
        """The extracted files (in `folder` or in theirs inside it), or the archive; or None."""
        places = (folder / self.folder, folder, folder / self.archive)
        return next((place for place in places if self.holds(place)), None)

    def holds(self, place: Path) -> bool:
        """Whether `place` is the archive, or a folder with every file that is needed."""
        if place.name == self.archive:
            return place.is_file()
        return all((place / name).is_file() for name in self.needed)

    def read(self, place: Path) -> dict[str, bytes]:
        """The needed files' bytes by name, from what `find` returned.

        Raises:
            SpratError: the archive is damaged or lacks one of them.
        """
        if place.is_file():
            return self._read_archive(place)
        return {name: (place / name).read_bytes() for name in self.needed}

    def verify(self, folder: Path) -> dict[Path, str]:
        """Each published file in `folder`, "ok", "damaged" or "missing" by its md5.

        An archive or an extracted folder that is not there at all is not missed.
        """
        archive = folder if folder.name == self.archive else folder / self.archive
        expected = {archive: self.archive_md5} if archive.is_file() else {}
        for place in (folder / self.folder, folder):
            if place.is_dir() and any((place / name).exists() for name in self.md5s):
                expected |= {place / name: md5 for name, md5 in self.md5s.items()}
                break
        return {path: judge(path, md5) for path, md5 in expected.items()}

    def _read_archive(self, archive: Path) -> dict[str, bytes]:
        """Nothing is extracted, so no path in the archive matters."""
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
                    while content.read(1 << 20):  # only at its very end is the checksum compared
                        pass
            except Exception as error:  # a damaged archive raises anything
                raise SpratError(
                    f"{archive} cannot be read as a tar.gz ({error}); delete it and fetch it again"
                ) from error
        missing = set(self.needed) - set(files)
        if missing:
            raise SpratError(f"{archive} lacks {', '.join(sorted(missing))}; fetch it again")
        return files


def judge(path: Path, md5: str) -> str:
    """ "ok", "damaged" or "missing": a file beside its published md5."""
    if not path.is_file():
        return "missing"
    return "ok" if md5_of(path) == md5 else "damaged"
