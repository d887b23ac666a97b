from __future__ import annotations

import math

import pytest
import torch

from prunepass.rules.page_rank import combine_heads, heads_within, page_rank, page_rank_score
from tests.reference import zero_tprune_numpy
from tests.rules.example import attention, numbers, shuffled

EXACT = {"rtol": 1e-12, "atol": 1e-15}


def plain(a: torch.Tensor, iterations: int, start: torch.Tensor | None = None) -> torch.Tensor:
    return page_rank(a, iterations=iterations, prefix_boost=False, start=start)


def starts(tokens: int) -> torch.Tensor:
    return numbers(2, 3, tokens, seed=9).softmax(-1)


def test_four_tokens_by_hand() -> None:
    a = torch.tensor(
        [
            [
                [
                    [0.1, 0.2, 0.3, 0.4],
                    [0.4, 0.3, 0.2, 0.1],
                    [0.7, 0.1, 0.1, 0.1],
                    [0.0, 0.0, 1.0, 0.0],
                ]
            ]
        ],
        dtype=torch.float64,
    )
    # The class token starts at sqrt(4) = 2 of 5, the others at 1 of 5.
    first = [(0.2 + 0.4 + 0.7) / 5, (0.4 + 0.3 + 0.1) / 5, (0.6 + 0.2 + 0.1 + 1) / 5, 1.0 / 5]
    score = page_rank(a, iterations=1, prefix_boost=True)
    torch.testing.assert_close(score[0, 0], torch.tensor(first, dtype=torch.float64), **EXACT)


def test_zt1_uniform_attention_gives_the_uniform_score() -> None:
    a = torch.full((2, 3, 7, 7), 1 / 7, dtype=torch.float64)
    expected = torch.full((2, 3, 7), 1 / 7, dtype=torch.float64)
    torch.testing.assert_close(plain(a, 1, starts(7)), expected, **EXACT)


def test_zt2_doubly_stochastic_attention_keeps_the_uniform_score() -> None:
    generator = torch.Generator().manual_seed(3)
    shuffles = [torch.eye(7)[torch.randperm(7, generator=generator)] for _ in range(4)]
    a = torch.stack(shuffles).double().mean(0).expand(2, 3, 7, 7)
    expected = torch.full((2, 3, 7), 1 / 7, dtype=torch.float64)
    torch.testing.assert_close(plain(a, 5), expected, **EXACT)


@pytest.mark.parametrize("iterations", [0, 1, 2, 5, 30])
@pytest.mark.parametrize("boost", [False, True])
def test_zt3_scores_sum_to_one_and_are_not_negative(iterations: int, boost: bool) -> None:
    score = page_rank(attention(2, 3, 9), iterations=iterations, prefix_boost=boost)
    assert score.shape == (2, 3, 9)
    assert score.min() >= 0
    torch.testing.assert_close(score.sum(-1), torch.ones(2, 3, dtype=torch.float64), **EXACT)


def test_zt4_everyone_looks_at_one_token() -> None:
    a = torch.zeros(2, 3, 7, 7, dtype=torch.float64)
    a[..., 4] = 1.0
    expected = torch.eye(7, dtype=torch.float64)[4].expand(2, 3, 7)
    torch.testing.assert_close(plain(a, 1, starts(7)), expected, **EXACT)


def test_zt5_many_rounds_forget_the_start() -> None:
    a = attention(2, 3, 7)
    torch.testing.assert_close(plain(a, 50, starts(7)), plain(a, 50), rtol=1e-8, atol=0)
    boosted = page_rank(a, iterations=50, prefix_boost=True)
    torch.testing.assert_close(boosted, plain(a, 50), rtol=1e-8, atol=0)


def test_zt6_one_uniform_round_is_the_column_mean() -> None:
    a = attention(2, 3, 9)
    torch.testing.assert_close(plain(a, 1), a.mean(-2), **EXACT)


def test_zt7_a_peak_in_one_head_beats_the_same_mean() -> None:
    score = torch.tensor([[[1.0, 0.5, 0.0], [0.0, 0.5, 1.0]]], dtype=torch.float64)
    joined = combine_heads(score, variance_range=None)[0]
    assert joined[0] > joined[1]
    averaged = combine_heads(score, root_mean_square=False, variance_range=None)[0]
    assert averaged[0] == averaged[1]


def test_zt8_identical_heads_count_as_one() -> None:
    score = numbers(2, 1, 9).softmax(-1)
    several = combine_heads(score.expand(2, 4, 9))
    torch.testing.assert_close(several, combine_heads(score), **EXACT)


def test_zt9_the_head_filter() -> None:
    score = numbers(2, 3, 9).softmax(-1)
    unfiltered = combine_heads(score, variance_range=None)
    assert torch.equal(combine_heads(score, variance_scale="none"), unfiltered)
    every = combine_heads(score, variance_range=(0.0, math.inf))
    torch.testing.assert_close(every, unfiltered, **EXACT)
    none_left = combine_heads(score, variance_range=(1e6, 1e7))
    torch.testing.assert_close(none_left, unfiltered, **EXACT)
    flat = torch.cat([torch.full((2, 1, 9), 1 / 9, dtype=torch.float64), score], dim=1)
    without_flat = combine_heads(flat, variance_range=(1e-9, math.inf))
    torch.testing.assert_close(without_flat, unfiltered, **EXACT)


