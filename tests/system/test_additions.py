"""Tests of CONTRIBUTING's table: an addition changes only the source files that the table names."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import sprat

SOURCE = Path(sprat.__file__).parent
ROOT = SOURCE.parents[1]

NAMES = {"a dataset": "checkers", "a format": "npz"}  # replace NAME in the table
# kind of addition -> for each of its files, the texts to insert, each with the text that it
# goes before (None: at the end)
ADDITIONS: dict[str, list[list[tuple[str | None, str]]]] = {
    "a mixer": [[
        (
            "    per_image: bool",
            """\
    halving: float = setting(0.0, "Probability of halving", at_least=0, at_most=1)
    halving_share: float = setting(0.5, "Share of the image itself", above=0, below=1)
""",
        ),
        (
            None,
            """

def halving(images, targets, share=0.5, per_image=False, *, generator):
    order = torch.randperm(len(images), generator=generator)
    mixed = torch.lerp(images[order].float(), images.float(), share)
    return mixed, torch.lerp(targets[order], targets, share)


MIXERS["halving"] = Mixer("Halving", "halving_share", halving)
""",
        ),
    ]],
    "a transform": [[
        (
            "    sides: tuple",
            '    invert: float = setting(0.0, "Probability of inverting", at_least=0, at_most=1)\n',
        ),
        (
            "        return images\n",
            """\
        if p := self.invert:
            images = invert(images, generator, p)
""",
        ),
        (
            None,
            """

def invert(images, generator, p=0.5):
    return t.on_some(images, _chosen(images, generator, p), lambda images: 255 - images)
""",
        ),
    ]],
    "an optimizer": [[
        (
            "OPTIMIZERS: ",
            """\
def rmsprop(network, config):
    groups = groups_of(network, config, ("step", "square_avg"))
    return torch.optim.RMSprop(groups, lr=config.lr, alpha=config.rmsprop_alpha)


""",
        ),
        ('"muon": muon}', '"rmsprop": rmsprop, '),
        (
            "    warmup_epochs: float",
            '    rmsprop_alpha: float = setting(0.99, "Smoothing of squares", above=0, below=1)\n',
        ),
    ]],
    "a schedule": [[
        ("SCHEDULES: ", "def parabola(progress):\n    return 1 - progress**2\n\n\n"),
        ('"linear": linear}', '"parabola": parabola, '),
    ]],
    "a dataset": [
        [(
            None,
            """\
from sprat.deferred import deferred
from sprat.errors import SpratError

np, torch, imageset = map(deferred, ("numpy", "torch", "sprat.data.imageset"))
TITLE, PLACES, FETCHED = "Checkers", ("checkers.npy",), ("checkers.npy",)


def find(folder):
    place = folder / PLACES[0]
    return place if place.is_file() else None


def load(place):
    images = torch.from_numpy(np.load(place))
    few = imageset.ImageSet(images, torch.arange(len(images)) % 10, tuple("0123456789"))
    return few, few


def download(folder, progress, log):
    raise SpratError("nobody serves it")


def verify(folder):
    return {find(folder): "ok"} if find(folder) else {}
""",
        )],
        [("PUBLISHED: ", "from sprat.data import checkers\n\n"),
         ('    "svhn": svhn', '    "checkers": checkers,\n')],
    ],
    "a format": [
        [(
            None,
            """\
import copy
import io

from sprat.deferred import deferred
from sprat.deploy.format import Format

np, torch = map(deferred, ("numpy", "torch"))


def write(source, before):
    written, state = io.BytesIO(), source.graph.network.state_dict()
    save = np.savez_compressed if source.options.compressed else np.savez
    save(written, **{name: value.numpy() for name, value in state.items()})
    return written.getvalue()


def reopen(content, graph):
    reloaded, held = copy.deepcopy(graph), np.load(io.BytesIO(content))
    reloaded.network.load_state_dict({name: torch.from_numpy(held[name]) for name in held})
    return reloaded


