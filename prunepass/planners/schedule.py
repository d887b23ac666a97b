"""Shapes of schedules: how many tokens are left at each of a row of sites, as formulas."""

from __future__ import annotations

import math
from collections.abc import Sequence

LEAST = 0.05
"""A step that would take a smaller share of the tokens is put off: scoring a whole layer for a
handful of tokens costs more time than these tokens do."""


def depth_counts(
    sites: int,
    tokens: int,
    prefix: int,
    *,
    strength: float,
    exponent: float,
    cap: float = 0.5,
    least: float = 0.0,
) -> list[int]:
    """Tokens left after each of `sites` reductions, ever larger shares going deeper.

    At site l a share strength * ((l + 0.5) / sites) ** exponent of the tokens still there goes, at
    most `cap` of them. With exponent 0 all shares are equal; the larger, the later tokens go.

    Args:
        sites: Number of sites.
        tokens: Tokens at the first, prefix tokens included.
        prefix: Prefix tokens, which stay.
        strength: >= 0.
        exponent: >= 0.
        cap: Largest share that one step can take; bipartite matching takes half at most.
        least: Smaller shares than this are saved up for the next site.
    """
    exact, left, counts = float(tokens - prefix), tokens - prefix, []
    saved = 0.0
    for site in range(sites):
        saved += ((site + 0.5) / sites) ** exponent
        if strength * saved < least:
            counts.append(prefix + left)
            continue
        exact -= min(cap, strength * saved) * exact
        saved = 0.0
        left = (
            max(left - left // 2, min(left, round(exact)), 1)
            if cap <= 0.5
            else max(1, round(exact))
        )
        counts.append(prefix + left)
    return counts


def default_exponent(ratio: float) -> float:
    """The exponent of `depth_counts` that suits a MAC ratio in (0, 1]: 4 * ratio - 1.25, >= 0.

    Found on ViT-Tiny: with much left, tokens should go late; with little left, evenly.
    """
    return max(0.0, 4.0 * ratio - 1.25)


def constant_counts(sites: int, tokens: int, prefix: int, *, removed: float) -> list[int]:
    """Tokens left after each of `sites` reductions of `removed` tokens each (ToMe's schedule).

    A fractional number is spread: the total after l sites is the rounded multiple. No step takes
    more than half of what is left, none the last token.
    """
    left, counts = tokens - prefix, []
    for site in range(1, sites + 1):
        wanted = round((tokens - prefix) - removed * site)
        left = max(1, left - left // 2, wanted)
        counts.append(prefix + left)
    return counts


def stage_counts(
    tokens: int, prefix: int, *, ratios: Sequence[float], similar: Sequence[int]
) -> list[int]:
    """Tokens left after each stage: `similar` of them go first, then a ratio of the rest stays.

    Counts are over all tokens, prefix included, and rounded up, as published for Zero-TPrune.
    """
    left, counts = tokens, []
    for ratio, gone in zip(ratios, similar, strict=True):
        left = max(prefix + 1, math.ceil((left - gone) * ratio - 1e-9))
        counts.append(left)
    return counts
