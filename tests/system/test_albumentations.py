"""Test of interrupting and resuming a run that augments in Albumentations' workers."""

import dataclasses
import multiprocessing
from pathlib import Path

import pytest
from conftest import SMALL, StopAfter, weights

from sprat.data import Dataset
from sprat.settings.config import AugmentConfig
from sprat.training.run import Interrupted
from sprat.training.start import resume, train

pytest.importorskip("albumentations", reason="needs sprat[albumentations]")


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # on one core
def test_trains_and_resumes_bit_for_bit(small: Dataset, tmp_path: Path) -> None:
    augment = AugmentConfig(
        crop=0, affine=0.5, brightness_contrast=0.5, hue_saturation_value=0.5, coarse_dropout=0.3,
        engine="albumentations", workers=2,
    )  # fmt: skip
    config = dataclasses.replace(SMALL, final=True, epochs=2, augment=augment)
    train(config, small, tmp_path / "whole", recipe="small")
    one = dataclasses.replace(config, augment=dataclasses.replace(augment, workers=1))
    with pytest.raises(Interrupted):  # the number of workers does not matter
        train(one, small, tmp_path / "run", recipe="small", should_stop=StopAfter(15))
    resume(tmp_path / "run", small)
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert multiprocessing.active_children() == []
