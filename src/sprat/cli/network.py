"""Commands about networks and models: summary, check, export, import, models."""

import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from sprat import names
from sprat.cli.app import app
from sprat.cli.options import Code, DataDir, Flag, JsonOutput, ModelName
from sprat.deploy import CHOICES, DEFAULT, FORMATS, Options
from sprat.errors import SpratError
from sprat.foreign import Foreign
from sprat.models import NetworkConfig, NetworkSettings, find_name
from sprat.models.code import is_own, use, use_all
from sprat.models.code import options as code_options
from sprat.settings.config import BudgetConfig
from sprat.text import command as to_paste
from sprat.text import visible

Channels = Literal[1, 3] | None

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    FormatName = str
else:
    FormatName = Literal[tuple(FORMATS)]


@app.command
def export(
    model: ModelName,
    /,
    *,
    format: Annotated[FormatName, Parameter(help=f"{CHOICES}.")] = DEFAULT,
    output: Annotated[
        Path | None,
        Parameter(
            help="File to write; by default in the current folder, depending on the format, "
            f"{', '.join(f'NAME{each.ending}' for each in FORMATS.values())}."
        ),
    ] = None,
    overwrite: Flag = False,
    options: Annotated[Options, Parameter(name="*", negative_bool=())] = Options(),  # noqa: B008
    dataset: str | None = None,
    calibrate: str | None = None,
    data_dir: DataDir = None,
    code: Code = (),
    json_output: JsonOutput = False,
) -> None:
    """Export a model to a format that runs without sprat, and compare it with PyTorch.

    Parameters
    ----------
    overwrite
        Replace an existing file.
    dataset
        Dataset used to compare the exported model and to calibrate quantised formats; by default
        the one that the model was trained on. The format c needs no calibration if the model
        contains the ranges of its activations.
    calibrate
        Dataset whose training images calibrate a quantised format, even if the model contains
        ranges.
    """
    from sprat import api

    exported = api.export(
        model,
        format=format,
        output=output,
        overwrite=overwrite,
        dataset=dataset,
        calibrate=calibrate,
        code=code,
        data_dir=data_dir,
        **dataclasses.asdict(options),
    )
    if json_output:
        print(json.dumps(dataclasses.asdict(exported) | {"path": str(exported.path)}))
        return

    from sprat.display import make_console, print_compiled, print_contenders

    console = make_console()
    print_contenders(console, exported.contenders)
    same = f"{100 * exported.same_top1:.2f} %"
    console.print(
        f"\n{exported.n:,} images of {visible(exported.dataset)} ({exported.split}): {same} get "
        "the same class as in PyTorch; probabilities differ by up to "
        f"{exported.largest_difference:.2g}. Times are for one image on one thread."
    )
    if worst := exported.worst_class:
        console.print(
            f"The class that loses most: {visible(worst.name)}, {worst.points:.2f} points "
            f"({worst.before:,} of {worst.n:,} images correct in PyTorch, {worst.after:,} in "
            f"{exported.format})"
        )
    if exported.compiled:
        print_compiled(console, exported.compiled)
    console.print(visible(exported.path))


@app.command(name="import")
def import_model(
    network: str,
    /,
    *,
    foreign: Annotated[Foreign, Parameter(name="*")] = Foreign(),  # noqa: B008
    dataset: str = "",
    output: Path | None = None,
    overwrite: Flag = False,
    code: Code = (),
    json_output: JsonOutput = False,
) -> None:
    """Import a network that was trained elsewhere, as a model.safetensors for all other commands.

    Parameters
    ----------
    network
        Name of a network, or a class or function of your own that returns one: my_nets.py:MyNet.
    dataset
        Name of the dataset that the network was trained on. Other commands then use it by default,
        and its classes are used unless --classes is given.
    output
        File to write; by default NAME.safetensors in the current folder.
    overwrite
        Replace an existing file.
    """
    from sprat import api

    made = api.import_model(
        network,
        **dataclasses.asdict(foreign),
        dataset=dataset,
        output=output,
        overwrite=overwrite,
        code=code,
    )
    if json_output:
        print(json.dumps(dataclasses.asdict(made) | {"path": str(made.path)}))
        return
    named = code_options(dict.fromkeys([*code, *([network] if is_own(network) else [])]))
    print(f"{visible(made.path)}: {len(made.classes):,} classes, {made.parameters:,} parameters")
    print(f"  {to_paste('sprat', 'predict', made.path, 'picture.jpg', *named)}")
    print(f"  {to_paste('sprat', 'evaluate', made.path, *named)}")


