"""CIFAR's pickles, read without running anything that they ask for."""

import io
import pickle
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sprat.errors import SpratError


def read_pickle(content: bytes, name: str) -> dict[bytes, Any]:
    """The dictionary that a file of CIFAR's holds.

    Args:
        name: what the file is called in an error.

    Raises:
        SpratError: it is damaged, holds something else, or asks for what none of them needs.
    """
    try:
        held = _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except _AttackError as error:
        raise SpratError(
            f"{name} asks for {error}, which it has no need of; it may be an attack: delete it "
            "and fetch the dataset again"
        ) from error
    except Exception as error:  # a damaged pickle raises anything
        raise refusal(name, f"is damaged ({type(error).__name__}: {error})") from error
    if not isinstance(held, dict):
        raise refusal(name, "holds no data and labels")
    return held


def read_batch(
    content: bytes, name: str, labels_key: bytes, count: int, classes: int
) -> tuple[Tensor, Tensor]:
    """The images of one batch file, in its order.

    Args:
        labels_key: what its labels are called: CIFAR-100 has two kinds.
        count: how many images it must hold.
        classes: how many there are.

    Returns:
        images: uint8, count x 3 x 32 x 32. targets: int64, count.

    Raises:
        SpratError: as `read_pickle`, or that is not what it holds.
    """
    batch = read_pickle(content, name)
    if not {b"data", labels_key} <= set(batch):
        raise refusal(name, "holds no data and labels")
    data, labels = batch[b"data"], batch[labels_key]
    shape = (count, 3 * 32 * 32)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != shape:
        raise refusal(name, f"holds data that is not uint8 of shape {shape}")
    ok = isinstance(labels, list) and len(labels) == count
    if not ok or not all(type(label) is int and 0 <= label < classes for label in labels):
        raise refusal(name, f"does not hold {count:,} labels from 0 to {classes - 1}")
    images = torch.from_numpy(np.array(data, order="C")).view(-1, 3, 32, 32)
    return images, torch.tensor(labels, dtype=torch.int64)


def refusal(name: str, why: str) -> SpratError:
    """The error of a file that is not what was published."""
    return SpratError(f"{name} {why}; it is not what was published, fetch the dataset again")


class _AttackError(Exception):
    """The name that a pickle asks for and should not."""


class _Unpickler(pickle.Unpickler):
    """Knows the three names that CIFAR's pickles use and calls nothing else."""

    _allowed: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self._allowed:
            return self._allowed[module, name]
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        raise _AttackError(f"{module}.{name}")


def _empty_array(kind: type, shape: tuple[int, ...], typecode: bytes) -> np.ndarray:
    """What numpy's `_reconstruct` does for a plain array; its state is set afterwards."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError(f"cannot rebuild {kind}")
    return np.ndarray.__new__(np.ndarray, shape, typecode.decode("ascii"))
