"""Attention-weighted merging: alike tokens join, those that nobody looks at first."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.bipartite import bipartite
from prunepass.rules.precision import widen
from prunepass.rules.selection import Selection
from prunepass.rules.similarity import head_rows


def attention_weighted(
    key: Tensor,
    hidden: Tensor,
    attention: Tensor,
    *,
    keep: int,
    prefix: int,
    power: float = 0.5,
    rounds: int = 1,
    weigh: bool = True,
) -> Selection:
    """The selection that merges the T - keep pairs of least (1 - likeness) * attention^power.

    Likeness is the mean of two cosines: of the keys, all heads side by side (what attention
    compares), and of the hidden state (what the MLP reads). The attention is what the token that
    goes receives, relative to the mean over all tokens.

    Args:
        key: [B, H, T, D].
        hidden: [B, T, C], the residual stream after the attention is added.
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1.
        keep: How many tokens stay, prefix tokens included.
        prefix: The first `prefix` tokens never merge and are no targets.
        power: >= 0; 0 ignores the attention in the choice of pairs.
        rounds: >= 0, rounds of weighted PageRank on the mean of the heads that refine the received
            attention: what attended tokens look at counts more.
        weigh: Whether merged tokens are averaged by attention, not by size, and keep their norm.

    Raises:
        ValueError: `keep` is out of range, or one step cannot merge that many.

    Source: this project (the default method, weighted-merge); matching as in ToMe, weighted
    PageRank as in Zero-TPrune.
    """
    # The cosine of concat(k / |k|, x / |x|) is the mean of the two cosines, and two products are
    # cheaper than joining the rows first (2.8 against 3.2-8 ms, ONNX Runtime, 8 x 197 x 384).
    features = (head_rows(key, heads="concat"), hidden)
    graph = widen(attention.mean(dim=1))
    received = graph.mean(dim=1, keepdim=True)
    for _ in range(rounds):
        received = torch.bmm(received, graph)
    mass = received.squeeze(1)
    # torch writes x ** 0.5 as pow; sqrt is one cheap op in every backend.
    dear = mass.sqrt() if power == 0.5 else mass.pow(power)
    selection = bipartite(features, keep=keep, prefix=prefix, weight=dear)
    return selection._replace(weight=mass) if weigh else selection
