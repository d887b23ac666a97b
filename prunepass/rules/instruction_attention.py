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


def mask_rows(mask: Tensor, asking: Tensor) -> Tensor:
    """Rows [B, 1, R, T] of an attention mask [B, 1, T, T] or [B, H, T, T]."""
    index = asking[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
    return mask.expand(asking.shape[0], -1, -1, -1).gather(2, index)


def paid_to_image(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    asking: Tensor,
    votes: Tensor,
    image: Tensor,
    *,
    scale: float | None = None,
) -> Tensor:
    """[B, I N]: see `instruction_attention`; without a mask each row sees what stands before it."""
    if mask is None:
        number = torch.ones_like(key[:, 0, :, 0], dtype=torch.int64).cumsum(1) - 1
        mask = number[:, None, None, :] <= asking[:, None, :, None]
    if mask.dtype is torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill(~mask, -1e30)
    paid = instruction_attention(query, key, mask=mask, asking=votes, scale=scale)
    return paid.gather(1, image.reshape(image.shape[0], -1))
