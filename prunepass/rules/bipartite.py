"""One step of bipartite matching: every second token may join its most alike neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunepass.rules.precision import widen
from prunepass.rules.select import (
    check_keep,
    complement,
    keep_everything,
)
from prunepass.rules.selection import Selection
from prunepass.rules.similarity import unit


def most_merges(*, tokens: int, prefix: int) -> int:
    """How many of `tokens` tokens one step can merge away: the number of A, 0 if B is empty."""
    candidates = tokens - prefix
    return (tokens + 1) // 2 - (prefix + 1) // 2 if candidates > 1 else 0


def bipartite(
    features: Tensor | Sequence[Tensor],
    *,
    keep: int,
    prefix: int,
    weight: Tensor | None = None,
) -> Selection:
    """The selection that merges the T - keep cheapest pairs (a, b), a even and b odd.

    Each a takes its most alike b; several may take the same one. The cost of a pair is
    (1 - likeness of a and b) * weight of a.

    Args:
        features: [B, T, F]; likeness is the cosine of these rows. Of several such tensors, each
            with its own F, it is the mean of their cosines.
        keep: How many tokens stay, prefix tokens included.
        prefix: The first `prefix` tokens never merge and are no targets. Parity is that of the
            index in the whole sequence.
        weight: [B, T], >= 0: how dear it is to merge a token away; None is the same for all.

    Raises:
        ValueError: `keep` is out of range, or one step cannot merge that many.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), bipartite soft matching; the weight is ours. Kept
    tokens keep their order, and prefix tokens are in neither set (there: -inf in the scores).
    """
    several = (features,) if isinstance(features, Tensor) else tuple(features)
    tokens = several[0].shape[1]
    check_keep(tokens=tokens, keep=keep, prefix=prefix)
    merges, most = tokens - keep, most_merges(tokens=tokens, prefix=prefix)
    if merges == 0:
        return keep_everything(several[0])
    if merges > most:
        raise ValueError(
            f"cannot merge {merges} of {tokens} tokens in one step\n"
            f"  found: keep={keep}, prefix={prefix}, tokens={tokens}\n"
            f"  try:   keep={tokens - most} or more (at most {most} go in one step), or more steps"
        )
    even, odd = prefix + prefix % 2, prefix + 1 - prefix % 2
    alike: Tensor | None = None
    for rows in several:
        direction = unit(rows)
        ours, theirs = _every_second(direction, even), _every_second(direction, odd)
        cosine = torch.bmm(ours, theirs.transpose(1, 2))
        alike = cosine if alike is None else alike + cosine
    assert alike is not None
    best, partner = alike.max(dim=2)
    gain = widen(best) - len(several)
    if weight is not None:
        gain = gain * widen(_every_second(weight, even))
    cheapest = torch.topk(gain, merges, dim=1).indices
    dropped = even + 2 * cheapest
    target = odd + 2 * partner.gather(1, cheapest)
    return Selection(complement(dropped, tokens=tokens), dropped, target)


def _every_second(x: Tensor, start: int) -> Tensor:
    """`x[:, start::2]`, as one operation of the graph (indexing would slice the batch as well)."""
    sliced: Tensor = torch.ops.aten.slice.Tensor(x, 1, start, None, 2)
    return sliced
