"""Hostile pictures of a user's own: folders, tables, archives and parquet files.

Each is used as it should be, or refused with a reason and a remedy. It stays unchanged, and the
cache gains nothing but pictures that were read. Then intact pictures in its place must be used.
"""

import contextlib
import hashlib
import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from faults.cases import Case, FailedError, Kind, naming
from faults.hostile import check_hostile, never_train
from faults.sound import Sound
from faults.victims import Ended, Place
from faults.world import SIDE, World

MOST_CPU = 20.0  # seconds
MOST_MEMORY = 2 << 30  # bytes
LONGEST = 10_000  # characters: a message may list twenty files that cannot be read
CACHED = re.compile(r"sprat/(pictures/[0-9a-f]{12}-\d+\.pixels|archives/[0-9a-f]{32}/.*)", re.S)
REMEDY = re.compile(r"[.;\n] ?[\w-]+ .*\S$")  # at the end of a refusal
# "same": used, with the pixels of the intact pictures. "unreadable": refused, or used without a
# file or row, which leaves the intact pictures. "damaged": refused, or used like "same".
Ends = Literal["refused", "used", "same", "unreadable", "damaged", "any"]
CODES = {"refused": (2,), "used": (0, 1), "same": (0, 1)}
TRAINING = {"unreadable": (2,), **CODES}
CHECKING = {"unreadable": (0, 1), **CODES}  # `data check` reports what cannot be read


class Variant(NamedTuple):
    """Hostile pictures.

    make: writes them into an empty folder; returns the path to give to a command. ends: how a
    command that checks them, or trains on them, must end.
    """

    name: str
    make: Callable[[Path, random.Random], Path]
    ends: Ends


def kind(world: World, sound: Sound, variants: Iterable[Variant], *more: str) -> Kind:
    """Return a kind that gives the variants to different commands: FAULTS cases, at least one each.

    more: names of further commands, for this kind alone.
    """
    listed = list(variants)
    check = ["data", "check", "--json", "--pictures.side", str(SIDE)]
    commands = {
        "check": check,
        "train": [
            "train",
            "--recipe",
            world.recipes["tiny"],
            "--batch-size",
            "4",
            "--output",
            "new",
            "--dataset",
        ],
        "skip": [*check, "--pictures.unreadable", "skip"],
        "evaluate": ["evaluate", "run", "--json", "--dataset"],
        "predict": ["predict", "run", "--json"],
    }
    names = [*list(commands)[:4], *more]

    def attempt(case: Case) -> None:
        case.tried += 1
        turn, number = divmod(case.number, len(listed))
        variant, command = listed[number], names[(number + turn) % len(names)]
        with naming(f"{command}, {variant.name}"), world.place("train") as place:
            given = place.work / "in"
            given.mkdir()
            target = variant.make(given, case.random)
            before, cached = _state(given), _state(place.folder / "cache")
            prepare = never_train if command == "train" else lambda: None
            ended = place.sprat(*commands[command], target, prepare=prepare)
            _check(variant, command, ended)
            if _state(given) != before:
                raise FailedError("lost", f"the command changed its input: {ended}")
            _check_cache(place, cached, ended)
            same = variant.ends in ("same", "unreadable", "damaged")
            if same and ended.code != 2 and command != "predict":
                _check_pixels(sound, place, target)
            _remove(given)
            whole = sound.put(target)
            place.sprat(*check, whole).check(0)
            _check_pixels(sound, place, whole)

    return Kind(lambda faults: max(faults, len(listed)), attempt)


def _check(variant: Variant, command: str, ended: Ended) -> None:
    """Raise FailedError unless a command ended as it must with this variant."""
    codes = {"train": TRAINING, "check": CHECKING, "skip": CHECKING}.get(command, {})
    ended.check(*codes.get(variant.ends, (0, 1, 2)))
    check_hostile(ended, MOST_CPU, LONGEST)
    if ended.memory > MOST_MEMORY:
        raise FailedError("lost", f"the command used {ended.memory:,} bytes of memory: {ended}")
    if ended.code == 2 and command != "predict" and not REMEDY.search(ended.err.strip()):
        raise FailedError("lost", f"the error does not say what to do: {ended}")


def _check_cache(place: Place, before: dict[str, Any], ended: Ended) -> None:
    """Raise FailedError if anything is new in the cache, except the pixels of pictures that were
    read, and the content of an archive that was not refused."""
    after = _state(place.folder / "cache")
    new = [name for name in after if after[name] != before.get(name)]
    read = any(name.endswith(".pixels") for name in new)
    if stray := [name for name in new if not (read and CACHED.fullmatch(name))]:
        raise FailedError("lost", f"the command left {stray[:3]} in the cache: {ended}")


def _check_pixels(sound: Sound, place: Place, target: Path) -> None:
    """Raise FailedError unless the pixels in the cache are those of the intact pictures."""
    name = hashlib.md5(os.fsencode(target.resolve()), usedforsecurity=False).hexdigest()[:12]
    content = (place.cache / "pictures" / f"{name}-{SIDE}.pixels").read_bytes()
    (length,) = struct.unpack("<Q", content[-8:])
    if content[: -12 - length] != sound.pixels:
        raise FailedError("silent", "the cached pixels are not those of the given pictures")


def _state(folder: Path) -> dict[str, Any]:
    """Return the mode, size and time of every file in a folder."""
    found: dict[str, Any] = {}
    for path, folders, files in os.walk(folder):
        for name in [*files, *(each for each in folders if _is_link(Path(path, each)))]:
            stat = Path(path, name).lstat()
            found[os.path.relpath(f"{path}/{name}", folder)] = (
                stat.st_mode, stat.st_size, stat.st_mtime_ns
            )  # fmt: skip
    return found


def _is_link(path: Path) -> bool:
    with contextlib.suppress(OSError):  # its path is too long
        return path.is_symlink()
    return False


def _remove(folder: Path) -> None:
    """Empty a folder, whatever its permissions."""
    for path, _, _ in os.walk(folder):
        Path(path).chmod(0o700)
    shutil.rmtree(folder)
    folder.mkdir()


def flip(content: bytes, rng: random.Random, bits: int, begin: int = 0) -> bytes:
    """Return the content with some of its bits flipped, all of them from the byte `begin` on."""
    changed = bytearray(content)
    for _ in range(bits):
        changed[rng.randrange(begin % len(content), len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)
