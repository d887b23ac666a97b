"""Token merging by likeness of keys."""

from __future__ import annotations

from torch import Tensor

from prunepass.rules.bipartite import bipartite
from prunepass.rules.selection import Selection
from prunepass.rules.similarity import head_rows


def tome(key: Tensor, *, keep: int, prefix: int, heads: str = "mean") -> Selection:
    """The selection that merges the T - keep pairs with the most alike keys.

    Args:
        key: [B, H, T, D].
        keep: How many tokens stay, prefix tokens included.
        prefix: The first `prefix` tokens never merge and are no targets.
        heads: "mean" compares keys averaged over the heads, "concat" all heads side by side.

    Raises:
        ValueError: `keep` is out of range, one step cannot merge that many, or `heads` is unknown.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), section 3; heads="concat" is ours, and a little
    better on small ViTs.
    """
    return bipartite(head_rows(key, heads=heads), keep=keep, prefix=prefix)
