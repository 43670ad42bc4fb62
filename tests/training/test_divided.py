"""Tests of the division of a batch among the processes of one run."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sprat import distributed
from sprat.data.batches import Batches
from sprat.data.imageset import ImageSet
from sprat.errors import SpratError


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 3)
    with pytest.raises(SpratError, match=r"batch_size is 32, which 3 processes cannot divide"):
        distributed.check_batch_size(32)


@given(batch=st.integers(1, 8), processes=st.integers(1, 4), epoch=st.integers(0, 3))
def test_parts_of_a_batch_make_up_the_batch(batch: int, processes: int, epoch: int) -> None:
    images = ImageSet(torch.zeros(40, 3, 4, 4, dtype=torch.uint8), torch.zeros(40).long(), ("a",))
    size = batch * processes
    alone = Batches(images, size, seed=0).order(epoch)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "count", lambda: processes)
        parts = []
        for rank in range(processes):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(Batches(images, size, seed=0).order(epoch))
    for whole, *divided in zip(alone, *parts, strict=True):
        assert torch.equal(torch.cat(divided), whole)
