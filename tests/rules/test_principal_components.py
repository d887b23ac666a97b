"""Principal components of a hidden state."""

from __future__ import annotations

import pytest
import torch

from prunepass.rules.principal_components import moments, principal_components


def of_rank(rank: int, width: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(5, 40, rank, generator=generator, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(width, rank, generator=generator, dtype=torch.float64))[0]
    return left @ basis.T + 3.0


@pytest.mark.parametrize("rank", [1, 3, 7, 12])
def test_the_rank_is_found(rank: int) -> None:
    assert principal_components(*moments(of_rank(rank)), share=1 - 1e-6) == rank


def test_smaller_shares_need_fewer() -> None:
    sums = moments(of_rank(9))
    counts = [principal_components(*sums, share=s) for s in (0.2, 0.5, 0.9, 0.99)]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] <= 9


def test_a_constant_state_has_none_and_padding_does_not_count() -> None:
    x = torch.ones(2, 5, 4, dtype=torch.float64)
    assert principal_components(*moments(x)) == 0
    x[:, :2] = torch.randn(2, 2, 4, dtype=torch.float64)
    valid = torch.tensor([[0, 0, 1, 1, 1]] * 2)
    assert principal_components(*moments(x, valid)) == 0


def test_moments_of_batches_add_up() -> None:
    x = of_rank(4)
    whole, parts = moments(x), [moments(x[:2]), moments(x[2:])]
    for total, first, second in zip(whole, *parts, strict=True):
        torch.testing.assert_close(total, first + second, rtol=1e-12, atol=1e-9)
