"""Muon: SGD that orthogonalises the steps of 1x1 convolutions."""

import functools
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from sprat.runtime import cpu_has_bf16


class Muon(SGD):
    """SGD that orthogonalises the steps of groups with "muon_momentum".

    The Nesterov average of such a matrix's gradients is replaced by its nearest orthogonal matrix
    (all singular values near 1), so that no direction learns much faster than another. Jordan et
    al. 2024, https://kellerjordan.github.io/posts/muon.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # gradients must be unscaled (fp16) before this step, not inside the fused one
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            if "muon_momentum" in group:
                self._orthogonalize(group["params"], group["muon_momentum"])
        super().step()

    def _orthogonalize(self, parameters: list[Tensor], momentum: float) -> None:
        """Replace each parameter's gradient by its orthogonalised direction."""
        matrices = [p for p in parameters if p.grad is not None]
        if not matrices:
            return
        averages = [self._average(p) for p in matrices]
        gradients: list[Tensor] = [p.grad for p in matrices]  # type: ignore[misc]
        torch._foreach_mul_(averages, momentum)
        torch._foreach_add_(averages, gradients)
        ahead = torch._foreach_add(gradients, averages, alpha=momentum)
        if matrices[0].device.type == "cuda":  # fewer launches, which are expensive there
            directions = orthogonalized_together([step.flatten(1) for step in ahead])
        else:
            directions = orthogonalized_by_shape([step.flatten(1) for step in ahead])
        # so that the output changes by as much whatever the widths
        wider = [max(1.0, p.shape[0] / p.shape[1]) ** 0.5 for p in matrices]
        torch._foreach_mul_(directions, wider)
        shaped = [d.view(g.shape) for d, g in zip(directions, gradients, strict=True)]
        torch._foreach_copy_(gradients, shaped)

    def _average(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "muon_average" not in state:
            state["muon_average"] = torch.zeros_like(parameter)
        return state["muon_average"]


def orthogonalized_by_shape(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalise matrices as `orthogonalized` does, batching those of equal shape."""
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for i, matrix in enumerate(matrices):
        alike[matrix.shape].append(i)
    found = list(matrices)
    for places in alike.values():
        together = orthogonalized(torch.stack([matrices[i] for i in places]))
        for i, direction in zip(places, together.unbind(), strict=True):
            found[i] = direction
    return found


def orthogonalized_together(matrices: list[Tensor]) -> list[Tensor]:
    """Orthogonalise all matrices as `orthogonalized` does, in a single batch: each is the corner of
    a matrix as large as the largest, whose other rows and columns stay 0 and have no effect."""
    rows, columns = (max(matrix.shape[i] for matrix in matrices) for i in (0, 1))
    shapes = tuple(tuple(matrix.shape) for matrix in matrices)
    places = _corners(shapes, rows, columns, matrices[0].device)
    flat = torch.cat([matrix.flatten() for matrix in matrices])
    padded = flat.new_zeros(len(matrices) * rows * columns).index_copy_(0, places, flat)
    together = orthogonalized(padded.view(len(matrices), rows, columns))
    pieces = together.flatten().index_select(0, places).split([m.numel() for m in matrices])
    return [piece.view(m.shape) for piece, m in zip(pieces, matrices, strict=True)]


@functools.cache  # its creation cannot be captured in a graph
def _corners(
    shapes: tuple[tuple[int, ...], ...], rows: int, columns: int, device: torch.device
) -> Tensor:
    """Return the index of each value of these matrices in a batch of rows x columns matrices."""
    found = []
    for i, (height, width) in enumerate(shapes):
        row = torch.arange(height)[:, None] * columns
        found.append((i * rows * columns + row + torch.arange(width)).flatten())
    return torch.cat(found).to(device)


def orthogonalized(matrices: Tensor, steps: int = 5) -> Tensor:
    """Return the approximately nearest orthogonal matrix of each, N x rows x columns, with singular
    values of 0.7 to 1.2.

    Newton-Schulz iteration with the coefficients of Jordan et al., which trade exactness for few
    steps. In bf16 if the matrices are large and the hardware supports it.
    """
    wide = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
    x = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.shape[2] >= 80 and (x.device.type != "cpu" or cpu_has_bf16()):
        x = x.bfloat16()
    a, b, c = 3.4445, -4.7750, 2.0315
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.to(matrices.dtype)
    return (x if matrices.shape[1] <= matrices.shape[2] else x.mT).contiguous()
