"""Attention to a cache equals attention to everything at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunepass.rules.cached_attention import cached_attention


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize(("past", "new"), [(6, 1), (6, 3), (1, 1), (0, 4)])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_equals_fused_attention(groups: int, past: int, new: int, scale: float | None) -> None:
    length = past + new
    query, key, value = (
        draw(2, 4, new, 8, seed=0),
        *(draw(2, groups, length, 8, seed=s) for s in (1, 2)),
    )
    found = cached_attention(
        query, key[:, :, :past], key[:, :, past:], value[:, :, :past], value[:, :, past:],
        torch.ones(2, past, dtype=torch.int64), torch.ones(2, new, dtype=torch.int64), scale=scale,
    )  # fmt: skip
    mask = torch.ones(length, length, dtype=torch.bool).tril()[past:]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_entries_that_hold_nothing_are_not_seen() -> None:
    query, key, value = (draw(1, 2, 2, 4, seed=s) for s in range(3))
    past_key, past_value = draw(1, 2, 5, 4, seed=3), draw(1, 2, 5, 4, seed=4)
    valid, ones = torch.tensor([[0, 1, 1, 0, 0]]), torch.ones(1, 2, dtype=torch.int64)
    found = cached_attention(query, past_key, key, past_value, value, valid, ones)
    expected = cached_attention(
        query, past_key[:, :, 1:3], key, past_value[:, :, 1:3], value, valid[:, 1:3], ones
    )
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_padding_sees_itself_and_stays_finite() -> None:
    query, key, value = (draw(1, 2, 3, 4, seed=s) for s in range(3))
    empty = torch.zeros(1, 2, 0, 4, dtype=torch.float64)
    found = cached_attention(
        query, empty, key, empty, value, torch.zeros(1, 0, dtype=torch.int64),
        torch.tensor([[0, 1, 1]]),
    )  # fmt: skip
    assert bool(found.isfinite().all())
    alone = cached_attention(
        query[:, :, 1:], empty, key[:, :, 1:], empty, value[:, :, 1:],
        torch.zeros(1, 0, dtype=torch.int64), torch.tensor([[1, 1]]),
    )  # fmt: skip
    torch.testing.assert_close(found[:, :, 1:], alone, rtol=1e-12, atol=1e-12)
