"""Wanda: property E9."""

from __future__ import annotations

import pytest
import torch

from prunepass.rules.wanda import wanda_kept, wanda_metric


def weight(seed: int = 0) -> torch.Tensor:
    return torch.randn(6, 11, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.77, 1.0])
def test_e9_zeros_of_every_row_are_exact(sparsity: float) -> None:
    kept = wanda_kept(weight(), torch.rand(11), sparsity=sparsity)
    assert (~kept).sum(dim=1).tolist() == [int(11 * sparsity)] * 6


def test_e9_equal_activations_are_magnitude_pruning() -> None:
    w = weight()
    kept = wanda_kept(w, torch.ones(11), sparsity=0.5)
    for row, stays in zip(w.abs(), kept, strict=True):
        assert row[stays].min() > row[~stays].max()


def test_e9_scaling_an_input_scales_its_column() -> None:
    w, squares = weight(), torch.rand(11)
    scaled = squares.clone()
    scaled[4] *= 3.0**2
    before, after = wanda_metric(w, squares), wanda_metric(w, scaled)
    torch.testing.assert_close(after[:, 4], 3 * before[:, 4])
    assert torch.equal(after[:, :4], before[:, :4])


def test_ties_go_from_the_front() -> None:
    assert wanda_kept(torch.ones(1, 4), torch.ones(4), sparsity=0.5).tolist() == [[0, 0, 1, 1]]
