"""Instruction attention: properties TP7 and TP14, shared keys and padding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from prunepass.rules.instruction_attention import instruction_attention

BATCH, HEADS, TOKENS, WIDTH = 2, 6, 11, 4


def draw(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


QUERY = draw(BATCH, HEADS, TOKENS, WIDTH, seed=0)
CAUSAL = torch.full((TOKENS, TOKENS), float("-inf"), dtype=torch.float64).triu(1)


def full(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """The whole attention matrix [B, H, T, T]."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5 + mask).softmax(dim=-1)


@pytest.mark.parametrize("groups", [6, 3, 2, 1])
@pytest.mark.parametrize("start", [0, 7, 10])
def test_rows_alone_equal_the_slice_of_the_whole_matrix(groups: int, start: int) -> None:  # TP14
    key = draw(BATCH, groups, TOKENS, WIDTH, seed=1)
    found = instruction_attention(QUERY[:, :, start:], key, mask=CAUSAL[start:])
    expected = full(QUERY, key, CAUSAL)[:, :, start:].mean(dim=(1, 2))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_what_an_image_receives_is_at_most_one() -> None:  # TP7
    key = draw(BATCH, HEADS, TOKENS, WIDTH, seed=1)
    found = instruction_attention(QUERY[:, :, 8:], key, mask=CAUSAL[8:])
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(BATCH, dtype=torch.float64))
    assert (found >= 0).all()
    image = found[:, 2:8].sum(dim=-1)
    assert (image < 1).all()


def test_rows_of_padding_do_not_vote() -> None:
    key = draw(BATCH, HEADS, TOKENS, WIDTH, seed=1)
    rows = QUERY[:, :, 7:]
    asking = torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = instruction_attention(rows, key, mask=CAUSAL[7:], asking=asking)
    short = instruction_attention(rows[:1, :, :2], key[:1], mask=CAUSAL[7:9])
    torch.testing.assert_close(found[:1], short)
    whole = instruction_attention(rows[1:], key[1:], mask=CAUSAL[7:])
    torch.testing.assert_close(found[1:], whole)


def test_the_scale_is_a_factor_of_the_scores() -> None:
    key = draw(BATCH, HEADS, TOKENS, WIDTH, seed=1)
    torch.testing.assert_close(
        instruction_attention(QUERY, key, scale=0.1),
        instruction_attention(QUERY * 0.1 * WIDTH**0.5, key),
    )


def test_half_precision_is_summed_wide() -> None:
    key = draw(BATCH, HEADS, TOKENS, WIDTH, seed=1)
    found = instruction_attention(QUERY.half(), key.half(), mask=CAUSAL.half())
    assert found.dtype == torch.float32
    expected = instruction_attention(QUERY, key, mask=CAUSAL)
    torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=1e-4)
