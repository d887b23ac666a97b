"""Importance of a layer by how much it turns the stream that runs through it: LIM and BI."""

from __future__ import annotations

import torch
from torch import Tensor


def cosines(before: Tensor, after: Tensor) -> Tensor:
    """Cosine of each token before and behind a layer: [B, T] float64, -1..1.

    A token that is all zeros, before or behind, has the cosine 0.

    Args:
        before: [B, T, C], what enters.
        after: [B, T, C], what comes out.
    """
    a, b = before.double(), after.double()
    lengths = a.norm(dim=-1) * b.norm(dim=-1)
    products = (a * b).sum(dim=-1)
    return torch.where(lengths > 0, products / lengths.clamp_min(1e-300), 0.0).clamp(-1.0, 1.0)


def summed_cosines(
    before: Tensor, after: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum of the cosines and number of the tokens it is over, both float64: they add over batches.

    Args:
        before: [B, T, C], what enters.
        after: [B, T, C], what comes out.
        valid: [B, T], nonzero for tokens that count, None for all; padding does not.
    """
    found = cosines(before, after)
    weight = torch.ones_like(found) if valid is None else (valid != 0).to(found.dtype)
    return (found * weight).sum(), weight.sum()


def input_modification(total: Tensor, count: Tensor) -> Tensor:
    """LIM: minus the mean cosine, -1 (the layer changes nothing) to 1. Higher is more important.

    Args:
        total: Sum of cosines.
        count: Number of tokens; where it is 0 the result is 0.

    Source: Layer-Wise Quantization (arXiv 2406.17415), the layer input modification score; the mean
    of the cosines of tokens, over the boundary of a layer, residual included.
    """
    return -total / count.clamp_min(1.0)


def block_influence(total: Tensor, count: Tensor) -> Tensor:
    """BI: one minus the mean cosine, 0 (the layer changes nothing) to 2. It is 1 + LIM.

    Args:
        total: Sum of cosines.
        count: Number of tokens.

    Source: ShortGPT (arXiv 2403.03853), block influence.
    """
    return 1.0 + input_modification(total, count)
