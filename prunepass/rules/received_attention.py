"""Importance of tokens by how much attention they get."""

from __future__ import annotations

from torch import Tensor


def received_attention(attention: Tensor) -> Tensor:
    """Attention each token receives, averaged over heads and queries: [B, T], 0..1, sums to 1.

    The same as one round of weighted PageRank from a uniform start with heads averaged.

    Args:
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1.

    Source: a common baseline; the column mean of the attention, prefix tokens' rows included.
    """
    return attention.mean(dim=(1, 2))
