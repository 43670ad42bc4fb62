"""Groups of images, assigned to parts so that no group is divided."""

import numpy as np
import torch
from torch import Tensor


def deal(targets: Tensor, groups: Tensor, shares: tuple[float, ...], seed: int) -> Tensor:
    """Return the part of each image: int64, N, from 0.

    Every class is divided in proportion to `shares` as closely as whole groups allow: each group,
    the largest first, goes to the part that lacks its classes most.

    Args:
        targets: int64, N. groups: int64, N; images with the same number stay together.
        shares: share of each part, above 0; the sum is 1.
        seed: seed of the order among equal groups; the result is the same on every machine.
    """
    labels, weights = targets.cpu().numpy(), np.array(shares)
    _, group_of, sizes = np.unique(groups.cpu().numpy(), return_inverse=True, return_counts=True)
    members = np.split(np.argsort(group_of, kind="stable"), np.cumsum(sizes)[:-1])
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(sizes), generator=generator).numpy()
    totals = np.bincount(labels)
    filled = np.zeros((len(shares), len(totals)), dtype=np.int64)
    dealt = np.empty(len(labels), dtype=np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        present, counts = np.unique(labels[members[group]], return_counts=True)
        # growth of the sum over classes and parts of count² / (share x total), which is smallest
        # if every count is share x total; rounded, so that ties are ties on every machine
        growth = ((2 * filled[:, present] + counts) * counts / totals[present]).sum(1) / weights
        part = np.lexsort((filled.sum(1) / weights, growth.round(9)))[0]
        filled[part, present] += counts
        dealt[members[group]] = part
    return torch.from_numpy(dealt)
