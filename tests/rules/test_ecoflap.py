"""ECoFLaP's slopes: properties E7 and E8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunepass.rules.ecoflap import direction, first_order_importance, zeroth_order_slope


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_e7_the_slope_of_a_linear_loss_is_its_product_with_the_direction() -> None:
    weight, slope = drawn(0, 7, 5), drawn(1, 7, 5)
    found = zeroth_order_slope(lambda: float((slope * weight).sum()), weight, seed=3)
    told = float((slope * direction(weight, seed=3)).sum())
    assert found == pytest.approx(told, rel=1e-9)


def test_e7_mean_absolute_slopes_grow_with_the_gradient() -> None:
    weight, slope = drawn(0, 4, 6), drawn(1, 4, 6)

    def mean(scale: float) -> float:
        seeds = range(400)
        return sum(
            abs(zeroth_order_slope(lambda: scale * float((slope * weight).sum()), weight, seed=s))
            for s in seeds
        ) / len(seeds)

    assert mean(3.0) == pytest.approx(3.0 * mean(1.0), rel=1e-6)
    expected = float(slope.norm()) * (2 / torch.pi) ** 0.5
    assert mean(1.0) == pytest.approx(expected, rel=0.12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_e8_weights_are_bit_identical_afterwards(dtype: torch.dtype) -> None:
    weight = drawn(2, 9, 8).to(dtype)
    before = weight.clone()
    seen = []
    zeroth_order_slope(lambda: seen.append(weight.clone()) or 0.0, weight, seed=1)  # type: ignore[func-returns-value]
    assert torch.equal(weight, before)
    assert all(not torch.equal(x, before) for x in seen)
    assert not torch.equal(*seen)


def test_e8_also_where_the_loss_fails() -> None:
    weight = drawn(2, 3, 3)
    before = weight.clone()
    with pytest.raises(ZeroDivisionError):
        zeroth_order_slope(lambda: 1 / 0, weight, seed=1)
    assert torch.equal(weight, before)


def test_a_direction_is_the_same_for_a_seed() -> None:
    weight = torch.zeros(3, 4)
    assert torch.equal(direction(weight, seed=5), direction(weight, seed=5))
    assert not torch.equal(direction(weight, seed=5), direction(weight, seed=6))


def test_first_order_by_hand() -> None:
    weight, slope = torch.tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[0.1, 0.2], [0.4, 9.0]])
    assert first_order_importance(weight, slope) == pytest.approx(0.1 + 0.4 + 0.2)
