"""Runs of one recipe that belong together, one after another or several at once. Each is trained,
resumed, or kept if it is finished."""

import contextlib
import dataclasses
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict, Unpack

from sprat.data import Dataset
from sprat.errors import Interrupted, SpratError
from sprat.evaluation.records import RunResult
from sprat.files import holder, write_whole
from sprat.models.code import use_all
from sprat.pools import Stopped, Workers, run_all
from sprat.pools.source import Source
from sprat.run_folder import CONFIG_FILE, LOCK_FILE, check_free, read_config, read_data
from sprat.settings.config import Config
from sprat.training.head_start import HeadStart
from sprat.training.observer import Observer, Observers
from sprat.training.saving import check_data
from sprat.training.start import check_start, load_start, resume, settle_for, train

Ended = Callable[[Path, RunResult], None]


class How(TypedDict, total=False):
    """Arguments of `train` besides config, data and folder."""

    recipe: Required[str]
    overrides: dict[str, Any] | None
    observer: Observer | None
    should_stop: Callable[[], bool]
    start: HeadStart | None


@dataclass(frozen=True)
class Apart:
    """Means of training several runs at once.

    workers: where they are trained. source: where workers load the images. code: files of the
    user's code, which each worker runs. observers: each worker gets copies of its own.
    """

    workers: Workers
    source: Source
    code: tuple[str, ...] = ()
    observers: Sequence[Observer] = ()


def train_each(
    members: Mapping[Path, Config],
    dataset: Dataset,
    ended: Ended | None = None,
    apart: Apart | None = None,
    **how: Unpack[How],
) -> None:
    """Train each run into its folder, one after another, or several at once.

    Args:
        members: settings of each run, by folder; they differ in the seed or the fold.
        apart: how to train several at once; None for one after another.
        ended: called with the folder and results of each run, including those finished before.

    Raises:
        SpratError: as `train`, or a folder contains a run with other settings or data.
        Interrupted: `should_stop` returned true; the same call resumes.
    """
    if apart:
        _train_apart(members, dataset, ended, apart, how)
        return
    # load once, so that all start from the same weights
    how["start"] = load_start(next(iter(members.values())))
    for folder, config in members.items():
        results = train_member(config, dataset, folder, **how)
        if ended:
            ended(folder, results)


def train_member(config: Config, dataset: Dataset, folder: Path, **how: Unpack[How]) -> RunResult:
    """Train a run, or resume it if it has begun; return its results, also if it was already
    finished.

    Raises:
        SpratError, Interrupted: as `train_each`.
    """
    observer = how.get("observer") or Observer()
    should_stop = how.get("should_stop", lambda: False)
    if (folder / CONFIG_FILE).exists():
        check_same(folder, settle_for(config, dataset, observer), dataset)
        check_start(folder, how.get("start"))
        return resume(folder, dataset, observer=observer, should_stop=should_stop)
    return train(config, dataset, folder, **how)


def check_same(run: Path, wanted: Config, dataset: Dataset) -> None:
    """Check that a run began with these settings and data.

    Args:
        wanted: settled for this machine.

    Raises:
        SpratError: it began with others.
    """
    began_as, settings = read_config(run)[0].to_dict(), wanted.to_dict()
    if began_on := read_data(run):
        check_data(run, dataset, began_on)
        del settings["dataset"]  # its path may have changed
    differs = [key for key, value in settings.items() if began_as[key] != value]
    if differs:
        raise SpratError(
            f"{run} is a run with other settings (it differs in {', '.join(differs)}). Give "
            "another --output, or the settings it began with."
        )


# several at once


@dataclass(frozen=True)
class Member:
    """A run to train: its folder, and its settings for this machine."""

    folder: Path
    config: Config


