"""Sharing a budget out among blocks by their scores: how much of itself each block keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prunepass.errors import PlanError


def allocate_by_score(
    scores: Sequence[float], sizes: Sequence[int], *, sparsity: float, most: float
) -> list[int]:
    """How many of its parts each block keeps; together exactly int((1 - sparsity) * all parts).

    Every block keeps a share 1 - most of itself. What is left over is shared out in proportion to
    the scores (not score times size); a block that is full gives its share to the others. Parts may
    be weights, tokens or channels. If no score is above 0, all keep the same share.

    Args:
        scores: One a block, finite, >= 0; higher keeps more.
        sizes: Parts of each block, >= 0.
        sparsity: Share of all parts that goes, in [0, 1].
        most: Largest share of a block that may go, in [sparsity, 1].

    Raises:
        PlanError: Something of this does not hold.

    Source: ECoFLaP (ICLR 2024, arXiv 2310.02998), from scores to sparsities. Shares are exact and
    rounded once, by largest remainder, where its code rounds up in a loop and then trims: the two
    differ by single parts, and here the sum is right.
    """
    _check(scores, sizes, sparsity, most)
    budget = int((1 - sparsity) * sum(sizes) + 1e-9)
    exact = [(1 - most) * size for size in sizes]
    left = budget - sum(exact)
    open_ = [i for i, size in enumerate(sizes) if size > exact[i]]
    weights = list(scores) if any(scores[i] > 0 for i in open_) else [float(n) for n in sizes]
    while left > 1e-9 and open_:
        whole = sum(weights[i] for i in open_)
        if whole <= 0:
            # Those that still have room score nothing: they fill up evenly.
            weights, whole = [float(n) for n in sizes], float(sum(sizes[i] for i in open_))
        share = {i: weights[i] / whole * left for i in open_}
        full = [i for i in open_ if exact[i] + share[i] >= sizes[i]]
        if not full:
            exact = [x + share.get(i, 0.0) for i, x in enumerate(exact)]
            break
        for i in full:
            left -= sizes[i] - exact[i]
            exact[i] = float(sizes[i])
        open_ = [i for i in open_ if i not in full]
    return _rounded(exact, sizes, budget)


def _rounded(exact: Sequence[float], sizes: Sequence[int], budget: int) -> list[int]:
    """Whole numbers of the sum asked: exact shares rounded, the largest remainders up."""
    kept = [min(size, math.floor(x + 1e-9)) for x, size in zip(exact, sizes, strict=True)]
    order = sorted(range(len(kept)), key=lambda i: (kept[i] - exact[i], i))
    missing = budget - sum(kept)
    while missing > 0:
        for i in order:
            if missing > 0 and kept[i] < sizes[i]:
                kept[i] += 1
                missing -= 1
    for i in reversed(order):
        if missing < 0 and kept[i] > 0:
            kept[i] -= 1
            missing += 1
    return kept


def _check(scores: Sequence[float], sizes: Sequence[int], sparsity: float, most: float) -> None:
    if len(scores) != len(sizes):
        raise PlanError(
            "each block has one score and one size",
            found=f"{len(scores)} and {len(sizes)}",
            fix="as many scores as sizes",
        )
    bad = [s for s in scores if not (math.isfinite(s) and s >= 0)]
    if bad:
        raise PlanError(
            "scores of an allocation are finite and not negative",
            found=str(bad[0]),
            fix="scores from 0 on",
        )
    if not 0 <= sparsity <= most <= 1:
        raise PlanError(
            "0 <= sparsity <= most <= 1 must hold",
            found=f"sparsity {sparsity}, most {most}",
            fix="most = sparsity + 0.1, as published",
        )
