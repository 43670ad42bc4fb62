"""Pictures, recipes and commands that the cases share, and the results without a fault."""

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from faults.cases import FailedError
from faults.victims import Ended, Fault, Place

CLASSES, PICTURES, SIDE = 3, 24, 16  # PICTURES: in each class
RECIPE = """
dataset = "{pictures}"
model = "SpratS"
epochs = {epochs}
batch_size = 16
threads = 1
tta = 1
final = true
device = "cpu"
precision = "fp32"
kernels = "{kernels}"
weights = "ema"

[pictures]
side = {side}

[optim]
warmup_epochs = 0.5

[augment]
crop = 2

[ema]
decay = 0.9
"""
# Stand-in for the C compiler: it compiles each library once, and writes it in two pieces, so that
# it can be killed in between.
COMPILER = """#!/bin/sh
for word; do
    if [ "$last" = -o ]; then output=$word; else key="$key $word"; fi
    last=$word
done
made={folder}/$(echo "$key" | sha256sum | cut -c 1-32)
[ -e "$made" ] || {{ gcc "$@" && mv "$output" "$made.$$" && mv "$made.$$" "$made"; }} || exit 1
head -c 20000 "$made" >"$output"
sleep 0.02
cat "$made" >"$output"
"""
# keys whose values differ from run to run, at any depth of a JSON file
TIMES = {"seconds", "images_per_s", "peak_memory_bytes", "training_time_hours", "git"}


@dataclass(frozen=True)
class Command:
    """A command that reads or writes the files of a run.

    words: its arguments. again: its arguments after a fault, if they are others.
    base: the command in whose work folder (left without a fault) it starts; "": in an empty one.
    pixels, kernels: whether these are in the cache before it starts.
    resumes: after a fault it becomes `train --resume run`, once there is a run.
    prints: whether its output is part of its result.
    """

    words: list[str]
    again: list[str] | None = None
    base: str = ""
    pixels: bool = True
    kernels: bool = True
    resumes: bool = False
    prints: bool = False


@dataclass(frozen=True)
class Unharmed:
    """A command that ran without a fault: what it left and printed, and what it took."""

    folder: Path  # its place
    out: str
    events: int
    writes: int
    seconds: float


