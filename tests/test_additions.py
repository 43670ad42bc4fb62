"""CONTRIBUTING's table holds: an addition touches the one source file that it names."""

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

# what is added -> what is written before which line of its file; None: at the end
ADDITIONS: dict[str, list[tuple[str | None, str]]] = {
    "a mixer": [
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
    ],
    "a transform": [
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
    ],
    "an optimizer": [
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
    ],
    "a schedule": [
        ("SCHEDULES: ", "def parabola(progress):\n    return 1 - progress**2\n\n\n"),
        ('"linear": linear}', '"parabola": parabola, '),
    ],
}
SETTINGS = {
    "mixing.halving": 1.0, "mixing.halving_share": 0.7, "augment.invert": 0.5,
    "optim.name": "rmsprop", "optim.rmsprop_alpha": 0.9, "optim.schedule": "parabola",
}  # fmt: skip
CODE = """
import json, sys
from pathlib import Path
from sprat.cli import app

app(["train", "--help"], result_action="return_value")
assert "torch" not in sys.modules

import torch
import sprat
from sprat.checkpoint import load_resume
from sprat.data import Dataset
from sprat.data.imageset import ImageSet, Normalization
from sprat.models import build_network
from sprat.optim import build_optimizer, restore_state
from sprat.run_folder import read_config

images = torch.empty(40, 3, 16, 16, dtype=torch.uint8).random_(256)
few = ImageSet(images, torch.arange(40) % 10, tuple("0123456789"))
dataset = Dataset("noise", few, few, Normalization((0.5,) * 3, (0.25,) * 3), "")
quick = {"epochs": 1, "batch_size": 20, "kernels": "torch", "threads": 1, "tta": 1, "final": True}
sprat.train("quick", quick | json.loads(sys.argv[1]), dataset=dataset, output="run", quiet=True)
config, _, _ = read_config(Path("run"))
saved = load_resume(Path("run/last.pt"))["optimizer"]["state"]
restore_state(build_optimizer(build_network(config.model), config.optim), saved)
"""


def test_each_addition_touches_the_file_that_contributing_names(tmp_path: Path) -> None:
    """All in one copy and one process, which prints the help, trains and resumes the optimizer."""
    table = dict(
        re.findall(r"^\| (an? \w+) \| `([^`]+)` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    )
    shutil.copytree(
        SOURCE, tmp_path / "src" / "sprat", ignore=shutil.ignore_patterns("*.safetensors")
    )
    for kind, writings in ADDITIONS.items():
        path = tmp_path / table[kind]
        text = path.read_text()
        for place, written in writings:
            assert place is None or text.count(place) >= 1, f"{kind}: {place}"
            text = text + written if place is None else text.replace(place, written + place, 1)
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(SETTINGS)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for name in SETTINGS:
        assert f"--{name.replace('_', '-')}" in done.stdout
