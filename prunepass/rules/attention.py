"""Attention written out, where a rule needs its probabilities."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_with_probabilities(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """The result of scaled dot product attention [B, H, Q, D] and its probabilities [B, H, Q, K].

    The arguments are those of `torch.nn.functional.scaled_dot_product_attention`; dropout is
    ignored. Computing both together costs no product twice.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(groups, dim=-3)
        value = value.repeat_interleave(groups, dim=-3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        causal = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
        scores = scores.masked_fill(~causal, float("-inf"))
    if attn_mask is not None:
        if attn_mask.dtype is torch.bool:
            scores = scores.masked_fill(~attn_mask, float("-inf"))
        else:
            scores = scores + attn_mask
    probabilities = scores.softmax(dim=-1)
    return probabilities @ value, probabilities
