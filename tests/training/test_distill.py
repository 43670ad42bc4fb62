"""Tests of distillation: what is learnt from a teacher, and which teachers are refused."""

import dataclasses
import hashlib
import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, Here, weights
from torch import Tensor, nn

from sprat.augment.transforms import normalize
from sprat.checkpoint import load_model, with_ranges
from sprat.data import Dataset
from sprat.data.imageset import Normalization
from sprat.errors import SpratError
from sprat.evaluation.records import read_json, teachers_of
from sprat.settings.config import Config, DistillConfig
from sprat.training.distill import Renormalize, Teacher, distance, together
from sprat.training.run import Interrupted, Run
from sprat.training.start import resume, settle_for, train


def taught(*by: Path, **changes: object) -> Config:
    distill = DistillConfig(teacher=tuple(map(str, by)), weight=0.5, temperature=2.0)
    return dataclasses.replace(SMALL, distill=distill, **changes)  # type: ignore[arg-type]


def slow_distance(logits: Tensor, taught: Tensor, temperature: float) -> float:
    """Return the divergence, computed image by image and class by class."""
    total = 0.0
    for given, wanted in zip(logits.tolist(), taught.tolist(), strict=True):
        q = [math.exp(z / temperature) for z in given]
        p = [math.exp(z / temperature) for z in wanted]
        for one, other in zip(p, q, strict=True):
            share = one / sum(p)
            total += share * math.log(share / (other / sum(q)))
    return temperature**2 * total / len(logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 8.0])
