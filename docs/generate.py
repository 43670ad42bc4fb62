"""Write the generated pages: docs/reference, from the code and, for models in C, from results.

    python docs/generate.py [FOLDER]

Without FOLDER, also update four pages: the table of boards in docs/how-to/microcontroller.md, the
effect of a head start in docs/how-to/own-pictures.md, what a search finds in docs/how-to/search.md,
and what it costs in docs/explanation/scale.md. A test compares the committed pages with what this
script writes.
"""

import ast
import inspect
import itertools
import json
import math
import re
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import torch

import sprat
from sprat.budget import summarize
from sprat.cli import app
from sprat.evaluation.records import read_json
from sprat.models import NETWORKS, build_network, find_class
from sprat.searching.plan import FULL_IMAGES, TRIAL_IMAGES, rungs_of, survivors
from sprat.settings.field import Setting, Table
from sprat.settings.recipes import recipe_names, recipe_path
from sprat.zoo import cards

REFERENCE = Path(__file__).parent / "reference"
HOW_TO = Path(__file__).parent / "how-to" / "microcontroller.md"
OWN_PICTURES = HOW_TO.with_name("own-pictures.md")
SEARCH = HOW_TO.with_name("search.md")
SCALE = HOW_TO.parents[1] / "explanation" / "scale.md"
BOARDS = HOW_TO.with_name("boards.json")
RESULTS = Path(__file__).parents[1] / "results"


def commands() -> str:
    """Return the page of all commands with their options, as --help shows them."""
    text = app.generate_docs(output_format="markdown", usage_name="sprat").replace(
        "# sprat\n", "# Commands\n", 1
    )
    return re.sub(r"\n +(?=\S)(?![-*])", " ", text)  # joins help texts of several lines


