"""Diverse tokens: those that are far from each other."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.precision import norm, widen
from prunepass.rules.select import sort_ascending


def diverse_tokens(features: Tensor, *, keep: int) -> Tensor:
    """`keep` tokens picked greedily, each the farthest from all picked before: [B, K], ascending.

    The first is the token with the largest distance to its nearest neighbour; distance is
    1 - cosine. The loop is unrolled: `keep` steps of O(N) behind one product of N x N.

    Args:
        features: [B, N, C].
        keep: 1..N.

    Source: DivPrune (CVPR 2025), max-min diversity, greedy.
    """
    rows = widen(features)
    rows = rows / norm(rows)
    distance = 1.0 - torch.bmm(rows, rows.transpose(1, 2))
    count = distance.shape[1]
    place = torch.arange(count, device=features.device)
    nearest = distance.masked_fill(place[:, None] == place, 4.0).amin(dim=2)
    picked = [nearest.argmax(dim=1, keepdim=True)]
    left = _row(distance, picked[0])
    for _ in range(keep - 1):
        # What is picked never is again, not even where all others are its duplicates.
        left = left.scatter(1, picked[-1], -1.0)
        picked.append(left.argmax(dim=1, keepdim=True))
        left = torch.minimum(left, _row(distance, picked[-1]))
    return sort_ascending(torch.cat(picked, dim=1))


def _row(distance: Tensor, index: Tensor) -> Tensor:
    """[B, N]: row `index` [B, 1] of `distance` [B, N, N]."""
    return distance.gather(1, index.unsqueeze(2).expand(-1, -1, distance.shape[2])).squeeze(1)
