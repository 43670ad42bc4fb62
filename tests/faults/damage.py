"""Damage to the files that a run wrote, which a command then reads: a flipped bit or a lost end."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from faults.cases import Case, FailedError, Kind, naming
from faults.victims import Ended, Place
from faults.world import World

EDGE = 4096  # bytes at each end of a file, which describe its structure
Claim = Literal["file", "result", "weights", "words"]


class Read(NamedTuple):
    """A file, a command that reads it, and what sprat claims if the file is damaged.

    "file": it is used only if its content is unchanged. "result": the command fails, or has the
    same result as without the damage. "weights": the same, but for the weights alone. "words": no
    traceback.
    """

    file: str  # pattern, relative to a place
    command: str
    claim: Claim


READS = (
    Read("work/run/model.safetensors", "evaluate", "file"),
    Read("work/run/model.safetensors", "predict", "file"),
    Read("work/run/model.safetensors", "export", "file"),
    Read("work/run/last.pt", "resume", "result"),
    Read("work/run/last.pt", "resume", "result"),
    Read("cache/sprat/pictures/*.pixels", "evaluate", "result"),
    Read("cache/sprat/pictures/*.pixels", "resume", "result"),
    Read("cache/sprat/kernels/*.so", "compiled", "result"),
    Read("work/run/config.json", "resume", "weights"),
    Read("work/run/config.json", "evaluate", "words"),
    Read("work/run/config.json", "report", "words"),
    Read("work/run/metrics.jsonl", "resume", "result"),
    Read("work/run/metrics.jsonl", "report", "words"),
    Read("work/run/results.json", "compare", "words"),
    Read("work/run/results.json", "report", "words"),
    Read("work/run/results.json", "resume finished", "words"),
    Read("work/run/seed-0/results.json", "seeds again", "words"),
    Read("work/run/summary.json", "compare seeds", "words"),
)


def flipped(world: World) -> Kind:
    """One flipped bit: half of the time anywhere, otherwise near the beginning or the end."""

    def flip(content: bytes, rng: random.Random) -> bytes:
        size = len(content)
        at = rng.randrange(size)
        if rng.random() < 0.5:
            at = (rng.randrange(2 * EDGE) - EDGE) % size
        changed = bytearray(content)
        changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)

    return Kind(lambda faults: 2 * faults, _attempt(world, flip))


def truncated(world: World) -> Kind:
    """A file that is cut off: empty, one byte short, or of a random length."""

    def cut(content: bytes, rng: random.Random) -> bytes:
        return content[: rng.choice([0, len(content) - 1, *rng.sample(range(len(content)), 4)])]

    return Kind(lambda faults: faults // 2, _attempt(world, cut))


def _attempt(
    world: World, spoil: Callable[[bytes, random.Random], bytes]
) -> Callable[[Case], None]:
    def attempt(case: Case) -> None:
        read = READS[case.number % len(READS)]
        case.tried += 1
        with naming(f"{read.file}, {read.command}"), world.place(read.command) as place:
            file = case.random.choice(sorted(place.folder.glob(read.file)))
            whole = file.read_bytes()
            file.write_bytes(spoil(whole, case.random))
            damaged = file.read_bytes()
            ended = place.sprat(*world.commands[read.command].words).check(0, 2)
            if ended.code == 0:
                _check(world, read, place, ended, whole, damaged)

    return attempt


def _check(
    world: World, read: Read, place: Place, ended: Ended, whole: bytes, damaged: bytes
) -> None:
    """Raise FailedError if a command that succeeded breaks the claim."""
    if read.claim == "file" and _model(whole) != _model(damaged):
        raise FailedError("silent", f"the command used a changed model: {ended}")
    if read.claim == "result":
        try:
            world.check_same(read.command, place, ended)
        except FailedError as failed:
            raise FailedError("silent", str(failed)) from failed
    if read.claim == "weights":
        folders = (place.folder, world.unharmed[read.command].folder)
        ours, theirs = (_weights(folder / "work/run/model.safetensors") for folder in folders)
        if ours != theirs:
            raise FailedError("silent", f"training gave different weights: {ended}")


def _model(content: bytes) -> Any:
    """Return the metadata and tensors of a model file."""
    import json

    from safetensors.torch import load

    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    return header, _bytes(load(content))


def _weights(file: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return _bytes(load_file(file))


def _bytes(tensors: dict[str, Any]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