def test_the_head_filter_is_one_image_at_a_time() -> None:
    peaked = (8 * numbers(1, 2, 9)).softmax(-1)
    mild = (0.3 * numbers(1, 2, 9, seed=1)).softmax(-1)
    both = combine_heads(torch.cat([peaked, mild]), variance_range=(0.0, 0.7))
    torch.testing.assert_close(both[:1], combine_heads(peaked, variance_range=None), **EXACT)
    torch.testing.assert_close(both[1:], combine_heads(mild, variance_range=None), **EXACT)


def test_variance_scales_by_hand() -> None:
    score = torch.tensor([[[0.5, 0.3, 0.2, 0.0]]], dtype=torch.float64)
    squares = 0.25**2 + 0.05**2 + 0.05**2 + 0.25**2  # about the mean 0.25
    edge = squares / 4 * 16  # the variance of 4 * score
    assert heads_within(score, variance_range=(edge - 1e-9, edge + 1e-9)).all()
    assert not heads_within(score, variance_range=(0.0, edge - 1e-9)).any()
    around = (squares - 1e-9, squares + 1e-9)
    assert heads_within(score, variance_range=around, variance_scale="ss").all()


def test_unknown_variance_scale_and_negative_iterations() -> None:
    with pytest.raises(ValueError, match="mean1, ss, none"):
        combine_heads(starts(5), variance_scale="raw")
    with pytest.raises(ValueError, match="iterations=-1"):
        plain(attention(1, 1, 3), -1)


@pytest.mark.parametrize("iterations", [1, 4])
def test_zt10_voting_commutes_with_permutation(iterations: int) -> None:
    a = attention(2, 3, 9)
    order = torch.tensor([0, *shuffled(list(range(1, 9)))])
    there = page_rank(a[:, :, order][..., order], iterations=iterations, prefix_boost=True)
    here = page_rank(a, iterations=iterations, prefix_boost=True)
    torch.testing.assert_close(there, here[..., order], **EXACT)


@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("boost", [True, False])
@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_masking_equals_voting_on_the_sub_matrix(
    renormalise: bool, boost: bool, iterations: int
) -> None:
    a = attention(2, 3, 9)
    kept = torch.tensor([[0, 2, 3, 5, 8], [0, 1, 4, 6, 7]])
    masked = page_rank(
        a, iterations=iterations, prefix_boost=boost, kept=kept, renormalise=renormalise
    )
    for image in range(2):
        alive = kept[image]
        part = a[image : image + 1][:, :, alive][..., alive]
        if renormalise:
            part = part / part.sum(-1, keepdim=True)
        expected = page_rank(part, iterations=iterations, prefix_boost=boost)
        expected = expected / expected.sum(-1, keepdim=True)
        torch.testing.assert_close(masked[image], expected[0], **EXACT)


def test_silent_registers_get_votes_and_cast_none() -> None:
    a = attention(1, 2, 6)
    score = page_rank(a, iterations=1, prefix_boost=False, silent=3)
    expected = a[:, :, [0, 3, 4, 5]].mean(-2)  # tokens 1 and 2 do not vote
    torch.testing.assert_close(score, expected, **EXACT)
    longer = page_rank(a, iterations=4, prefix_boost=False, silent=3)
    torch.testing.assert_close(longer.sum(-1), torch.ones(1, 2, dtype=torch.float64), **EXACT)
    nothing = page_rank(a, iterations=1, prefix_boost=False, silent=1)
    assert torch.equal(nothing, plain(a, 1))


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("variance_range", [(0.01, 0.7), (0.0, 0.2), None])
def test_score_against_loops(prefix: int, variance_range: tuple[float, float] | None) -> None:
    a = attention(2, 3, 9)
    score = page_rank_score(a, prefix=prefix, iterations=3, variance_range=variance_range)
    for image in range(2):
        expected = zero_tprune_numpy.importance(
            a[image].numpy(), iterations=3, boost=prefix > 0, variance_range=variance_range
        )
        torch.testing.assert_close(score[image], torch.from_numpy(expected), **EXACT)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_close_to_single(dtype: torch.dtype) -> None:
    a = attention(2, 3, 150, dtype=dtype)
    low = page_rank_score(a, prefix=1, iterations=10)
    high = page_rank_score(a.double(), prefix=1, iterations=10)
    assert low.dtype == torch.float32
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(low.double(), high, rtol=tolerance, atol=0)


def test_half_precision_among_survivors_that_get_no_attention() -> None:
    a = torch.zeros(1, 1, 4, 4, dtype=torch.float16)
    a[..., 3] = 1.0  # all look at a token that is gone
    score = page_rank(
        a, iterations=2, prefix_boost=True, kept=torch.tensor([[0, 1, 2]]), renormalise=True
    )
    assert score.isfinite().all()