@app.command
def summary(
    model: str,
    /,
    *,
    depth: int = 0,
    side: int | None = None,
    channels: Channels = None,
    settings: Annotated[NetworkSettings, Parameter(name="network")] = NetworkSettings(),  # noqa: B008
    classes: int = 10,
    effective: Path | None = None,
    code: Code = (),
    json_output: JsonOutput = False,
) -> None:
    """Print the cost of a network: layers, parameters, MACs, receptive field, memory.

    Parameters
    ----------
    model
        Name of a network, a model.safetensors, a run's folder, or a class of your own:
        my_nets.py:MyNet.
    depth
        Depth of the table: number of parts of a layer's path; 0: one row for every layer.
    side
        Side of the images in pixels; by default the one that the model was trained on, else 32.
    channels
        Channels of the images, 1 for grey; by default those that the model was trained on, else 3.
    classes
        Number of classes, if the network is not a saved model.
    effective
        PNG file to write: the effective receptive field, with pretrained weights if the network has
        any, else with initial weights.
    """
    if depth < 0:
        raise SpratError(
            f"--depth is {depth}, expected 0 (every layer) or more. Give another number."
        )
    names.check_png(effective, "--effective")

    from sprat.display import make_console, print_summary

    use_all(code)
    network, side = _find_network(
        model, settings, side, channels, classes, pretrained=effective is not None
    )

    from sprat.budget import summarize

    summarized = summarize(network, side, depth)
    values = summarized.to_dict()
    if effective is not None:
        values["effective_side"] = _draw_effective(
            make_console(stderr=True), network, side, effective
        )
    if json_output:
        print(json.dumps(values))
    else:
        print_summary(make_console(), summarized)
        if effective is not None:
            place = visible(effective)
            print(f"  effective field    {values['effective_side']:.1f} px, drawn in {place}")


@app.command
def check(
    model: str,
    /,
    *,
    budget: Annotated[BudgetConfig, Parameter(name="*")] = BudgetConfig(),  # noqa: B008
    min_accuracy: float = 0.0,
    side: int | None = None,
    channels: Channels = None,
    settings: Annotated[NetworkSettings, Parameter(name="network")] = NetworkSettings(),  # noqa: B008
    classes: int = 10,
    code: Code = (),
    json_output: JsonOutput = False,
) -> int:
    """Check a network against limits, one line each. The exit code is 0 if all are met, else 1.

    Parameters
    ----------
    model
        Name of a network, a model.safetensors, a run's folder, or a class of your own:
        my_nets.py:MyNet.
    min_accuracy
        Lowest accuracy allowed for a finished run, as a fraction such as 0.85.
    side
        Side of the images in pixels; by default the one that the model was trained on, else 32.
    channels
        Channels of the images, 1 for grey; by default those that the model was trained on, else 3.
    classes
        Number of classes, if the network is not a saved model.
    """
    limits = budget.limits | {"min_accuracy": min_accuracy}
    if not 0 <= min_accuracy <= 1:
        raise SpratError(
            f"--min-accuracy is {min_accuracy}, expected a fraction from 0 to 1. Give 0.85, for "
            "example."
        )
    if not any(limits.values()):
        raise SpratError(
            "No limit is given. Give at least one, such as --max-parameters 200k (see sprat check "
            "--help)."
        )

    from sprat.display import make_console, print_verdicts
    from sprat.evaluation.records import RESULTS_FILE, evaluation_of, read_results

    accuracy = None
    if min_accuracy:
        results = read_results(Path(model) / RESULTS_FILE)
        accuracy = evaluation_of(results)[1]["top1"]
    use_all(code)
    network, side = _find_network(model, settings, side, channels, classes)

    from sprat.budget import check_limits, summarize

    summarized = summarize(network, side)
    verdicts = check_limits(limits, summarized, budget.stored_as, accuracy)
    if json_output:
        print(json.dumps([dataclasses.asdict(verdict) for verdict in verdicts]))
    else:
        console = make_console()
        print_verdicts(console, summarized.model, verdicts)
        if budget.max_ram:
            console.print(
                f"The arena holds the activations. The image ({summarized.image_bytes:,} bytes), "
                "the stack and the code need additional memory."
            )
    return 0 if all(verdict.kept for verdict in verdicts) else 1


