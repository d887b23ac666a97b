from __future__ import annotations

import torch

from prunepass.rules.merge import gather_tokens, merge_tokens
from prunepass.rules.tome import tome
from tests.rules.example import numbers, proportional_attention


def test_sizes_sum_to_the_token_count_over_several_steps() -> None:
    x, size = numbers(2, 17, 6), torch.ones(2, 17, dtype=torch.float64)
    for keep in (12, 9, 7):
        key = x.reshape(2, -1, 2, 3).transpose(1, 2)
        x, size = merge_tokens(x, size, tome(key, keep=keep, prefix=1))
        assert x.shape == (2, keep, 6)
        assert size.sum(1).tolist() == [17.0, 17.0]
        assert size[:, 0].tolist() == [1.0, 1.0]


def test_no_merge_is_the_identity() -> None:
    x, size = numbers(2, 8, 6), torch.ones(2, 8, dtype=torch.float64)
    merged, joint = merge_tokens(x, size, tome(numbers(2, 2, 8, 3), keep=8, prefix=1))
    assert torch.equal(merged, x)
    assert torch.equal(joint, size)


def test_merging_identical_tokens_is_exact_under_proportional_attention() -> None:
    x = numbers(2, 9, 6)
    x[:, 2], x[:, 6], x[:, 8] = x[:, 5], x[:, 5], x[:, 3]  # three of one, two of another
    size = torch.ones(2, 9, dtype=torch.float64)
    selection = tome(x.unsqueeze(1), keep=6, prefix=1)
    assert selection.dropped.sort().values.tolist() == [[2, 6, 8]] * 2
    merged, joint = merge_tokens(x, size, selection)
    before = gather_tokens(proportional_attention(x, size), selection.kept)
    torch.testing.assert_close(
        proportional_attention(merged, joint), before, rtol=1e-12, atol=1e-14
    )
    unweighted = proportional_attention(merged, torch.ones_like(joint))
    assert (unweighted - before).abs().max() > 1e-3  # the sizes are what makes it exact


def test_heads_are_averaged_or_joined() -> None:
    key = numbers(1, 2, 9, 4)
    key[:, 1] = -key[:, 0] + 0.01 * numbers(1, 9, 4, seed=5)  # the mean over heads is noise
    joined = tome(key, keep=6, prefix=1, heads="concat")
    one_head = tome(key[:, :1], keep=6, prefix=1)
    assert torch.equal(joined.kept, one_head.kept)
    assert not torch.equal(tome(key, keep=6, prefix=1).kept, joined.kept)