def test_the_distance_is_the_divergence_of_softened_answers(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits, teachers = 3 * torch.randn(2, 16, 10, generator=generator)
    found = distance(logits, teachers, temperature)
    assert found.item() == pytest.approx(slow_distance(logits, teachers, temperature), rel=1e-5)
    assert distance(teachers, teachers, temperature).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_several_teachers_teach_the_mean_of_their_softened_answers(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    teachers = list(3 * torch.randn(3, 16, 10, generator=generator))
    mean = sum((each / temperature).softmax(1) for each in teachers) / 3
    found = (together(teachers, temperature) / temperature).softmax(1)
    torch.testing.assert_close(found, mean)
    assert together(teachers[:1], temperature) is teachers[0]


def test_two_teachers_are_averaged_and_recorded(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    train(dataclasses.replace(SMALL, seed=1, epochs=2), tiny, tmp_path / "other", recipe="small")
    both = taught(small_run, tmp_path / "other", epochs=2)
    train(both, tiny, tmp_path / "run", recipe="small")
    recorded = teachers_of(read_json(tmp_path / "run" / "results.json"))
    assert [teacher["seed"] for teacher in recorded] == [0, 1]

    images = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other, twice, mean = (
        Run(settle_for(config, tiny), tiny, tmp_path).step.teach(images)
        for config in (
            taught(small_run), taught(tmp_path / "other"), taught(small_run, small_run), both
        )
    )  # fmt: skip
    torch.testing.assert_close(twice.softmax(1), one.softmax(1))
    torch.testing.assert_close(mean, together([one, other], 2.0))


@pytest.mark.parametrize(
    ("written", "teachers"), [("", ()), ("a", ("a",)), (["a", "b"], ("a", "b")), ([], ())]
)
def test_a_recipe_names_one_teacher_or_several(written: object, teachers: object) -> None:
    assert Config.from_dict({"distill": {"teacher": written}}).distill.teacher == teachers


def test_images_are_renormalised_for_the_teacher() -> None:
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    given = Normalization((0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    wanted = Normalization((0.6, 0.4, 0.2), (0.5, 0.1, 0.3))
    once, again = (
        normalize(images, torch.tensor(n.mean), torch.tensor(n.std)) for n in (given, wanted)
    )
    torch.testing.assert_close(Renormalize(given, wanted)(once), again, rtol=1e-4, atol=1e-5)


def test_distillation_weight_of_one_ignores_the_labels(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    config = taught(small_run, epochs=2, weights="last")
    alone = dataclasses.replace(
        config, final=True, distill=dataclasses.replace(config.distill, weight=1.0)
    )
    wrong = dataclasses.replace(tiny.train, targets=(tiny.train.targets + 1) % 10)
    train(alone, tiny, tmp_path / "right", recipe="small")
    train(alone, dataclasses.replace(tiny, train=wrong), tmp_path / "wrong", recipe="small")
    assert weights(tmp_path / "right") == weights(tmp_path / "wrong")


def test_teacher_changes_the_weights_and_is_recorded(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    train(taught(small_run), tiny, tmp_path / "run", recipe="small")
    assert weights(tmp_path / "run") != weights(small_run)
    (recorded,) = teachers_of(read_json(tmp_path / "run" / "results.json"))
    assert recorded["model"] == "SpratNet"
    assert recorded["parameters"] == 1_693
    assert recorded["sha256"] == Teacher.load(str(small_run)).sha256
    assert recorded["val_top1"] == read_json(small_run / "results.json")["val"]["top1"]
    assert teachers_of(read_json(small_run / "results.json")) == []


def test_teachers_hash_ignores_stored_ranges(small_run: Path, tmp_path: Path) -> None:
    file = small_run / "model.safetensors"
    content = with_ranges(file, file.read_bytes(), None)
    (tmp_path / "old.safetensors").write_bytes(content)
    old, now = (Teacher.load(str(path)) for path in (tmp_path / "old.safetensors", file))
    assert old.model.ranges is None is not now.model.ranges
    assert old.sha256 == now.sha256 == hashlib.sha256(content).hexdigest()


def test_resume_is_exact_and_refuses_another_teacher(
    tiny: Dataset, small_run: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_run, tmp_path / "teacher")
    config = taught(tmp_path / "teacher")
    train(config, tiny, tmp_path / "whole", recipe="small")
    steps = iter(range(100))
    with pytest.raises(Interrupted):
        train(config, tiny, tmp_path / "run", recipe="small", should_stop=lambda: next(steps) == 15)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    resume(tmp_path / "run", tiny)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    shutil.copy(tmp_path / "whole" / "model.safetensors", tmp_path / "teacher")
    with pytest.raises(SpratError, match="was taught by another model than"):
        resume(tmp_path / "other", tiny)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_teacher_outputs_match_its_network(
    tiny: Dataset, small_run: Path, tmp_path: Path, kernels: str
) -> None:
    config = settle_for(taught(small_run, kernels=kernels), tiny)
    training = Run(config, tiny, tmp_path / "run")
    network: nn.Module = load_model(small_run).network
    images = torch.randn(32, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            training.step.teach(images), network(images), rtol=1e-3, atol=1e-3
        )


class TestRefused:
    def test_teacher_that_has_seen_val_is_refused(
        self, tiny: Dataset, small_run: Path, tmp_path: Path
    ) -> None:
        final = dataclasses.replace(SMALL, final=True, epochs=2)
        train(final, tiny, tmp_path / "final", recipe="small")
        with pytest.raises(SpratError, match=r"val.*Add --final"):
            train(taught(tmp_path / "final"), tiny, tmp_path / "run", recipe="small")
        assert not (tmp_path / "run").exists()
        train(taught(tmp_path / "final", final=True), tiny, tmp_path / "run", recipe="small")

    def test_teacher_of_other_images_is_refused(
        self, tiny: Dataset, small_run: Path, tmp_path: Path
    ) -> None:
        other = dataclasses.replace(tiny, md5="0" * 32)
        with pytest.raises(SpratError, match="was trained on other images"):
            train(taught(small_run), other, tmp_path / "run", recipe="small")
        assert not (tmp_path / "run").exists()

    def test_missing_teacher_is_refused(self, here: Here, tmp_path: Path) -> None:
        done = here(
            "train", "--distill.teacher", tmp_path / "none", "--output", tmp_path / "run",
            "--dataset", "shapes10",
        )  # fmt: skip
        assert done.returncode == 2
        assert "There is no model at" in done.stderr
        assert not (tmp_path / "run").exists()
