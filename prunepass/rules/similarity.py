"""How alike two sets of token vectors are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from prunepass.rules.precision import like, norm, widen

_MINKOWSKI_ORDER = {
    "l1": 1.0,
    "l2": 2.0,
    "minkowski-3": 3.0,
    "minkowski-4": 4.0,
    "minkowski-5": 5.0,
    "minkowski-inf": math.inf,
}
METRICS = ("cosine", "dot", *_MINKOWSKI_ORDER)


def unit(x: Tensor) -> Tensor:
    """`x` [..., F] with every row divided by its Euclidean norm; a zero row stays zero.

    The norm is taken in float32 for half-precision input, so that large rows stay finite.
    """
    wide = widen(x)
    return like(wide / norm(wide), x)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of every row of `a` [B, N, F] with every row of `b` [B, M, F]: [B, N, M], -1..1."""
    return torch.bmm(unit(a), unit(b).transpose(1, 2))


def minkowski(a: Tensor, b: Tensor, *, order: float) -> Tensor:
    """Minkowski distance of every row of `a` [B, N, F] to every row of `b` [B, M, F]: [B, N, M].

    Distances are >= 0 and in float32 for half-precision input. All B*N*M*F differences are written
    out (meant for ablations): the cheaper |a|^2 + |b|^2 - 2ab cancels just where rows are alike.

    Args:
        order: 1..inf; 1 is the city-block, 2 the Euclidean, inf the largest difference.
    """
    difference = (widen(a).unsqueeze(-2) - widen(b).unsqueeze(-3)).abs()
    if order == math.inf:
        return difference.amax(dim=-1)
    if order == 1.0:
        return difference.sum(dim=-1)
    return difference.pow(order).sum(dim=-1).pow(1.0 / order)


def similarity(a: Tensor, b: Tensor, *, metric: str) -> Tensor:
    """Likeness of every row of `a` [B, N, F] to every row of `b` [B, M, F]: [B, N, M].

    Larger is more alike: the cosine, the dot product, or the negative distance.

    Args:
        metric: One of `METRICS`.

    Raises:
        ValueError: The metric is unknown.

    Source: the metrics whose names stand in Zero-TPrune's ablation (CVPR 2024, arXiv 2305.17328).
    """
    if metric == "cosine":
        return cosine(a, b)
    if metric == "dot":
        return torch.bmm(a, b.transpose(1, 2))
    if metric in _MINKOWSKI_ORDER:
        return -minkowski(a, b, order=_MINKOWSKI_ORDER[metric])
    raise ValueError(
        f"cannot compare tokens by metric {metric!r}\n"
        f"  found: metric={metric!r}\n"
        f"  try:   one of {', '.join(METRICS)}"
    )


def head_rows(key: Tensor, *, heads: str) -> Tensor:
    """One row a token out of per-head vectors `key` [B, H, T, D]: [B, T, H*D] or [B, T, D].

    Args:
        heads: "concat" lays the heads side by side, "mean" averages them.

    Raises:
        ValueError: `heads` is neither.
    """
    if heads == "concat":
        return key.transpose(1, 2).flatten(2)
    if heads == "mean":
        return key.mean(dim=1)
    raise ValueError(
        f"cannot join the heads of the keys\n"
        f"  found: heads={heads!r}\n"
        f"  try:   heads='concat' or heads='mean'"
    )
