"""A trained model that a run uses: a teacher, or the model that it starts from."""

import hashlib
from dataclasses import dataclass
from typing import Self

from sprat.budget import count_parameters
from sprat.checkpoint import Model, load_model, with_ranges
from sprat.evaluation.records import ModelRecord
from sprat.model_file import file_of, read_model
from sprat.zoo import locate


@dataclass(frozen=True)
class Trained:
    """A trained model, and the sha256 of its file without ranges of activations, which older files
    lack: runs that used such a file can still be resumed."""

    model: Model
    sha256: str

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a trained model.

        Args:
            name: a model file, the folder of a finished run, or the name of a pretrained model.

        Raises:
            SpratError: there is no such model, or it is damaged.
        """
        file = file_of(locate(name))
        model = load_model(file)
        content = with_ranges(file, read_model(file), None)
        return cls(model, hashlib.sha256(content).hexdigest())

    @property
    def about(self) -> ModelRecord:
        """Record of the model for a run's results."""
        about = self.model.about
        return {
            "model": self.model.name,
            "parameters": count_parameters(self.model.network),
            "sha256": self.sha256,
            "recipe": about.get("recipe"),
            "seed": about.get("seed"),
            "val_top1": about.get("val_top1"),
            "test_top1": about.get("test_top1"),
        }
