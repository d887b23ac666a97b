"""Keeping the prefix tokens only: slices, no scores."""

from __future__ import annotations

import torch
from torch import Tensor


def first_tokens(x: Tensor, count: int) -> Tensor:
    """The first tokens of `x`: [B, T, ...] -> [B, count, ...]."""
    return x[:, :count]


def first_queries(x: Tensor, count: int) -> Tensor:
    """The first rows of queries or a mask: [B, H, Q, D] -> [B, H, count, D]; one row stays one."""
    return x if x.shape[-2] == 1 else x[..., :count, :]


def first_positions(x: Tensor, count: int) -> Tensor:
    """[B, count] int64: 0, 1, ..., count - 1 for each item of `x` [B, T, C]."""
    return torch.arange(count, device=x.device).expand(x.shape[0], count)
