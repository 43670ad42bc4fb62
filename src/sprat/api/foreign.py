"""Networks that were trained elsewhere: import_model, and how evaluate loads one."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sprat.data import DATASETS, PREFERRED, Dataset
from sprat.errors import SpratError, did_you_mean, shown
from sprat.evaluation.records import NetworkSpec
from sprat.foreign import Foreign
from sprat.models import find_name
from sprat.models.code import Code, use_networks
from sprat.readers import MODEL_BYTES, read_bytes
from sprat.settings.config import Config

if TYPE_CHECKING:
    from rich.console import Console

    from sprat.checkpoint import Model

SIDE = 32  # pixels, by default
CLOSE = 1e-4  # relative tolerance of the logits of a model that is loaded again


@dataclass(frozen=True)
class Imported:
    """A model imported from a network that was trained elsewhere."""

    path: Path
    network: NetworkSpec
    classes: tuple[str, ...]
    """Names of the classes, in the order of the network's outputs."""
    mean: tuple[float, ...]
    """Mean of each channel, as a fraction of full brightness, like std."""
    std: tuple[float, ...]
    side: int
    """Side of the images, in pixels."""
    parameters: int


def import_model(
    network: str,
    *,
    weights: str | Path,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    classes: str | Sequence[str] = (),
    side: int = 0,
    channels: int = 3,
    key: str = "",
    dataset: str = "",
    output: str | Path | None = None,
    overwrite: bool = False,
    code: Code = (),
    quiet: bool = False,
) -> Imported:
    """Import a network that was trained elsewhere as a model file that all other functions accept.

    The file of weights is read without running any code in it. Before the model is put in place, it
    is loaded again and its outputs are compared.

    Args:
        network: name of a network, or a class or function of your own that returns one:
            "my_nets.py:MyNet"; that file is run.
        weights: file written by `torch.save(network.state_dict(), …)` or safetensors, or a
            checkpoint that contains a state dict among other values.
        mean: mean that the network's images were normalised with: one value, or one each for red,
            green and blue, on a scale of 0 to 1 or 0 to 255.
        std: standard deviation that goes with the mean, on the same scale.
        classes: names in the order of the network's outputs, or a .txt file with one name per line.
        side: side of the images that the network expects, in pixels; 0: 32.
        channels: channels of these images: 3, or 1, in which case colour is converted to grey.
        key: set of weights to use if the file has several, such as "state_dict_ema".
        dataset: name of the dataset that the network was trained on. Other functions then use it by
            default, and its classes are used unless `classes` is given.
        output: file to write; by default the network's name with .safetensors, in the current
            folder.
        overwrite: whether to replace an existing file.
        code: further Python files or modules to run.
        quiet: whether to suppress progress on stderr.

    Raises:
        SpratError: there is no such network or file, the weights do not fit, mean or std are
            invalid, the network does not return one logit per class, or the output exists. In these
            cases, nothing is written.
    """
    shape: dict[str, Any] = {"mean": mean, "std": std, "classes": classes, "channels": channels}
    given = Foreign(weights=str(weights), key=key, side=side, **shape)  # they become tuples
    given.check_given()
    _check_published(dataset, bool(given.classes))
    use_networks([network], code)
    name = find_name(network).rpartition(":")[2]
    path = check_new(Path(output or f"{name}.safetensors"), overwrite)

    from sprat.budget import count_parameters
    from sprat.checkpoint import packed
    from sprat.display import load_shown, make_console
    from sprat.files import write_whole

    names = given.class_names()
    if not names:
        console = make_console(stderr=True, quiet=quiet)
        names = load_shown(console, dataset, None, Config().pictures).train.classes
    digest = hashlib.sha256(read_bytes(Path(given.weights), MODEL_BYTES)).hexdigest()
    about: dict[str, Any] = {"imported": {"weights": Path(given.weights).name, "sha256": digest}}
    about |= {"dataset": dataset} if dataset else {}
    model = given.model(network, names, given.side or SIDE, about)
    content = packed(model)
    _check_loads_again(model, content)
    write_whole(path, content, new=not overwrite)
    return Imported(
        path=path,
        network=model.network_config.to_dict(),
        classes=model.classes,
        mean=model.normalization.mean,
        std=model.normalization.std,
        side=model.side,
        parameters=count_parameters(model.network),
    )


def check_new(path: Path, overwrite: bool) -> Path:
    """Return the path of a model's file to write, if it ends in .safetensors and may be written.

    Raises:
        SpratError: it does not, or it exists already.
    """
    if path.suffix != ".safetensors":
        raise SpratError(
            f"--output is {path}, expected a name that ends in .safetensors. Give another name."
        )
    if path.is_dir():
        raise SpratError(f"{path} is a folder. Give another --output.")
    if path.exists() and not overwrite:
        raise SpratError(
            f"{path} exists already and is not overwritten. Give another --output, or --overwrite."
        )
    return path


def _check_published(dataset: str, has_classes: bool) -> None:
    if not dataset and not has_classes:
        raise SpratError(
            "The classes have no names. Give --classes in the order of the network's outputs, or "
            f"--dataset, such as {PREFERRED}, to use the classes of a dataset in its order."
        )
    if dataset and dataset not in DATASETS:
        raise SpratError(
            f"--dataset is {shown(dataset)}, expected one of {', '.join(DATASETS)}"
            f"{did_you_mean(dataset, DATASETS) or '.'} For your own pictures give --classes."
        )


def _check_loads_again(model: "Model", content: bytes) -> None:
    """Check that a model's file can be loaded and gives the model's outputs.

    Raises:
        SpratError: it does not.
    """
    import torch

    from sprat.checkpoint import load_model
    from sprat.files import temporary_folder
    from sprat.names import MODEL_FILE

    with temporary_folder() as folder:
        (folder / MODEL_FILE).write_bytes(content)
        again = load_model(folder / MODEL_FILE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(
        4, len(model.normalization.mean), model.side, model.side, generator=generator
    )
    with torch.inference_mode():
        before, after = model.network(images), again.network(images)
    if not torch.allclose(before, after, rtol=CLOSE, atol=CLOSE * before.abs().max().item()):
        raise SpratError(
            f"{model.name} gives different outputs after it is loaded again, so the outputs depend "
            "on more than its weights. Register whatever else they depend on as a buffer."
        )


def load_foreign(
    console: "Console",
    network: str,
    given: Foreign,
    dataset: Dataset | str | Path | None,
    data_dir: str | Path | None,
    pictures: Mapping[str, Any] | None,
) -> "tuple[Model, Dataset]":
    """Return a network that was trained elsewhere as a model, and the dataset to evaluate it on.

    Args:
        dataset: dataset to evaluate on; by default CIFAR-10.

    Raises:
        SpratError: the dataset is not available or has images of another side; also as for
            `Foreign.model`.
    """
    from sprat.display import load_shown

    names = given.class_names()
    if not isinstance(dataset, Dataset):
        changes = {f"pictures.{key}": value for key, value in (pictures or {}).items()}
        own = Config().changed({"pictures.side": given.side or SIDE} | changes).pictures
        place = None if data_dir is None else Path(data_dir)
        dataset = load_shown(
            console, str(dataset or PREFERRED), place, own, whole=True, table=False
        )
    side = dataset.test.images.shape[-1]
    if given.side not in (0, side):
        raise SpratError(
            f"The images of {dataset.name} have a side of {side} pixels, but --side is "
            f"{given.side}. Leave it out, or choose another --dataset."
        )
    return given.model(network, names or dataset.train.classes, side, {}), dataset
