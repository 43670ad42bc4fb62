"""Tests that the notebook runs from top to bottom, matches its script and defines nothing."""

import ast
import dataclasses
import json
import os
import re
from pathlib import Path

import jupytext
import nbformat
import pytest
import torch
from nbclient import NotebookClient
from nbformat import NotebookNode

import sprat
from sprat.checkpoint import load_model

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "optimized_cifar_10_200k_model.ipynb"
SCRIPT = NOTEBOOK.with_suffix(".py")
LARGEST = 1_500_000  # bytes of the committed notebook

# few images, epochs and trials, no internet, and every warning is an error
SMALL = """
import socket
import warnings

recipe = "sprint"
changes = {"evaluate_every": 1, "epochs": 2, "optim.warmup_epochs": 0.5, "train_images": 256}
dataset = "shapes10"
views = 2
budget = {"max_parameters": "4k", "trials": 2, "trial_epochs": 1}
output = "results"
socket.socket.connect = None
warnings.simplefilter("error")
"""
DOWNLOAD = """
from sprat.display import loading

with loading(console, "looking for it") as told:
    told(1_000, 4_000)
    told(4_000, 4_000)
"""


@dataclasses.dataclass(frozen=True)
class Ran:
    """Executed notebook and the folder in which it ran."""

    notebook: NotebookNode
    folder: Path

    @property
    def run(self) -> Path:
        """Folder of its first training run."""
        return self.of("OptimizedCIFAR10Net200K")

    def of(self, network: str) -> Path:
        """Return the folder of the run that trained a network."""
        results = (self.folder / "runs").glob("*/results.json")
        (run,) = (
            file.parent
            for file in results
            if json.loads(file.read_text())["network"]["name"] == network
        )
        return run


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    (place,) = (
        i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
    )
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(SMALL))
    notebook.cells.append(nbformat.v4.new_code_cell(DOWNLOAD))
    environment = os.environ | {
        "PYTHONPATH": str(Path(sprat.__file__).parents[1]),  # the sprat under test
        "IPYTHONDIR": str(folder / "ipython"),
    }
    resources = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, resources=resources, coalesce_streams=True)
    return Ran(client.execute(env=environment), folder)


def texts(cell: NotebookNode) -> list[str]:
    """Return the text outputs of a cell."""
    return [
        output.text if output.output_type == "stream" else output.data["text/plain"]
        for output in cell.get("outputs", [])
        if "image/png" not in output.get("data", {})
    ]


def pictures(notebook: NotebookNode) -> int:
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def cell_with(notebook: NotebookNode, code: str) -> NotebookNode:
    (cell,) = (c for c in notebook.cells if c.cell_type == "code" and code in c.source)
    return cell


def test_it_leaves_three_files_that_agree_with_its_run(ran: Ran) -> None:
    results = ran.folder / "results"
    told = json.loads((results / "training_results_200k.json").read_text())
    assert told == json.loads((ran.run / "results.json").read_text())
    assert told["dataset"] == "shapes10"
    assert (results / "Result.png").read_bytes() == (ran.run / "curves.png").read_bytes()
    weights = torch.load(results / "best_model_200k.pth", weights_only=True)
    kept = load_model(ran.run).network.state_dict()
    assert weights.keys() == kept.keys()
    assert all(torch.equal(weights[name], kept[name]) for name in kept)
    shown = texts(cell_with(ran.notebook, "print_evaluation(console"))
    assert f"accuracy                  {100 * told['test']['top1']:.2f} %" in "".join(shown)


def test_it_shows_pictures_and_warns_of_nothing(ran: Ran) -> None:
    assert pictures(ran.notebook) == SCRIPT.read_text().count("\nImage(")
    for cell in ran.notebook.cells:
        assert all(output.get("name") != "stderr" for output in cell.get("outputs", []))


def test_networks_are_compared_on_the_test_pictures(ran: Ran) -> None:
    shown = "\n".join(texts(cell_with(ran.notebook, "mcnemar(")))
    for network in ("OptimizedCIFAR10Net200K", "SpratM"):
        results = json.loads((ran.of(network) / "results.json").read_text())
        (line,) = (line for line in shown.splitlines() if line.startswith(network))
        assert line.endswith(f" {100 * results['test']['top1']:.2f} %")
    assert re.search(r"^p = [\d.e-]+$", shown, re.MULTILINE)


def test_what_the_search_found_is_within_the_budget(ran: Ran) -> None:
    results = json.loads((ran.of("SpratNet") / "results.json").read_text())
    assert results["parameters"] <= 4_000
    shown = "".join(texts(cell_with(ran.notebook, "sprat.compare(")))
    assert shown.startswith(
        f"2 networks tried; the winner has {results['parameters']:,} parameters"
    )


@pytest.mark.parametrize("which", ["run = ", "smaller = "])
def test_a_training_is_one_bar_and_one_table(ran: Ran, which: str) -> None:
    bar, table = texts(cell_with(ran.notebook, f"{which}sprat.train("))
    assert re.fullmatch(r"evaluating the test set ━+ 100 % +[\d,]+ images/s", bar)
    assert [line.split()[0] for line in table.splitlines()[-2:]] == ["1", "2"]


def test_a_download_is_one_bar(ran: Ran) -> None:
    looking, bar = texts(ran.notebook.cells[-1])
    assert looking == "looking for it"
    assert re.match(r"fetching ━+ 4.0/4.0 kB", bar)


def test_notebook_and_script_are_the_same() -> None:
    both = (nbformat.read(NOTEBOOK, as_version=4), jupytext.read(SCRIPT, fmt="py:percent"))
    cells, of_script = (
        [(c.cell_type, c.source, c.metadata.get("tags", [])) for c in notebook.cells]
        for notebook in both
    )
    assert cells == of_script, "run jupytext --sync on the notebook"


def test_it_defines_nothing() -> None:
    forbidden = (
        ast.FunctionDef,
        ast.AsyncFunctionDef,
        ast.ClassDef,
        ast.Lambda,
        ast.For,
        ast.While,
    )
    for node in ast.walk(ast.parse(SCRIPT.read_text())):
        assert not isinstance(node, forbidden), f"line {node.lineno} belongs in the package"


def test_what_is_committed_was_run_whole_on_cifar10() -> None:
    assert NOTEBOOK.stat().st_size < LARGEST
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert pictures(notebook) == SCRIPT.read_text().count("\nImage(")
    shown = "\n".join(text for cell in code for text in texts(cell))
    assert "OptimizedCIFAR10Net200K on cifar10: 50,000 training images" in shown
    assert not re.search(r"(?:^|[\s'\"(])/\w", shown, re.MULTILINE), "a path of somebody's machine"
    assert "Warning" not in shown
