"""Torchrun's environment variables, which describe this process. Imports nothing else of sprat."""

import os


def launched() -> bool:
    """Return whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def restarts() -> int:
    """Return how often torchrun has restarted the processes of this run after a failure."""
    return _number("TORCHELASTIC_RESTART_COUNT", 0) if launched() else 0


def rank() -> int:
    """Return the index of this process among all, counted from 0."""
    return _number("RANK", 0) if launched() else 0


def world_size() -> int:
    """Return the number of all processes."""
    return _number("WORLD_SIZE", 1) if launched() else 1


def local_rank() -> int:
    """Return the index of this process among those on this machine, counted from 0."""
    return _number("LOCAL_RANK", 0) if launched() else 0


def local_world_size() -> int:
    """Return the number of processes on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1) if launched() else 1


def is_first() -> bool:
    """Return whether this process is the one that evaluates, reports and writes."""
    return rank() == 0


def command() -> list[str]:
    """Return how a command starts sprat the way this process was started: sprat, or torchrun …
    sprat."""
    nodes = world_size() // local_world_size()
    if not launched():
        return ["sprat"]
    several = ["--nnodes", str(nodes)] if nodes > 1 else []
    return ["torchrun", *several, "--nproc-per-node", str(local_world_size()), "-m", "sprat"]


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
