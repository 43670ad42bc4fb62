"""Try every kind of fault, and report how often sprat did not withstand it."""

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from faults import KINDS
from faults.cases import Case, Count, FailedError, Failure, Kind
from faults.victims import preload

FAULTS = int(os.environ.get("FAULTS", "300"))
SEED = int(os.environ.get("FAULTS_SEED", "0"))
OUTPUT = os.environ.get("FAULTS_OUTPUT")
EVERY = 15  # seconds between lines of progress

_kinds: dict[str, Kind] = {}  # filled before the workers are forked, which inherit it


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m faults", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=[], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--only", type=int, nargs="+", help="numbers of cases")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    given = parser.parse_args()
    if unknown := set(given.kinds) - set(KINDS):
        parser.error(f"unknown kind of fault: {', '.join(unknown)}. Available: {', '.join(KINDS)}.")

    if "FAULTS_SCRATCH" not in os.environ:
        preload(Path(tempfile.mkdtemp(prefix="faults-")))
    scratch = Path(os.environ["FAULTS_SCRATCH"])
    try:
        return _try_all(scratch, given.kinds or list(KINDS), given.only, given.jobs)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _try_all(scratch: Path, names: list[str], only: list[int] | None, jobs: int) -> int:
    from faults import (
        clients,
        damage,
        disk,
        hostile,
        kills,
        own_archives,
        own_folders,
        own_parquet,
        own_tables,
    )
    from faults.world import World

    began = time.monotonic()
    world = World(scratch)
    made = {
        "killed at a file event": kills.at_events,
        "killed at a random moment": kills.at_random,
        "disk full": disk.full,
        "bit flipped": damage.flipped,
        "truncated": damage.truncated,
        "hostile model": hostile.models,
        "hostile recipe": hostile.recipes,
        "hostile folder": own_folders.folders,
        "hostile table": own_tables.tables,
        "hostile archive": own_archives.archives,
        "hostile parquet": own_parquet.shards,
        "client that never reads": clients.silent,
        "picture made to be slow": clients.slow_pictures,
    }
    assert list(made) == list(KINDS)
    _kinds.update({name: made[name](world) for name in names})
    print(f"prepared in {time.monotonic() - began:.0f} seconds", flush=True)
    cases = [
        (name, number) for name in names for number in only or range(_kinds[name].count(FAULTS))
    ]
    counts = {name: Count() for name in names}
    printed_at = time.monotonic()
    with ProcessPoolExecutor(jobs, get_context("fork")) as pool:
        futures: dict[Future[tuple[int, Failure | None, str]], tuple[str, int]] = {
            pool.submit(_attempt, name, number): (name, number) for name, number in cases
        }
        for done, future in enumerate(as_completed(futures), 1):
            name, number = futures[future]
            tried, failure, why = future.result()
            counts[name].add(tried, failure)
            if failure:
                again = f'FAULTS_SEED={SEED} python -m faults "{name}" --only {number}'
                print(f"{failure.upper()}  {again}\n    {why}", flush=True)
            if time.monotonic() - printed_at > EVERY:
                printed_at = time.monotonic()
                failed = sum(count.failed for count in counts.values())
                print(f"{done:,} of {len(cases):,} cases, {failed} failed: {name}", flush=True)
    seconds = time.monotonic() - began
    _print(counts, seconds)
    if OUTPUT:
        _write(Path(OUTPUT), counts, seconds)
    return int(any(count.failed for count in counts.values()))


def _attempt(name: str, number: int) -> tuple[int, Failure | None, str]:
    """Try a case; return the number of faults that happened, how sprat failed, and why."""
    case = Case(number, random.Random(f"{SEED} {name} {number}"))
    try:
        _kinds[name].attempt(case)
    except FailedError as failed:
        return max(1, case.tried), failed.failure, str(failed)
    except Exception:  # an error in the case itself, or a server that did not start
        return max(1, case.tried), "lost", traceback.format_exc()
    return case.tried, None, ""


def _print(counts: dict[str, Count], seconds: float) -> None:
    """Print the table of docs/explanation/results.md."""
    print("| fault | " + " | ".join(Count().to_dict()) + " |")
    for name, count in counts.items():
        print(f"| {name} | " + " | ".join(f"{n:,}" for n in count.to_dict().values()) + " |")
    print(f"in {seconds / 60:.0f} minutes", flush=True)


def _write(path: Path, counts: dict[str, Count], seconds: float) -> None:
    import torch

    from sprat.evaluation.records import write_json
    from sprat.runtime import describe_machine, git_state, versions

    about = {
        "faults": FAULTS,
        "seed": SEED,
        "seconds": round(seconds),
        "machine": describe_machine(torch.device("cpu"), "fp32", 1),
        "versions": versions(),
        "git": git_state(),
    }
    write_json(path, {"kinds": {k: count.to_dict() for k, count in counts.items()}} | about)


if __name__ == "__main__":
    sys.exit(main())
