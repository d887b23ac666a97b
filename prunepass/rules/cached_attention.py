"""Attention of a few new tokens to a cache that stays where it is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunepass.rules.precision import like, widen

_HIDDEN = -1e4
"""Score of a key that is not seen: far below any other, and finite in float16, too."""


def cached_attention(
    query: Tensor,
    past_key: Tensor,
    key: Tensor,
    past_value: Tensor,
    value: Tensor,
    past_valid: Tensor,
    valid: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """Attention of new tokens to cached ones and, causally, to each other: [B, H, S, D].

    Keys and values of the past are read where they lie: the products with past and new ones are
    taken apart and only scores are put together, so no cache is copied.

    Args:
        query: [B, H, S, D], rotary positions applied.
        past_key, past_value: [B, G, P, D]; H is a multiple of G.
        key, value: [B, G, S, D].
        past_valid: [B, P], nonzero for entries of the cache that hold a token.
        valid: [B, S], nonzero for new tokens that are no padding.
        scale: Factor of the scores, None for 1 / sqrt(D).
    """
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    # Heads that share keys stand behind each other as rows: no key is repeated.
    packed = (query * factor).reshape(batch, groups, -1, width)
    old = packed @ past_key.transpose(-2, -1)
    new = packed @ key.transpose(-2, -1)
    number = torch.ones_like(valid, dtype=torch.int64).cumsum(1)
    seen = (number[:, :, None] >= number[:, None, :]) & (valid > 0)[:, None, :]
    seen = seen | (number[:, :, None] == number[:, None, :])
    new = new.reshape(batch, heads, rows, rows).masked_fill(~seen[:, None], _HIDDEN)
    old = old.masked_fill((past_valid <= 0)[:, None, None], _HIDDEN)
    scores = torch.cat([old, new.reshape(batch, groups, -1, rows)], dim=3)
    shares = like(widen(scores).softmax(dim=3), query)
    past = past_key.shape[2]
    output = shares[..., :past] @ past_value + shares[..., past:] @ value
    return output.reshape(batch, heads, rows, -1)
