"""Helper that kills a process in the middle of its work."""

import subprocess
import sys


def kill_after(lines: int, code: str, *words: object) -> None:
    """Run Python code with `words` as arguments and kill it once it has printed `lines` lines."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(lines):
        process.stdout.readline()
    process.kill()
    process.communicate()
