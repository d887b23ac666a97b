"""ZD: properties L7 to L10."""

from __future__ import annotations

import pytest
import torch

from prunepass.rules.z_scores import z_score_share


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_l7_gaussian_weights() -> None:
    number = 400 * 500
    share = 0.158655
    spread = (share * (1 - share) / number) ** 0.5
    assert z_score_share([gaussian(400, 500)]) == pytest.approx(share, abs=3 * spread)


def test_l8_shifting_and_stretching_change_nothing_turning_does() -> None:
    weight = gaussian(60, 70).exp()
    told = z_score_share([weight])
    assert z_score_share([3.5 * weight + 2.0]) == told
    assert z_score_share([0.01 * weight - 7.0]) == told
    assert z_score_share([-weight]) != told


def test_l9_constant_weights() -> None:
    assert z_score_share([torch.full((5, 6), 0.3)]) == 0.0
    assert z_score_share([]) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_l10_a_z_score_of_exactly_one_is_not_above(dtype: torch.dtype) -> None:
    weight = torch.ones(10, 20, dtype=dtype)
    weight[:5] = -1
    assert z_score_share([weight]) == 0.0
    assert z_score_share([weight * 0.1]) == 0.0


def test_matrices_of_a_layer_are_pooled() -> None:
    small, large = gaussian(20, 20), 10 * gaussian(20, 20, seed=1)
    pooled = torch.cat([small.flatten(), large.flatten()])
    assert z_score_share([small, large]) == z_score_share([pooled])
    assert z_score_share([small, large]) != pytest.approx(
        (z_score_share([small]) + z_score_share([large])) / 2, abs=1e-3
    )
