"""Test of how hard the built-in dataset is."""

import torch

from sprat.data import Dataset


def test_a_linear_model_stays_under_60_percent(shapes10: Dataset) -> None:
    def flat(images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images.flatten(1).double() / 255 - 0.5, torch.ones(len(images), 1)], 1)

    inputs, wanted = flat(shapes10.train.images), torch.eye(10)[shapes10.train.targets].double()
    best, gram, moments = 0.0, inputs.T @ inputs, inputs.T @ wanted
    for ridge in (1e1, 1e2, 1e3, 1e4):
        weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)), moments)
        guesses = (flat(shapes10.test.images) @ weights).argmax(1)
        best = max(best, (guesses == shapes10.test.targets).double().mean().item())
    assert 0.1 < best < 0.6