def _find_network(
    model: str,
    settings: NetworkSettings,
    side: int | None,
    channels: int | None,
    classes: int,
    pretrained: bool = False,
) -> "tuple[nn.Module, int]":
    """Return a network by its name, file, run or class, and the side of its images.

    Args:
        settings: changes to the network that the name stands for.
        pretrained: whether to load pretrained weights, if the name has any and nothing is changed.
    """
    is_file = Path(model).exists() or model.endswith(".safetensors")
    spec = NetworkConfig(name=model, **dataclasses.asdict(settings))
    _check_asked(spec, side, classes, is_file)
    if is_own(model):
        use(model)
    elif not is_file:
        find_name(model)

    import torch

    from sprat.checkpoint import load_model
    from sprat.models import build_network, check_outputs
    from sprat.zoo import is_model, locate

    usual = classes == 10 and channels in (None, 3) and not spec.given
    if is_file or (pretrained and usual and is_model(model)):
        loaded = load_model(locate(model))
        if channels not in (None, loaded.channels):
            raise SpratError(
                f"--channels is {channels}, but {model} expects {loaded.channels}-channel images. "
                "Leave --channels out, or name a network."
            )
        return loaded.network, side or loaded.side
    torch.manual_seed(0)  # initial weights are drawn
    network = build_network(spec, classes, in_channels=channels or 3)
    if is_own(model):
        check_outputs(network, classes, side or 32, channels or 3)
    return network, side or 32


def _check_asked(spec: NetworkConfig, side: int | None, classes: int, is_file: bool) -> None:
    if side is not None and side < 1:
        raise SpratError(f"--side is {side}, expected at least 1 pixel. Give a larger number.")
    if classes < 1:
        raise SpratError(f"--classes is {classes}, expected at least 1. Give a larger number.")
    if is_file and spec.given:
        raise SpratError(
            f"{spec.name} is a saved model, whose network cannot be changed. Leave out "
            f"{', '.join(f'--network.{key}' for key in spec.given)}, or name a network."
        )


def _draw_effective(console: "Console", network: "nn.Module", side: int, path: Path) -> float:
    """Draw the effective receptive field, on images that contain it; return its side in pixels."""
    from sprat.budget import DRAWS, effective_field, effective_side, receptive_field
    from sprat.display import progress_bar
    from sprat.figures.png import draw_effective_field

    size = receptive_field(network, side) or side
    canvas = max(side, 32 * math.ceil((size + 1) / 32))
    with progress_bar(console, "computing gradients", DRAWS) as progress:
        field = effective_field(network, canvas, progress)
    title = f"Effective receptive field of {type(network).__name__}"
    draw_effective_field(field, size, side, title, path)
    return effective_side(field)


@app.command
def models(
    name: str | None = None,
    /,
    *,
    json_output: JsonOutput = False,
) -> None:
    """List the pretrained models, most accurate first, or print one model's card.

    Parameters
    ----------
    name
        Name of a pretrained model.
    """
    from sprat.display import make_console, print_table
    from sprat.zoo import card_text, cards, find_card, listed

    if name is not None:
        card = find_card(name)
        if json_output:
            print(json.dumps(card))
        elif sys.stdout.isatty():
            from rich.markdown import Markdown

            make_console().print(Markdown(card_text(card)))
        else:
            print(card_text(card))
        return
    known = [listed(card) for card in cards()]
    if json_output:
        print(json.dumps(known))
        return
    rows = [("name", "parameters", "test accuracy", "bytes", "sha256")]
    rows += [
        (
            model["name"],
            f"{model['parameters']:,}",
            f"{100 * model['test_top1']:.2f} %",
            f"{model['bytes']:,}",
            model["sha256"],
        )
        for model in known
    ]
    print_table(make_console(), rows, left=1, left_again=4)
