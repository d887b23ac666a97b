from __future__ import annotations

import pytest
import torch

from prunepass.rules.attention_weighted import attention_weighted
from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.similarity import head_rows
from prunepass.rules.tome import tome
from tests.rules.example import attention, numbers, proportional_attention


def equal_attention(batch: int, heads: int, tokens: int) -> torch.Tensor:
    return torch.full((batch, heads, tokens, tokens), 1 / tokens, dtype=torch.float64)


@pytest.mark.parametrize("prefix", [0, 1, 2])
def test_aw1_equal_attention_and_equal_features_is_tome_on_joined_keys(prefix: int) -> None:
    key = numbers(3, 2, 13, 4)
    ours = attention_weighted(
        key, head_rows(key, heads="concat"), equal_attention(3, 2, 13), keep=9, prefix=prefix
    )
    theirs = tome(key, keep=9, prefix=prefix, heads="concat")
    assert all(torch.equal(*pair) for pair in zip(ours[:3], theirs[:3], strict=True))


def test_aw2_the_scale_of_one_token_changes_nothing() -> None:
    key, hidden, a = numbers(2, 2, 13, 4), numbers(2, 13, 6, seed=1), attention(2, 2, 13)
    here = attention_weighted(key, hidden, a, keep=9, prefix=1)
    larger_key, larger_hidden = key.clone(), hidden.clone()
    larger_key[:, :, 4] *= 37.0
    larger_hidden[:, 7] *= 0.003
    there = attention_weighted(larger_key, larger_hidden, a, keep=9, prefix=1)
    assert all(torch.equal(*pair) for pair in zip(here, there, strict=True))


def test_aw3_among_equally_similar_pairs_the_least_attended_merges_first() -> None:
    pair = numbers(2, 4)  # a and b, the same in every pair: 2-3, 4-5, 6-7 (0 and 1 are prefix)
    hidden = pair.repeat(4, 1).unsqueeze(0)
    key = hidden.unsqueeze(1)
    a = torch.full((1, 1, 8, 8), 1.0, dtype=torch.float64)
    a[..., 4], a[..., 2], a[..., 6] = 0.2, 0.5, 2.0
    a = a / a.sum(-1, keepdim=True)
    for keep, gone in ((7, [4]), (6, [4, 2]), (5, [4, 2, 6])):
        selection = attention_weighted(key, hidden, a, keep=keep, prefix=2)
        assert selection.dropped.tolist() == [gone]


def test_aw4_sizes_sum_to_the_token_count() -> None:
    key, hidden, a = numbers(2, 2, 13, 4), numbers(2, 13, 6, seed=1), attention(2, 2, 13)
    selection = attention_weighted(key, hidden, a, keep=8, prefix=1)
    _, joint = merge_tokens(hidden, torch.ones(2, 13, dtype=torch.float64), selection)
    assert joint.sum(1).tolist() == [13.0, 13.0]


def test_aw5_no_merge_is_the_identity() -> None:
    key, hidden, a = numbers(2, 2, 13, 4), numbers(2, 13, 6, seed=1), attention(2, 2, 13)
    selection = attention_weighted(key, hidden, a, keep=13, prefix=1)
    assert selection.kept.tolist() == [list(range(13))] * 2
    assert selection.dropped.shape == (2, 0)


def test_aw6_identical_tokens_merge_first_and_exactly() -> None:
    x = numbers(2, 9, 6)
    x[:, 2], x[:, 6], x[:, 8] = x[:, 5], x[:, 5], x[:, 3]
    a = attention(2, 1, 9)
    selection = attention_weighted(x.unsqueeze(1), x, a, keep=6, prefix=1)
    assert selection.dropped.sort().values.tolist() == [[2, 6, 8]] * 2
    size = torch.ones(2, 9, dtype=torch.float64)
    merged, joint = merge_tokens(x, size, selection)
    before = gather_tokens(proportional_attention(x, size), selection.kept)
    torch.testing.assert_close(
        proportional_attention(merged, joint), before, rtol=1e-12, atol=1e-14
    )


def test_cost_by_loops() -> None:
    key, hidden, a = numbers(2, 2, 11, 4), numbers(2, 11, 6, seed=1), attention(2, 2, 11)
    for power in (0.0, 0.5, 1.0):
        selection = attention_weighted(key, hidden, a, keep=8, prefix=1, power=power, rounds=0)
        for image in range(2):
            received = a[image].mean((0, 1))
            weight = (received / received.mean()) ** power
            cost: dict[int, float] = {}
            for i in range(2, 11, 2):
                alike = []
                for j in range(1, 11, 2):
                    k_i, k_j = key[image, :, i].flatten(), key[image, :, j].flatten()
                    x_i, x_j = hidden[image, i], hidden[image, j]
                    by_key = k_i.dot(k_j) / (k_i.norm() * k_j.norm())
                    by_hidden = x_i.dot(x_j) / (x_i.norm() * x_j.norm())
                    alike.append(float((by_key + by_hidden) / 2))
                cost[i] = (1 - max(alike)) * float(weight[i])
            assert selection.dropped[image].tolist() == sorted(cost, key=lambda i: cost[i])[:3]
