"""One step of bipartite matching: every second token may join its most alike neighbour."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.precision import widen
from prunepass.rules.select import (
    Selection,
    check_keep,
    complement,
    keep_everything,
    positions,
)
from prunepass.rules.similarity import cosine


def most_merges(*, tokens: int, prefix: int) -> int:
    """How many of `tokens` tokens one step can merge away: the number of A, 0 if B is empty."""
    candidates = tokens - prefix
    return (tokens + 1) // 2 - (prefix + 1) // 2 if candidates > 1 else 0


def bipartite(
    features: Tensor, *, keep: int, prefix: int, weight: Tensor | None = None
) -> Selection:
    """The selection that merges the T - keep cheapest pairs (a, b), a even and b odd.

    Each a takes its most alike b; several may take the same. cost = (1 - cosine(a, b)) * weight[a].

    Args:
        features: [B, T, F]; likeness is the cosine of these rows.
        keep: How many tokens stay, prefix tokens included.
        prefix: The first `prefix` tokens never merge and are no targets. Parity is that of the
            index in the whole sequence.
        weight: [B, T], >= 0: how dear it is to merge a token away; None is the same for all.

    Raises:
        ValueError: `keep` is out of range, or one step cannot merge that many.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), bipartite soft matching; the weight is ours. Kept
    tokens keep their order, and prefix tokens are in neither set (there: -inf in the scores).
    """
    tokens = features.shape[1]
    check_keep(tokens=tokens, keep=keep, prefix=prefix)
    merges, most = tokens - keep, most_merges(tokens=tokens, prefix=prefix)
    if merges == 0:
        return keep_everything(features)
    if merges > most:
        raise ValueError(
            f"cannot merge {merges} of {tokens} tokens in one step\n"
            f"  found: keep={keep}, prefix={prefix}, tokens={tokens}\n"
            f"  try:   keep={tokens - most} or more (at most {most} go in one step), or more steps"
        )
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    alike, partner = cosine(features[:, even::2], features[:, odd::2]).max(dim=2)
    cost = 1 - widen(alike)
    if weight is not None:
        cost = cost * widen(weight[:, even::2])
    cheapest = torch.topk(cost, merges, dim=1, largest=False).indices
    dropped = even + 2 * cheapest
    into = odd + 2 * partner.gather(1, cheapest)
    return Selection(complement(dropped, tokens=tokens), dropped, positions(into, dropped=dropped))
