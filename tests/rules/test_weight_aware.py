from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prunepass.rules.low_rank import low_rank_part
from prunepass.rules.weight_aware import (
    column_norm,
    input_score,
    kept_inputs,
    masked_linear,
    threshold_mask,
    threshold_of,
    top_inputs,
    top_mask,
)


def drawn(seed: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """Random W [outputs, inputs] and x [inputs], float64."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    return weight, torch.randn(inputs, generator=generator, dtype=torch.float64)


def orthogonal(seed: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]:
    """The same with W's columns orthogonal, of different lengths."""
    weight, x = drawn(seed, outputs, inputs)
    return weight @ torch.linalg.svd(weight, full_matrices=True).Vh.T, x


def error(weight: Tensor, x: Tensor, mask: Tensor) -> float:
    return float((weight @ (x * ~mask)).norm())


def test_scores_of_four_inputs_by_hand() -> None:
    weight = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 0.5, 0.0, 2.0]])
    x = torch.tensor([0.1, -2.0, 1.0, 0.3])
    assert column_norm(weight).tolist() == [5.0, 0.5, 1.0, 2.0]
    assert input_score(x, column_norm(weight)).tolist() == pytest.approx([0.5, 1.0, 1.0, 0.6])
    assert top_inputs(input_score(x, column_norm(weight)), 3).tolist() == [1, 2, 3]
    assert top_inputs(input_score(x, None), 2).tolist() == [1, 2]


def test_equal_scores_keep_the_lower_index() -> None:
    score = torch.tensor([1.0, 2.0, 1.0, 1.0, 0.0])
    assert top_inputs(score, 3).tolist() == [0, 1, 2]
    assert top_mask(score, 2).tolist() == [True, True, False, False, False]


def test_w1_keeping_everything_is_the_dense_output() -> None:
    weight, x = drawn(0, 7, 9)
    mask = top_mask(input_score(x, column_norm(weight)), kept_inputs(9, 1.0))
    assert torch.equal(masked_linear(x, weight, None, mask), torch.nn.functional.linear(x, weight))


@given(seed=st.integers(0, 999), inputs=st.integers(1, 40), values=st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_the_mask_is_of_the_inputs_at_the_top_with_many_alike(
    seed: int, inputs: int, values: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, values, (3, inputs), generator=generator).float()
    for count in range(1, inputs + 1):
        found = [row.nonzero().flatten().tolist() for row in top_mask(score, count)]
        assert found == top_inputs(score, count).tolist()


@given(seed=st.integers(0, 999), inputs=st.integers(1, 40), keep=st.floats(0.01, 1.0))
@settings(max_examples=50, deadline=None)
def test_w2_and_w13_exactly_k_inputs_of_every_single_token(
    seed: int, inputs: int, keep: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    # One token, as in decoding, and several: each has a mask of its own, none is left dense.
    for tokens in (1, 3):
        score = torch.rand(tokens, inputs, generator=generator)
        count = kept_inputs(inputs, keep)
        assert top_mask(score, count).sum(-1).tolist() == [count] * tokens
    assert kept_inputs(inputs, keep) == max(1, int(inputs * keep + 1e-6))


def test_w3_equal_column_norms_give_the_mask_of_teal() -> None:
    weight, x = drawn(1, 6, 12)
    even = weight / column_norm(weight)
    one, other = (top_mask(input_score(x, c), 5) for c in (column_norm(even), None))
    assert torch.equal(one, other)


@pytest.mark.parametrize("seed", range(5))
def test_w4_orthogonal_columns_make_the_choice_optimal(seed: int) -> None:
    inputs, keep = 8, 3
    weight, x = orthogonal(seed, 10, inputs)
    norm = column_norm(weight)
    mask = top_mask(input_score(x, norm), keep)
    found = error(weight, x, mask)
    assert found == pytest.approx(float(((x * norm)[~mask] ** 2).sum().sqrt()), rel=1e-10)
    for kept in combinations(range(inputs), keep):
        other = torch.zeros(inputs, dtype=torch.bool)
        other[list(kept)] = True
        assert found <= error(weight, x, other) + 1e-12


def test_without_orthogonal_columns_it_is_not_always_optimal() -> None:
    worse = 0
    for seed in range(60):
        weight, x = drawn(seed, 4, 6)
        found = error(weight, x, top_mask(input_score(x, column_norm(weight)), 3))
        best = min(
            error(weight, x, torch.zeros(6, dtype=torch.bool).index_fill(0, torch.tensor(k), True))
            for k in combinations(range(6), 3)
        )
        worse += found > best + 1e-12
    assert worse > 0


def test_w7_error_grows_as_less_is_kept() -> None:
    weight, x = orthogonal(3, 20, 16)
    score = input_score(x, column_norm(weight))
    errors = [error(weight, x, top_mask(score, count)) for count in range(16, 0, -1)]
    assert errors == sorted(errors)


def test_w8_grouped_keys_lose_nothing_down_to_their_own_width() -> None:
    weight, x = orthogonal(4, 5, 20)  # five outputs: fifteen rotated columns are zero
    dense = weight @ x
    score = input_score(x, column_norm(weight))
    kept = masked_linear(x, weight, None, top_mask(score, 5))
    torch.testing.assert_close(kept, dense, rtol=0, atol=1e-12)
    plain = masked_linear(x, weight, None, top_mask(input_score(x, None), 5))
    assert (plain - dense).abs().max() > 1e-3  # not so by |x| alone


def test_w9_scale_may_lie_in_the_weight_or_in_the_input() -> None:
    weight, x = drawn(5, 6, 10)
    scale = torch.rand(10, dtype=torch.float64) + 0.5
    one = top_mask(input_score(x, column_norm(weight)), 4)
    other = top_mask(input_score(x / scale, column_norm(weight * scale)), 4)
    assert torch.equal(one, other)


@pytest.mark.parametrize("keep", [0.75, 0.5, 0.35])
def test_w12_a_threshold_keeps_its_share_on_what_it_was_found_on(keep: float) -> None:
    scores = torch.randn(50, 64, generator=torch.Generator().manual_seed(6)).abs()
    share = threshold_mask(scores, threshold_of(scores, keep)).double().mean()
    assert abs(float(share) - keep) < 0.01


def test_a_threshold_for_everything_lies_below_all_scores() -> None:
    scores = torch.zeros(3, 4)
    assert threshold_mask(scores, threshold_of(scores, 1.0)).all()


def test_scores_are_finite_in_half_precision() -> None:
    weight, x = drawn(7, 8, 8)
    score = input_score(x.half() * 100, column_norm((weight * 10).half()))
    assert score.isfinite().all()


def test_low_rank_part_is_the_best_of_its_rank() -> None:
    weight, _ = drawn(8, 6, 9)
    down, up = low_rank_part(weight, 2)
    values = torch.linalg.svdvals(weight)
    assert down.shape == (2, 9)
    assert up.shape == (6, 2)
    left = torch.linalg.matrix_norm(weight - up @ down)
    assert float(left) == pytest.approx(float((values[2:] ** 2).sum().sqrt()), rel=1e-10)
