"""Reader for CIFAR's pickles that never executes anything they contain."""

import io
import pickle
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sprat.errors import SpratError


def read_pickle(content: bytes, name: str) -> dict[bytes, Any]:
    """Return the dictionary in one of CIFAR's files.

    Args:
        name: how errors refer to the file.

    Raises:
        SpratError: it is damaged, contains something else, or asks for what no published file
            needs.
    """
    try:
        held = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _AttackError as error:
        raise SpratError(
            f"{name} asks for {error}, which no file of this dataset needs, so it may be an "
            "attack. Delete it and download the dataset again."
        ) from error
    except Exception as error:  # damaged pickles raise all sorts
        raise refusal(name, f"is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(held, dict):
        raise refusal(name, "holds no data and labels")
    return held


def read_batch(
    content: bytes, name: str, labels_key: bytes, count: int, classes: int
) -> tuple[Tensor, Tensor]:
    """Read the images of one batch file, in its order.

    Args:
        labels_key: key of the labels, as CIFAR-100 has two kinds.
        count: number of images that the file must have.
        classes: number of classes.

    Returns:
        images: uint8, count x 3 x 32 x 32. targets: int64, count.

    Raises:
        SpratError: as `read_pickle`, or the file does not contain such a batch.
    """
    batch = read_pickle(content, name)
    if not {b"data", labels_key} <= set(batch):
        raise refusal(name, "holds no data and labels")
    data, labels = batch[b"data"], batch[labels_key]
    values = data.values if isinstance(data, _Array) else None
    shape = (count, 3 * 32 * 32)
    if values is None or values.shape != shape:
        raise refusal(name, f"holds data that is not uint8 of shape {shape}")
    ok = isinstance(labels, list) and len(labels) == count
    if not ok or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise refusal(name, f"does not hold {count:,} labels from 0 to {classes - 1}")
    images = torch.from_numpy(np.array(values, order="C")).view(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


def refusal(name: str, why: str) -> SpratError:
    """Return the error for a file that differs from the published one."""
    return SpratError(f"{name} {why}, unlike the published file. Download the dataset again.")


class _AttackError(Exception):
    """A pickle asks for a name that it should not need."""


class _Dtype:
    """Stand-in for numpy.dtype. A hostile state could make numpy take raw bytes for objects, so
    numpy never sees it."""

    def __init__(self, name: object, *_: object) -> None:
        self.is_uint8 = name in ("u1", b"u1")

    def __setstate__(self, state: object) -> None: ...


class _Array:
    """Stand-in for numpy.ndarray and its constructor; `values` is the content if it is uint8."""

    values: NDArray[np.uint8] | None = None

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, by_columns, content = state
        if isinstance(dtype, _Dtype) and dtype.is_uint8 and isinstance(content, bytes):
            order: Literal["F", "C"] = "F" if by_columns else "C"
            self.values = np.frombuffer(content, np.uint8).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    """Unpickler that resolves only the names that CIFAR's pickles use, to stand-ins, and calls
    nothing else."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._allowed:
            raise _AttackError(f"{module}.{name}")
        return self._allowed[module, name]
