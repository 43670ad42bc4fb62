"""Observer that writes a run for TensorBoard: scalars by epoch, pictures, settings."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sprat.errors import SpratError
from sprat.training.observer import Observer

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from sprat.evaluation.records import EpochRow, RunResult
    from sprat.training.run import Run

FOLDER = "tensorboard"  # in a run's folder
PREVIEWED = 8  # classes in the preview of augmentation


class TensorBoard(Observer):
    """Write a run's data for TensorBoard to RUN/tensorboard: `tensorboard --logdir
    RUN/tensorboard`.

    It writes every figure of metrics.jsonl by epoch, the settings and augmented pictures and, at
    the end, the final accuracies, the confusion matrix and the curves. A resumed run replaces its
    earlier points by those of its history, so that no point is duplicated or lost.

    Raises:
        SpratError: TensorBoard is not installed.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise SpratError(
                "TensorBoard is not installed. Install it with pip install 'sprat[tensorboard]'"
            )
        self.writer: SummaryWriter | None = None

    def started(self, run: "Run") -> None:
        from torch.utils.tensorboard import SummaryWriter

        from sprat.figures.png import draw_preview
        from sprat.settings.recipes import to_toml
        from sprat.training.images import preview_augmentation

        config, place = run.config, run.folder / FOLDER
        begun = place.exists()  # written by an earlier process, whose points are purged
        self.writer = SummaryWriter(str(place), purge_step=0 if begun else None)
        if not begun:  # TensorBoard never purges texts
            self.writer.add_text("settings", f"```toml\n{to_toml(config)}\n```", 0)
        rows = preview_augmentation(config, run.dataset.train, PREVIEWED)
        title = f"augmentation of {run.origin.recipe}"
        self._add_picture("augmentation", 0, lambda path: draw_preview(rows, title, path))
        for row in run.progress.history:
            self._add_row(row)
        self.writer.flush()

    def epoch_ended(self, run: "Run", row: "EpochRow") -> None:
        self._add_row(row)
        if self.writer:
            self.writer.flush()

    def finished(self, run: "Run", results: "RunResult") -> None:
        from sprat.evaluation.records import evaluation_of
        from sprat.figures.data import confusion
        from sprat.figures.png import draw_confusion, draw_curves

        split, evaluation = evaluation_of(results)
        epoch = results["epochs"]
        for key in ("top1", "tta_top1", "ece"):
            self._add(f"final_{split}/{key}", evaluation[key], epoch)
        matrix = confusion(evaluation)
        self._add_picture("confusion", epoch, lambda path: draw_confusion(matrix, path))
        self._add_picture("curves", epoch, lambda path: draw_curves(run.folder))

    def closed(self, run: "Run") -> None:
        if self.writer:
            self.writer.close()
        self.writer = None

    def _add_row(self, row: "EpochRow") -> None:
        on, epoch = row["evaluated_on"], row["epoch"]
        self._add("loss", row["loss"], epoch)
        self._add("lr", row["lr"], epoch)
        self._add("images_per_s", row["images_per_s"], epoch)
        self._add(f"{on}/top1", row["top1"], epoch)
        self._add(f"{on}/ema_top1", row["ema_top1"], epoch)
        if on == "val":  # else it is one of the others
            self._add("probe/kept_top1", row.get("probe_top1"), epoch)

    def _add(self, tag: str, value: float | None, epoch: int) -> None:
        if self.writer and value is not None:
            self.writer.add_scalar(tag, value, epoch)

    def _add_picture(self, tag: str, epoch: int, draw: Callable[[Path], Path]) -> None:
        """Add a picture that `draw` writes to a PNG file."""
        import numpy as np
        from PIL import Image

        from sprat.files import temporary_folder

        with temporary_folder() as folder, Image.open(draw(folder / "picture.png")) as drawn:
            pixels = np.asarray(drawn.convert("RGB"))
        if self.writer:
            self.writer.add_image(tag, pixels, epoch, dataformats="HWC")
