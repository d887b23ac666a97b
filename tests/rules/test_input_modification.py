"""LIM and BI: properties L1 to L6, L11, B1, B3, B5."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunepass.rules.input_modification import (
    block_influence,
    cosines,
    input_modification,
    summed_cosines,
)


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def lim(before: Tensor, after: Tensor, valid: Tensor | None = None) -> float:
    return float(input_modification(*summed_cosines(before, after, valid)))


def bi(before: Tensor, after: Tensor) -> float:
    return float(block_influence(*summed_cosines(before, after)))


def test_l1_b1_an_identity_layer_changes_nothing() -> None:
    x = draw(2, 5, 7)
    assert lim(x, x) == pytest.approx(-1.0, abs=1e-12)
    assert bi(x, x) == pytest.approx(0.0, abs=1e-12)


def test_l2_a_layer_that_turns_around() -> None:
    x = draw(2, 5, 7)
    assert lim(x, -x) == pytest.approx(1.0, abs=1e-12)
    assert bi(x, -x) == pytest.approx(2.0, abs=1e-12)


def test_l3_orthogonal() -> None:
    before, after = torch.zeros(1, 3, 4), torch.zeros(1, 3, 4)
    before[..., 0], after[..., 2] = 2.0, 5.0
    assert lim(before, after) == 0.0


def test_a_case_by_hand() -> None:
    before = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [3.0, 4.0]]])
    after = torch.tensor([[[1.0, 1.0], [0.0, 1.0], [1.0, -1.0], [4.0, 3.0]]])
    told = [1 / math.sqrt(2), 1.0, 0.0, 0.96]
    assert cosines(before, after)[0].tolist() == pytest.approx(told, abs=1e-12)
    assert lim(before, after) == pytest.approx(-sum(told) / 4, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_l4_scaling_changes_nothing_and_b3_range(seed: int, left: float, right: float) -> None:
    before, after = draw(2, 4, 6, seed=seed), draw(2, 4, 6, seed=seed + 5000)
    assert lim(left * before, right * after) == pytest.approx(lim(before, after), abs=1e-12)
    assert -1.0 <= lim(before, after) <= 1.0
    assert 0.0 <= bi(before, after) <= 2.0


def test_l5_b5_bi_is_one_plus_lim() -> None:
    before, after = draw(3, 4, 5), draw(3, 4, 5, seed=1)
    assert bi(before, after) == 1 + lim(before, after)


def test_l6_zero_vectors_are_guarded() -> None:
    zero, x = torch.zeros(1, 3, 4), draw(1, 3, 4)
    for before, after in ((zero, x), (x, zero), (zero, zero)):
        assert lim(before, after) == 0.0
    assert math.isfinite(lim(1e-30 * x.half(), x.half()))


def test_l11_padding_does_not_count() -> None:
    before, after = draw(2, 6, 5), draw(2, 6, 5, seed=1)
    valid = torch.ones(2, 6)
    valid[1, :4] = 0
    rows = [lim(before[:1], after[:1]) * 6, lim(before[1:, 4:], after[1:, 4:]) * 2]
    assert lim(before, after, valid) == pytest.approx(sum(rows) / 8, abs=1e-12)
    assert lim(before, after, torch.zeros(2, 6)) == 0.0


def test_sums_of_batches_are_the_sums_of_all() -> None:
    before, after = draw(6, 4, 5), draw(6, 4, 5, seed=1)
    total, count = torch.zeros(()), torch.zeros(())
    for part in (slice(0, 1), slice(1, 6)):
        more = summed_cosines(before[part], after[part])
        total, count = total + more[0], count + more[1]
    assert float(input_modification(total, count)) == pytest.approx(lim(before, after), abs=1e-12)