class World:
    """Everything that is prepared once, before the cases; they copy from it and never change it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.pictures = scratch / "pictures"
        no_network = "http://127.0.0.1:9"
        self.env = {"CC": str(scratch / "cc"), "SPRAT_DATA": "", "https_proxy": no_network}
        self.caches = scratch / "caches"
        self._draw_pictures()
        self._write_compiler()
        self.recipes = {
            name: self._write_recipe(name, epochs, kernels)
            for name, epochs, kernels in (
                ("tiny", 2, "torch"),
                ("short", 1, "torch"),
                ("compiled", 1, "compiled"),
            )
        }
        self.commands = self._commands()
        _warm_up(self)
        self.caches.mkdir()
        with self._temporary() as place:  # compiles the kernels, and fills the cache
            place.sprat(*self.commands["kernels"].words).check(0)
            shutil.copytree(place.cache, self.caches / "sprat")
        self.unharmed: dict[str, Unharmed] = {}
        for name in self.commands:
            self.unharmed[name] = self._run_unharmed(name)

    def _write_recipe(self, name: str, epochs: int, kernels: str) -> Path:
        path = self.scratch / f"{name}.toml"
        settings = {"pictures": self.pictures, "side": SIDE, "epochs": epochs, "kernels": kernels}
        path.write_text(RECIPE.format(**settings))
        return path

    def _write_compiler(self) -> None:
        folder, path = self.scratch / "compiled", self.scratch / "cc"
        folder.mkdir()
        path.write_text(COMPILER.format(folder=folder))
        path.chmod(0o755)

    def _draw_pictures(self) -> None:
        import numpy as np
        from PIL import Image

        rng = np.random.default_rng(0)
        for label in range(CLASSES):
            folder = self.pictures / f"class-{label}"
            folder.mkdir(parents=True)
            for number in range(PICTURES):
                pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[..., label] |= 128
                Image.fromarray(pixels).save(folder / f"{number}.png")

    def train(self, recipe: str, *words: str) -> list[str]:
        """Return the arguments of a command that trains into the folder `run`."""
        return [
            "train",
            "--recipe",
            str(self.recipes[recipe]),
            "--output",
            "run",
            "--quiet",
            *words,
        ]

    def _commands(self) -> dict[str, Command]:
        picture = str(self.pictures / "class-0" / "0.png")
        resume = ["train", "--resume", "run", "--quiet"]
        seeds = self.train("short", "--seeds", "2")
        show = ["data", "show", "--dataset", str(self.pictures), "--pictures.side", str(SIDE)]
        export = ["export", "run", "--format", "pth", "--output", "model.pth"]
        return {
            "train": Command(self.train("tiny"), resumes=True),
            "interrupted": Command(self.train("tiny")),
            "resume": Command(resume, base="interrupted"),
            "seeds": Command(seeds),
            "export": Command(export, [*export, "--overwrite"], base="train"),
            "cache": Command([*show, "--output", "sheet.png"], pixels=False),
            "kernels": Command(self.train("compiled"), kernels=False, resumes=True),
            "compiled": Command(self.train("compiled"), resumes=True),
            "report": Command(["report", "run"], base="train"),
            "evaluate": Command(["evaluate", "run", "--json"], base="train", prints=True),
            "predict": Command(["predict", "run", picture, "--json"], base="train", prints=True),
            "compare": Command(["compare", "run", "--no-published"], base="train", prints=True),
            "compare seeds": Command(
                ["compare", "run", "--no-published"], base="seeds", prints=True
            ),
            "seeds again": Command(seeds, base="seeds"),
            "resume finished": Command(resume, base="train"),
        }

    def _run_unharmed(self, name: str) -> Unharmed:
        command, folder = self.commands[name], self.scratch / "unharmed" / name
        place = self._fill(Place(folder, self.env), command)
        if name == "interrupted":
            return self._interrupt(place, self.unharmed["train"].events)
        ended = place.sprat(*command.words, fault=Fault("count")).check(0)
        return Unharmed(folder, ended.out, *place.counted(), ended.seconds)

    def _interrupt(self, place: Place, events: int) -> Unharmed:
        """Kill a run once it has saved its first epoch."""
        run = place.work / "run"
        for at in range(events // 3, events):
            shutil.rmtree(run, ignore_errors=True)
            place.sprat(*self.commands["interrupted"].words, fault=Fault("kill", at))
            if (run / "metrics.jsonl").exists():
                break
        assert not (run / "model.safetensors").exists()
        return Unharmed(place.folder, "", 0, 0, 0.0)

    @contextmanager
    def _temporary(self) -> Iterator[Place]:
        with tempfile.TemporaryDirectory(dir=self.scratch, prefix="place-") as name:
            yield Place(Path(name), self.env)

    @contextmanager
    def place(self, name: str) -> Iterator[Place]:
        """Provide a place where the command of that name can run."""
        with self._temporary() as place:
            yield self._fill(place, self.commands[name])

    def _fill(self, place: Place, command: Command) -> Place:
        wanted = {"pictures": command.pixels, "kernels": command.kernels}
        for folder, there in wanted.items():
            if there:
                shutil.copytree(self.caches / "sprat" / folder, place.cache / folder)
        if command.base:
            work = self.unharmed[command.base].folder / "work"
            shutil.copytree(work, place.work, dirs_exist_ok=True)
        return place

    def again(self, name: str, place: Place) -> list[str]:
        """Return the command to give after a fault, according to the documentation."""
        command = self.commands[name]
        if command.resumes and (place.work / "run" / "config.json").exists():
            return self.commands["resume"].words
        return command.again or command.words

    def check_same(self, name: str, place: Place, ended: Ended) -> None:
        """Raise FailedError unless a command left the same as without a fault."""
        unharmed = self.unharmed[name]
        if self.commands[name].prints and ended.out != unharmed.out:
            raise FailedError("silent", f"the command printed {ended.out}, expected {unharmed.out}")
        ours, theirs = listing(place.folder), listing(unharmed.folder)
        if ours != theirs:
            raise FailedError(
                "lost",
                f"unexpected files: {sorted(ours - theirs)}; missing: {sorted(theirs - ours)}",
            )
        for file in sorted(ours):
            if contents(place.folder / file) != contents(unharmed.folder / file):
                raise FailedError("lost", f"{file} differs from the result without a fault")


def listing(folder: Path) -> set[str]:
    """Return the files in the work folder and the cache of a place."""
    found = (file for name in ("work", "cache") for file in (folder / name).rglob("*"))
    return {str(file.relative_to(folder)) for file in found}


def contents(file: Path) -> Any:
    """Return what must be the same in every run: all but times, last.pt and drawings."""
    if file.is_dir() or file.suffix in (".pt", ".png", ".html"):
        return None
    if file.suffix in (".json", ".jsonl"):
        return [_without_times(json.loads(part)) for part in _parts(file)]
    return file.read_bytes()


def _parts(file: Path) -> list[str]:
    text = file.read_text()
    return text.splitlines() if file.suffix == ".jsonl" else [text]


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(part) for key, part in value.items() if key not in TIMES}
    return value


def _warm_up(world: World) -> None:
    """Run commands in this process, so that its victims inherit all imports and everything that is
    computed only once. Kernels are left out: they would start threads."""
    import sprat.deploy.agreement
    import sprat.serve.server
    from sprat.cli import main

    sprat.deploy.agreement.TIMED_SECONDS = 0.0
    place = Place(world.scratch / "warm-up", world.env | {"CC": "false"})
    before, here, argv = dict(os.environ), Path.cwd(), sys.argv
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # commands use one thread per core
    os.environ.update(place.env)
    os.chdir(place.work)
    names = ("train", "evaluate", "predict", "report", "compare", "export", "cache")
    with (place.folder / "printed").open("w") as file, redirect_stdout(file), redirect_stderr(file):
        for name in names:
            sys.argv = ["sprat", *world.commands[name].words]
            with contextlib.suppress(SystemExit):
                main()
    os.environ.clear()
    os.environ.update(before)
    os.chdir(here)
    os.sched_setaffinity(0, cores)
    sys.argv = argv
    threads = sum(1 for _ in Path("/proc/self/task").iterdir())
    assert threads == 1, "a process with threads cannot be forked"
