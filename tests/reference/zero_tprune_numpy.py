"""Zero-TPrune in plain loops, one image at a time, written from the pseudo-code (no torch)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def vote(attention: Array, *, iterations: int, boost: bool) -> Array:
    """Scores [n] of one head: s[i] = sum_j A[j, i] s[j], repeated."""
    n = attention.shape[0]
    score = [math.sqrt(n) if boost and i == 0 else 1.0 for i in range(n)]
    total = sum(score)
    score = [s / total for s in score]
    for _ in range(iterations):
        score = [sum(attention[j, i] * score[j] for j in range(n)) for i in range(n)]
    return np.array(score)


def join_heads(score: Array, *, variance_range: tuple[float, float] | None) -> Array:
    """Scores [n] from [H, n]: root mean square over heads whose n * score varies as allowed."""
    heads, n = score.shape
    good = list(range(heads))
    if variance_range is not None:
        spread = [sum((n * s - 1.0) ** 2 for s in score[h]) / n for h in range(heads)]
        good = [h for h in range(heads) if variance_range[0] <= spread[h] <= variance_range[1]]
        good = good or list(range(heads))
    return np.array([math.sqrt(sum(score[h, i] ** 2 for h in good) / len(good)) for i in range(n)])


def importance(
    attention: Array, *, iterations: int, boost: bool, variance_range: tuple[float, float] | None
) -> Array:
    """Scores [n] from attention [H, n, n]."""
    heads = [vote(head, iterations=iterations, boost=boost) for head in attention]
    return join_heads(np.stack(heads), variance_range=variance_range)


def cosine(a: Array, b: Array) -> float:
    """Cosine of two vectors."""
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def remaining_attention(attention: Array, alive: list[int], *, renormalise: bool) -> Array:
    """The attention [H, k, k] among the tokens that are alive."""
    part = attention[:, alive][:, :, alive]
    return part / part.sum(-1, keepdims=True) if renormalise else part


def zero_tprune(
    attention: Array,
    key: Array,
    *,
    keep: int,
    similar: int,
    iterations: int,
    prefix: int,
    variance_range: tuple[float, float] | None = (0.01, 0.7),
) -> tuple[list[int], dict[int, int]]:
    """(kept tokens, dropped token -> token it joins) for attention [H, n, n] and key [H, n, D]."""
    n = attention.shape[-1]
    row = [np.concatenate([key[h, i] for h in range(key.shape[0])]) for i in range(n)]
    boost = prefix > 0
    partner: dict[int, int] = {}
    if similar:
        first = importance(attention, iterations=1, boost=boost, variance_range=variance_range)
        order = sorted(range(prefix, n), key=lambda i: -first[i])
        half = len(order) // 2
        upper, lower = order[: len(order) - half], order[len(order) - half :]
        best: dict[int, tuple[float, int]] = {}
        for a in lower:
            best[a] = max((cosine(row[a], row[b]), b) for b in upper)
        for a in sorted(lower, key=lambda a: -best[a][0])[:similar]:
            partner[a] = best[a][1]
    alive = [i for i in range(n) if i not in partner]
    if keep < len(alive):
        second = importance(
            remaining_attention(attention, alive, renormalise=True),
            iterations=iterations,
            boost=boost,
            variance_range=variance_range,
        )
        ranked = sorted(range(prefix, len(alive)), key=lambda j: -second[j])
        alive = sorted(alive[:prefix] + [alive[j] for j in ranked[: keep - prefix]])
    joins: dict[int, int] = {}
    for gone in (i for i in range(n) if i not in alive):
        start = partner.get(gone, gone)
        if start not in alive:
            start = max((cosine(row[start], row[b]), b) for b in alive[prefix:])[1]
        joins[gone] = start
    return alive, joins