NPZ = Format(
    name="npz", about="the weights for numpy", ending=".npz", write=write, open=reopen,
    takes=("compressed",), packages=("numpy",), extra="all",
)
""",
        )],
        [("FORMATS: ", "from sprat.deploy.npz import NPZ\n\n"),
         ("        PTH,", "        NPZ,\n"),
         ("    raw: bool", '    compressed: bool = setting(False, "Compress the weights")\n')],
    ],
}  # fmt: skip
SETTINGS = {
    "mixing.halving": 1.0, "mixing.halving_share": 0.7, "augment.invert": 0.5,
    "optim.name": "rmsprop", "optim.rmsprop_alpha": 0.9, "optim.schedule": "parabola",
}  # fmt: skip
CODE = """
import json, sys
from pathlib import Path
from sprat.cli import app


def command(*words):
    app(words, result_action="return_value", exit_on_error=False)


for words in ("train",), ("evaluate",), ("data", "fetch"), ("export",):
    command(*words, "--help")
from sprat.data import check_dataset
from sprat.deploy import find_format
from sprat.errors import SpratError

for find in check_dataset, find_format:
    try:
        find("nothing")
    except SpratError as error:
        print(error)
assert "torch" not in sys.modules

import numpy
from sprat.checkpoint import load_resume
from sprat.data import load_dataset
from sprat.models import build_network
from sprat.optim import build_optimizer, restore_state
from sprat.run_folder import read_config
from sprat.settings.recipes import load_recipe
from sprat.training.start import train

images = numpy.random.default_rng(0).integers(0, 256, (40, 3, 16, 16), dtype=numpy.uint8)
numpy.save("checkers.npy", images)
quick = {"epochs": 1, "batch_size": 20, "kernels": "torch", "threads": 1, "tta": 1, "final": True}
quick |= {"model": "SpratNet", "network.widths": [8, 12], "network.depth": [1]}
config = load_recipe("quick").changed(quick | json.loads(sys.argv[1]))
train(config, load_dataset("checkers", Path(".")), Path("run"), recipe="quick")
command("data", "verify", "--dataset", "checkers", "--data-dir", ".")
command("export", "run", "--format", "npz", "--data-dir", ".")
size = Path("SpratNet.npz").stat().st_size
command("export", "run", "--format", "npz", "--data-dir", ".", "--compressed", "--overwrite")
assert Path("SpratNet.npz").stat().st_size < size
try:
    command("export", "run", "--format", "pth", "--compressed")
except SpratError as error:
    print(error)
config, _, _ = read_config(Path("run"))
saved = load_resume(Path("run/last.pt"))["optimizer"]["state"]
restore_state(build_optimizer(build_network(config.network), config.optim), saved)
"""


def test_additions_change_only_the_files_in_contributing(tmp_path: Path) -> None:
    """Make all additions in one copy of sprat and use them in one process."""
    table = dict(
        re.findall(r"^\| (an? \w+) \| (`[^|]+`) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    )
    shutil.copytree(
        SOURCE, tmp_path / "src" / "sprat", ignore=shutil.ignore_patterns("*.safetensors.xz")
    )
    for kind, of_files in ADDITIONS.items():
        files = re.findall(r"`([^`]+)`", table[kind].replace("NAME", NAMES.get(kind, "")))
        for file, writings in zip(files, of_files, strict=True):
            path = tmp_path / file
            text = path.read_text() if path.exists() else ""
            for place, written in writings:
                assert place is None or text.count(place) >= 1, f"{kind}: {place}"
                text = text + written if place is None else text.replace(place, written + place, 1)
            path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(SETTINGS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')}" in done.stdout
    printed = " ".join(done.stdout.replace("│", " ").split())
    for listed in (
        "cifar10, cifar100, checkers, svhn, shapes10, auto (CIFAR-10 if available",  # train
        "cifar10, cifar100, checkers, svhn, shapes10 or a folder",  # evaluate
        "cifar10, cifar100, checkers, svhn. [default",  # data fetch
        "Available: auto, cifar10, cifar100, checkers, svhn, shapes10",
        "pth: a state dict",
        "npz: the weights for numpy",
        "NAME.npz",
        "pt2, npz, pth, c]",
        "Available: onnx, onnx-int8, pt2, npz, pth, c.",
        "--compressed Compress the weights.",
        "pth does not take --compressed. Leave it out, or choose a format that does: npz.",
        "checkers.npy ok",
        "40 images of checkers (test): 100.00 %",
    ):
        assert listed in printed