def networks() -> str:
    """Return the page of all networks and their costs at 32 px and 10 classes."""
    lines = [
        "# Networks",
        "",
        "The names that `--model` accepts. Upper or lower case, `-` and `_` make no difference. "
        "All figures are for ten classes and images of 32 px. Arena and weights are in bytes, as "
        'in the [memory plan](../how-to/fit-a-budget.md#memory) for int8; "—" means that there is '
        "no plan.",
        "",
        "| name | description | parameters | MACs | receptive field | arena | weights |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in NETWORKS:
        torch.manual_seed(0)
        summary = summarize(build_network(name), 32)
        about = " ".join((inspect.getdoc(find_class(name)) or "").split("\n\n")[0].split())
        field = "—" if summary.receptive_field is None else f"{summary.receptive_field} px"
        plan = summary.plan
        memory = "— | —" if plan is None else f"{plan.arena:,} | {plan.weights:,}"
        lines.append(
            f"| `{name}` | {about} | {summary.parameters:,} | "
            f"{summary.macs:,} | {field} | {memory} |"
        )
    return "\n".join(lines) + "\n"


def recipes() -> str:
    """Return the page of all recipes, unchanged."""
    parts = [
        "# Recipes",
        "Settings that a recipe does not mention keep their defaults ([commands](commands.md)). "
        "To use a recipe of your own, write a file like these and run `sprat train --recipe "
        "my-recipe.toml`.",
    ]
    for name in recipe_names():
        parts.append(f"## {name}\n\n```toml\n{recipe_path(name).read_text().strip()}\n```")
    return "\n\n".join(parts) + "\n"


def microcontroller(results: Path = RESULTS) -> str:
    """Return the page of the pretrained models in C: accuracy, and time on a computer."""
    file = results / "microcontroller.json"
    measured = read_json(file) if file.exists() else {"models": {}}
    lines = [
        "# Pretrained models in C",
        "",
        "The table shows the pretrained models as `sprat export NAME --format c` writes them, "
        'measured on CIFAR-10\'s test set by `benchmarks/microcontroller.py`. "Other scores" is '
        "the number of images for which any score differs from that of the integer reference. "
        "The accuracy in int8 is that of the C code. The last column names the class that loses "
        'most accuracy from fp32 to int8, and how much in points. "—" means that the model has '
        "changed since the last measurement.",
        "",
        "| model | images | other scores | fp32 | int8 | class that loses most |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for card in cards():
        found = measured["models"].get(card["name"])
        cells = ["—"] * 5
        if found and found["sha256"] == card["sha256"]:
            accuracy = (f"{100 * found[key]:.2f} %" for key in ("top1_fp32", "top1_int8"))
            worst = f"{found['worst_class']}, {100 * found['worst_class_drop']:.2f}"
            cells = [f"{found['images']:,}", f"{found['other_scores']:,}", *accuracy, worst]
        lines.append(f"| {' | '.join([card['name'], *cells])} |")
    if measured["models"]:
        lines += [
            "",
            f"The code was compiled by {measured['compiler']} with `{measured['flags']}`.",
        ]
    speed = read_json(results / "inference.json")
    networks = {speed["model"]: speed["measured"], **speed["others"]}
    timed = {name: ways for name, ways in networks.items() if {"c-1", "onnx-int8-1"} <= ways.keys()}
    if timed:
        lines += [
            "",
            "## On a computer",
            "",
            "The table shows milliseconds for one image of 32 px in int8, on one thread of an "
            f"{speed['machine']['cpu']}, measured by `benchmarks/inference.py`. Times on a "
            "microcontroller have not been measured.",
            "",
            "| network | C, gcc -O2 | onnxruntime |",
            "| --- | --- | --- |",
            *(
                f"| {name} | {ways['c-1']['ms_for_one_image']:.2f} | "
                f"{ways['onnx-int8-1']['ms_for_one_image']:.2f} |"
                for name, ways in timed.items()
            ),
        ]
    return "\n".join(lines) + "\n"


def boards(page: str) -> str:
    """Return the page with its table made from boards.json and the models' memory plans."""
    fitting = sorted(
        (card for card in cards() if card["memory"]), key=lambda c: c["memory"]["arena"]
    )
    names = " | ".join(card["name"] for card in fitting)
    lines = [
        f"| board | chip | RAM, KiB | flash, KiB | {names} |",
        "| --- " * (4 + len(fitting)) + "|",
    ]
    for board in json.loads(BOARDS.read_text()):
        ram, flash = board["ram_kib"], board["flash_kib"]
        cells = [f"[{board['board']}]({board['source']})", board["chip"], str(ram), str(flash)]
        for memory in (card["memory"] for card in fitting):
            left = ram - (memory["arena"] + memory["image"]) / 1024
            fits = left >= 0 and memory["weights"] <= 1024 * flash
            cells.append(f"{left:.1f}" if fits else "—")
        lines.append(f"| {' | '.join(cells)} |")
    table = "\n".join(lines) + "\n"
    return re.sub(r"^\| board \|.*\n(?:\|.*\n)+", lambda _: table, page, flags=re.MULTILINE)


def head_start(page: str, results: Path = RESULTS) -> str:
    """Return the page with its last section from the results of benchmarks/head_start.py."""
    title = "### Where it helps, and where it does not\n\n"
    before, file = page.split(title)[0] + title, results / "head_start.json"
    if not file.exists():
        return before + "Not measured yet. `benchmarks/head_start.py` measures it.\n"
    figures = read_json(file)
    given, held_out = (_in_words(figures[f"{which}_classes"]) for which in ("given", "held_out"))
    longer = "twice" if figures["longer"] == 2 else f"{figures['longer']} times"
    lines = [
        f"{figures['model']} was trained on the CIFAR-10 classes {given}. Then a few images of "
        f"each of the classes {held_out} were learnt in two ways: with a head start, by the recipe "
        f"`{figures['recipe']}`, and from scratch, by whichever of {len(figures['scratch'])} "
        "recipes with higher learning rates was best on val. The table shows the "
        f"accuracy on {figures['test_images']:,} test images, as the mean ± standard deviation of "
        f"{figures['seeds']} seeds. In brackets is the lead of the head start in points, paired by "
        "seed, ± its standard error (`results/head_start.json`, `benchmarks/head_start.py`).",
        "",
        "| images per class | steps | seconds with and without | head start "
        f"| from scratch, same number of steps | from scratch, {longer} as many steps |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for size in figures["sizes"]:
        measured, ahead = size["measured"], size["head_start_ahead_of"]
        seconds = (measured[name]["seconds"] for name in ("head start", "from scratch"))
        cells = [
            f"{size['images_a_class']:,}",
            f"{size['steps']:,}",
            " and ".join(f"{each:.0f}" for each in seconds),
            _percent(measured["head start"]),
            *(f"{_percent(measured[name])} ({_points(ahead[name])})" for name in ahead),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        f"After the same number of steps, the head start is {_verdicts(figures, 'from scratch')}. "
        f"Compared with {longer} as many steps from scratch, it is "
        f"{_verdicts(figures, 'from scratch, longer')}. “Clearly” means that the 95 % interval of "
        "the difference (Student's t over the seeds) does not contain 0.",
    ]
    return before + "\n".join(lines) + "\n"


T_95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}  # half a 95 % interval in standard errors, by seeds


def _percent(spread: dict[str, Any]) -> str:
    return f"{100 * spread['mean']:.2f} ± {100 * spread['std']:.2f} %"


def _points(ahead: dict[str, Any]) -> str:
    return f"{100 * ahead['mean']:+.2f} ± {100 * ahead['standard_error']:.2f}"


def _verdicts(figures: dict[str, Any], other: str) -> str:
    """Return, for example, "clearly ahead with 20 and 100 images per class"."""
    found: dict[str, list[str]] = {}
    for size in figures["sizes"]:
        ahead = size["head_start_ahead_of"][other]
        side = "ahead" if ahead["mean"] > 0 else "behind"
        clear = abs(ahead["mean"]) > T_95[figures["seeds"]] * ahead["standard_error"]
        verdict = f"clearly {side}" if clear else "not clearly ahead or behind"
        found.setdefault(verdict, []).append(f"{size['images_a_class']:,}")
    return "; ".join(
        f"{verdict} with {_in_words(sizes)} images per class" for verdict, sizes in found.items()
    )


def search(page: str, results: Path = RESULTS) -> str:
    """Return the page with its last section from the results of benchmarks/search.py."""
    title = "## What it finds\n\n"
    before, file = page.split(title)[0] + title, results / "search.json"
    measured = read_json(file) if file.exists() else {}
    parts = {"find": _found, "halving": _halving}
    texts = [text(measured[part]) for part, text in parts.items() if part in measured]
    return before + ("\n".join(texts) or "Not measured yet. `benchmarks/search.py` measures it.\n")


def _found(figures: dict[str, Any]) -> str:
    """Return the text on the network that was found within SpratS's limits."""
    limits, ahead, trained = figures["limits"], figures["difference"], figures["trained_networks"]
    verdict = "on these images, neither network is clearly more accurate"
    if abs(figures["standard_errors"]) > 2:
        verdict = f"the network found is {'more' if ahead > 0 else 'less'} accurate"
    refused = "none exceeded a limit"
    if figures["refused"]:
        refused = f"{figures['refused']:,} more exceeded a limit and were not trained"
    rows = [
        f"| {name} | {network['parameters']:,} | {network['macs']:,} | "
        f"{100 * network['test_top1']:.2f} % |"
        for name, network in (("found", trained["found"]), ("SpratS", trained["SpratS"]))
    ]
    lines = [
        "On CIFAR-10, `sprat search` was given the parameters and MACs of SpratS as limits "
        f"({limits['max_parameters']:,} and {limits['max_macs']:,}), and {figures['minutes']:.0f} "
        f"minutes on {_on(figures['machine'])}. It trained {figures['trained']:,} networks on "
        f"{figures['trial_images']:,} images each; {refused}. Then the network found and SpratS "
        "were both trained from scratch on all training images, with the recipe "
        f"`{figures['recipe']}` for {trained['found']['epochs']} epochs, and the test set was read "
        "once for each (`results/search.json`, `benchmarks/search.py`):",
        "",
        "| network | parameters | MACs | accuracy |",
        "| --- | --- | --- | --- |",
        *rows,
        "",
        f"The difference is {100 * ahead:+.2f} ± {100 * figures['standard_error']:.2f} points "
        f"(± the standard error, paired over the test images): {verdict}.",
    ]
    return "\n".join(lines) + "\n"


def _halving(figures: dict[str, Any]) -> str:
    """Return the text on successive halving compared with random search."""
    limits, ways = figures["limits"], figures["ways"]
    pairs = list(zip(ways["halving"], ways["random"], strict=True))
    differences = [100 * (one["val_top1"] - other["val_top1"]) for one, other in pairs]
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    clear = abs(mean) > T_95[len(differences)] * error
    side = "clearly ahead" if mean > 0 else "clearly behind"
    verdict = side if clear else "neither clearly ahead nor behind"
    lines = [
        f"Successive halving with TPE was compared with random search in {len(pairs)} pairs of "
        f"searches of {figures['minutes']:.0f} minutes each, within "
        f"{limits['max_parameters']:,} parameters and {limits['max_macs']:,} MACs, on "
        f"{_on(figures['machine'])}. Random search draws its trials independently and trains each "
        "of them to the last rung. Both begin with the designs of sprat's networks. The winner of "
        f"each search was trained with the recipe `{figures['recipe']}` for {figures['epochs']} "
        "epochs, and its accuracy on `val` is compared:",
        "",
        "| seed | successive halving | trials | random search | trials |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {one['seed']} | {100 * one['val_top1']:.2f} % | {one['trained']:,} | "
            f"{100 * other['val_top1']:.2f} % | {other['trained']:,} |"
            for one, other in pairs
        ),
        "",
        f"The lead of successive halving is {mean:+.2f} ± {error:.2f} points (mean ± standard "
        f"error, paired by seed): it is {verdict}.",
    ]
    return "\n".join(lines) + "\n"


def _on(machine: dict[str, Any]) -> str:
    return f"{machine['threads']} cores of an {machine['cpu']}"


def scale(page: str, results: Path = RESULTS) -> str:
    """Return the page with its last section from the results of benchmarks/scale.py."""
    title = "## Measurements\n\n"
    before, file = page.split(title)[0] + title, results / "scale.json"
    if not file.exists():
        return before + "Not measured yet. `benchmarks/scale.py` measures it.\n"
    figures = read_json(file)
    measured, rungs = figures["measured"], figures["rungs"]
    here, other = measured["this process"], measured["Ray, 1 core"]
    asked = figures["asking"]
    ask = asked[-1]["seconds_a_trial"]
    images = sum(
        count * (epochs - last)
        for count, epochs, last in _tasks_of(figures["generation"], rungs)
    ) * figures["images"]  # fmt: skip
    core = images / here["training_seconds"]
    gpu = read_json(RESULTS / "taught-s" / "seed-0" / "results.json")
    lines = [
        f"The table shows generations of {figures['generation']} trials, each on "
        f"{figures['images']:,} images and one thread, compared after "
        f"{_in_words(list(map(str, rungs)))} epochs. They were measured on {figures['cores']} "
        f"cores of an {figures['machine']['cpu']} (`results/scale.json`, `benchmarks/scale.py`):",
        "",
        "| workers | trials per hour | first task ends after | overhead per task |",
        "| --- | --- | --- | --- |",
        *(
            f"| {way} | {found['trials_per_hour']:,.0f} | {found['start_seconds']:.1f} s | "
            f"{found['task_ms']:.1f} ms |"
            for way, found in measured.items()
        ),
        "",
        "To choose and record one trial, the driver took "
        f"{1000 * asked[0]['seconds_a_trial']:.0f} ms after {asked[0]['trials']:,} trials and "
        f"{1000 * ask:.0f} ms after {asked[-1]['trials']:,}, because Optuna's model grows with "
        f"every trial. At that pace, one driver chooses {3600 / ask:,.0f} trials per hour, however "
        "many workers there are.",
        "",
        "### Estimates for larger machines",
        "",
        f"A trial of the default size trains on {TRIAL_IMAGES:,} images for up to "
        f"{rungs_of(FULL_IMAGES // TRIAL_IMAGES)[-1]} epochs. One core trained at {core:,.0f} "
        "images/s in the measurement above, including evaluations. One of the four networks that "
        f"shared an {gpu['machine']['gpu']} trained at {gpu['images_per_s']:,.0f} images/s, "
        "including the teacher's predictions (`results/taught-s/seed-0/results.json`). The table "
        "shows what a search would reach at these rates, if the driver takes "
        f"{1000 * ask:.0f} ms per trial and Ray {other['task_ms']:.0f} ms per task. These are "
        "estimates, not measurements, and larger clusters have additional costs.",
        "",
        "| machine | workers | `--generation` | trials per hour | workers' time spent training |",
        "| --- | --- | --- | --- | --- |",
    ]
    for where, workers, rate in (
        ("two cores", 2, core),
        ("8 GPUs, four trials on each", 32, gpu["images_per_s"]),
        ("1,000 cores", 1_000, core),
    ):
        for generation in sorted({9, *(n * workers for n in (1, 3, 9) if n * workers > 9)}):
            rate_of = _search(generation, workers, TRIAL_IMAGES / rate, other["task_ms"], ask)
            lines.append(
                f"| {where} | {workers:,} | {generation:,} | {rate_of[0]:,.0f} | "
                f"{100 * rate_of[1]:.0f} % |"
            )
    return before + "\n".join(lines) + "\n"


def _tasks_of(generation: int, rungs: list[int] | tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Return, for each rung, the number of trials and the epochs at which it ends and starts."""
    counts = [generation]
    for _ in rungs[1:]:
        counts.append(survivors(counts[-1]))
    return list(zip(counts, rungs, [0, *rungs], strict=False))


def _search(
    generation: int, workers: int, epoch: float, task_ms: float, ask: float
) -> tuple[float, float]:
    """Return trials per hour, and the share of the workers' time in which they train.

    Args:
        epoch: seconds of one epoch. ask: the driver's seconds for each trial.
    """
    wall, trained = generation * ask, 0.0
    for count, epochs, before in _tasks_of(generation, rungs_of(FULL_IMAGES // TRIAL_IMAGES)):
        seconds = (epochs - before) * epoch
        wall += math.ceil(count / workers) * (seconds + task_ms / 1000)
        trained += count * seconds
    return 3600 * generation / wall, trained / (workers * wall)


def _in_words(items: list[str]) -> str:
    """Return the items as in "20, 100 and 500"."""
    *others, last = items
    return f"{', '.join(others)} and {last}" if others else last


def python() -> str:
    """Return the page of all public names, with their signatures, fields and docstrings."""
    parts = ["# Python", "The public names of `import sprat`, all of which have type hints."]
    for name in sprat.__all__:
        thing = getattr(sprat, name)
        parts += [f"## sprat.{name}", _described(thing, name)]
        for method in ("__call__", "predict", "explain", "changed", "to_dict", "from_dict"):
            if method in vars(thing):
                parts += [f"### `{name}.{method}`", _described(getattr(thing, method), method)]
    return "\n\n".join(parts) + "\n"


def _described(thing: Any, name: str) -> str:
    doc = textwrap.indent(inspect.getdoc(thing) or "", "    ")
    if fields := _fields(thing) if inspect.isclass(thing) else []:
        return "\n\n".join([doc, "\n".join(fields)])
    if isinstance(thing, type) and issubclass(thing, Exception):
        return doc
    signature = re.sub(r"\b(?:[a-z]\w*\.)+(?=[A-Za-z])", "", str(inspect.signature(thing)))
    signature = re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)  # unquotes types that load later
    return f"```python\n{name}{signature}\n```\n\n{doc}"


def _fields(cls: type) -> list[str]:
    """Return a line for each field of a data class, described by the help of its setting or by the
    string below the field."""
    if issubclass(cls, Table):
        lines = [
            f"- `{declared.name}: {_type(declared)} = {declared.default!r}`: {declared.help}"
            for declared in cls.settings.values()
        ]
        return lines + [line for table in cls.tables.values() for line in _fields(table)]
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    assert isinstance(definition, ast.ClassDef)
    lines = []
    for field, below in itertools.pairwise([*definition.body, ast.Pass()]):
        if isinstance(field, ast.AnnAssign):
            told = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
            about = f": {' '.join(below.value.value.split())}" if told else ""
            lines.append(f"- `{ast.unparse(field)}`{about}")
    return lines


def _type(declared: Setting) -> str:
    """Return a setting's type, such as `int`, or its choices, such as `'ema' | 'last'`."""
    choices = declared.choices if any(isinstance(each, str) for each in declared.choices) else ()
    return " | ".join(map(repr, choices)) or re.sub(r"<class '(\w+)'>", r"\1", str(declared.type))


PAGES = {
    "commands": commands,
    "networks": networks,
    "recipes": recipes,
    "microcontroller": microcontroller,
    "python": python,
}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else REFERENCE
    folder.mkdir(exist_ok=True)
    for name, page in PAGES.items():
        (folder / f"{name}.md").write_text(page(), encoding="utf-8")
    if folder == REFERENCE:
        HOW_TO.write_text(boards(HOW_TO.read_text(encoding="utf-8")), encoding="utf-8")
        page = OWN_PICTURES.read_text(encoding="utf-8")
        OWN_PICTURES.write_text(head_start(page), encoding="utf-8")
        SEARCH.write_text(search(SEARCH.read_text(encoding="utf-8")), encoding="utf-8")
        SCALE.write_text(scale(SCALE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
