"""Instruction-guided attention: what the text of a prompt looks at in its image."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunepass.rules.precision import widen


def instruction_attention(
    query: Tensor,
    key: Tensor,
    *,
    mask: Tensor | None = None,
    asking: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention that each key receives from the rows, mean over heads and rows: [B, T], sum 1.

    The softmax runs over all keys; the caller picks the image columns afterwards, whose sum is
    then at most 1. Only the given rows are computed: no attention matrix of the whole prompt, no
    values.

    Args:
        query: [B, H, R, D], the rows that ask (text behind the image), rotary positions applied.
        key: [B, G, T, D], all keys, rotary positions applied; H is a multiple of G.
        mask: Added to the scores, broadcastable to [B, H, R, T]; -inf hides. The causal mask of
            the rows belongs here. None hides nothing.
        asking: [B, R] bool, the rows that count (padding does not); at least one an example. None:
            all.
        scale: Factor of the scores, None for 1 / sqrt(D).

    Source: TransPrune (arXiv 2507.20630), equations 5 and 6.
    """
    batch, heads, rows, width = query.shape
    groups = key.shape[1]
    factor = 1.0 / math.sqrt(width) if scale is None else scale
    # Heads that share keys stand behind each other as rows: the keys are not repeated.
    packed = (query * factor).reshape(batch, groups, heads // groups * rows, width)
    scores = widen(torch.matmul(packed, key.transpose(-2, -1)))
    scores = scores.reshape(batch, heads, rows, key.shape[2])
    if mask is not None:
        scores = scores + mask
    paid = scores.softmax(dim=-1).mean(dim=1)
    if asking is None:
        return paid.mean(dim=1)
    votes = asking.to(paid.dtype)
    votes = votes / votes.sum(dim=1, keepdim=True)
    return torch.bmm(votes.unsqueeze(1), paid).squeeze(1)