@dataclass(frozen=True)
class Common:
    """Values shared by all runs that are trained at once.

    place: the command's working directory. marker: a file that every machine must see.
    start: sha256 of the model that they start from.
    """

    source: Source
    recipe: str
    overrides: dict[str, Any] | None
    code: tuple[str, ...]
    observers: Sequence[Observer]
    place: Path
    marker: Path | None
    start: str | None

    def to_send(self) -> "Common":
        """Return the same without what another process on this machine can load by itself."""
        return dataclasses.replace(self, source=self.source.to_send())


def _train_apart(
    members: Mapping[Path, Config], dataset: Dataset, ended: Ended | None, apart: Apart, how: How
) -> None:
    observer = how.get("observer") or Observer()
    should_stop = how.get("should_stop", lambda: False)
    folder, one = next(iter(members.items()))
    # settle here, so that settings are the same on all machines and kernels are built once
    settled = settle_for(one, dataset, observer)
    each = [
        Member(run, dataclasses.replace(settled, seed=config.seed, fold=config.fold))
        for run, config in members.items()
    ]
    start = load_start(one)
    for member in each:
        check_free(member.folder)
        if (member.folder / CONFIG_FILE).exists():
            check_same(member.folder, member.config, dataset)
            check_start(member.folder, start)
    threads, gpus = settled.threads, apart.workers.gpus(0, settled.device)
    apart.workers.check(threads, gpus)
    with _marked(folder.parent, apart.workers) as marker:
        common = Common(
            apart.source, how["recipe"], how.get("overrides"), apart.code, apart.observers,
            Path.cwd(), marker, start.sha256 if start else None,
        )  # fmt: skip
        pool = apart.workers.pool(train_apart, common, should_stop, threads=threads, gpus=gpus)
        try:
            observer.preparing(
                f"training {len(members)} runs, {min(pool.workers, len(members))} at once with "
                f"{threads} {'thread' if threads == 1 else 'threads'} each"
            )
            for run, results in run_all(pool, each):
                if ended:
                    ended(run, results)
        except Stopped as stopped:
            raise Interrupted(folder.parent) from stopped
        finally:
            pool.close()


@contextlib.contextmanager
def _marked(folder: Path, workers: Workers) -> Iterator[Path | None]:
    """Keep a file in a folder during the block, by which other machines recognise the folder; yield
    its path, or None if there are no other machines."""
    if not workers.apart:
        yield None
        return
    marker = folder.absolute() / f".shared-{secrets.token_hex(8)}"
    write_whole(marker, b"")
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.rmdir()  # if it is still empty


def train_apart(
    member: Member, common: Common, should_stop: Callable[[], bool]
) -> tuple[Path, RunResult]:
    """Train or resume one run in a worker; return its folder and results.

    Raises:
        SpratError: as `train_member`, or this machine does not see the folder or has another model
            to start from.
        Interrupted: `should_stop` returned true; the run is saved.
    """
    if common.marker and not common.marker.exists():
        raise SpratError(
            f"{socket.gethostname()} does not see {common.marker.parent}. Give an --output that "
            "all machines of the cluster share."
        )
    with contextlib.suppress(OSError):  # needed only for relative paths
        os.chdir(common.place)
    _wait_until_free(member.folder, should_stop)
    use_all(common.code)
    dataset = common.source.load(member.config.pictures.side)
    start = load_start(member.config)
    if start and start.sha256 != common.start:
        raise SpratError(
            f"{start.model.name} is another model on {socket.gethostname()} than where the "
            "command was started. Put the same file on each machine."
        )
    results = train_member(
        member.config,
        dataset,
        member.folder,
        recipe=common.recipe,
        overrides=common.overrides,
        observer=Observers(Observer(), common.observers),
        should_stop=should_stop,
        start=start,
    )
    return member.folder, results


RELEASE = 30.0  # seconds until the lock of a worker whose machine was lost is free


def _wait_until_free(folder: Path, should_stop: Callable[[], bool]) -> None:
    end = time.monotonic() + RELEASE
    while holder(folder / LOCK_FILE) and time.monotonic() < end and not should_stop():
        time.sleep(0.2)
