"""Knowledge distillation: trained networks as teachers, whose predictions a run learns in addition
to the labels (Hinton, Vinyals and Dean 2015, arXiv 1503.02531)."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sprat.data import Dataset
from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.kernels import CompiledNetwork, why_not
from sprat.runtime import autocast
from sprat.settings.config import Config
from sprat.training.trained import Trained


class Teacher(Trained):
    """A trained model whose predictions a run learns."""

    def check(self, dataset: Dataset, final: bool) -> None:
        """Check that the teacher suits a student that is trained on `dataset`.

        Raises:
            SpratError: it was trained on other images, on another number of channels, or on images
                that the student is evaluated on.
        """
        if self.model.channels != dataset.channels:
            raise SpratError(
                f"The teacher {self.model.name} expects {self.model.channels}-channel images, but "
                f"those of {dataset.name} have {dataset.channels} channels. Train the teacher on "
                "the same images, or both with --pictures.channels 3."
            )
        if self.model.about.get("dataset_md5") != dataset.md5:
            raise SpratError(
                f"The teacher {self.model.name} was trained on other images than this "
                f"{dataset.name}, possibly on those of its test set. Train a teacher on the same "
                "images."
            )
        about = self.model.about
        if (about.get("test_top1") is not None or about.get("fold")) and not final:
            raise SpratError(
                f"The teacher {self.model.name} was also trained on images of val, so the "
                "student's accuracy on val would be too high. Add --final, or train a teacher "
                "without --final and --folds."
            )


class Renormalize(nn.Module):
    """Map images B x C x H x W normalised with `given` to what `wanted` would have made of them."""

    scale: Tensor
    shift: Tensor

    def __init__(self, given: Normalization, wanted: Normalization) -> None:
        super().__init__()
        std, mean = torch.tensor(wanted.std), torch.tensor(wanted.mean)
        self.register_buffer("scale", (torch.tensor(given.std) / std)[:, None, None])
        self.register_buffer("shift", ((torch.tensor(given.mean) - mean) / std)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return images * self.scale + self.shift


def answers_of(
    teachers: Sequence[Teacher], config: Config, normalization: Normalization
) -> Callable[[Tensor], Tensor]:
    """Return a function from the student's normalised images to the teachers' mean logits, B x K.

    Args:
        config: the student's, settled for this machine.
        normalization: the student's.
    """
    device = torch.device(config.device)
    networks = [_answers_of(teacher, config, normalization) for teacher in teachers]

    def answers(images: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, config.precision):
            logits = [network(images) for network in networks]
            return together(logits, config.distill.temperature)

    return answers


def _answers_of(
    teacher: Teacher, config: Config, normalization: Normalization
) -> Callable[[Tensor], Tensor]:
    device = torch.device(config.device)
    network = teacher.model.network.eval().requires_grad_(False)
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    answer: Callable[[Tensor], Tensor] = network
    if config.kernels == "compiled" and not why_not(network, device):
        bf16 = config.precision == "bf16"
        # CPU inference kernels are fp32; where bf16 is native, use the training kernels
        frozen = device.type == "cuda" or not bf16
        answer = CompiledNetwork(network, bf16=bf16, threads=config.threads, frozen=frozen).eval()
    renormalize = Renormalize(normalization, teacher.model.normalization).to(device)
    return lambda images: answer(renormalize(images))


def together(logits: list[Tensor], temperature: float) -> Tensor:
    """Return logits (B x K) whose softened probabilities are the mean over several teachers."""
    if len(logits) == 1:
        return logits[0]
    shares = torch.stack([F.log_softmax(each.float() / temperature, 1) for each in logits])
    return temperature * (shares.logsumexp(0) - math.log(len(logits)))


def distance(logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
    """Return the distillation loss: the Kullback-Leibler divergence between the softened
    predictions of student and teacher, averaged over images and times temperature², so that the
    size of gradients does not depend on temperature.

    Args:
        logits, taught: logits of the student and of the teacher, B x K.
        temperature: divisor of both before the softmax.
    """
    student = F.log_softmax(logits.float() / temperature, 1)
    teacher = F.log_softmax(taught.float() / temperature, 1)
    kl = F.kl_div(student, teacher, log_target=True, reduction="batchmean")
    return kl * temperature**2
