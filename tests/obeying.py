"""Tasks that do what their names say, for tests of pools.

Does not import torch, so that workers start quickly.
"""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sprat.errors import Interrupted, SpratError


@dataclass(frozen=True)
class Folder:
    """Folder that all tasks share."""

    path: Path

    def to_send(self) -> "Folder":
        return self


def obey(task: str, folder: Folder, should_stop: Callable[[], bool]) -> str:
    (folder.path / task).touch()
    if task == "die" or (task == "die once" and len(list(folder.path.glob("died*"))) == 0):
        (folder.path / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "exit":
        os._exit(3)
    if task == "hang":
        time.sleep(1_000)
    if task == "divide":
        1 / 0  # noqa: B018
    if task == "name the GPU":
        return os.environ["CUDA_VISIBLE_DEVICES"]
    if task == "refuse":
        raise SpratError("The value is wrong. Give another.")
    if task == "be signalled":
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    if task == "stop":
        while not should_stop():
            time.sleep(0.01)
        (folder.path / task).write_text("saved")
        raise Interrupted(folder.path)
    return f"{task}: done"


def limit(task: str) -> tuple[float, str]:
    return 0.01 if task == "hang" else 0.0, f"{task}: given up"
