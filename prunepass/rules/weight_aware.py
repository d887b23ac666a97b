"""Which inputs of a linear layer matter: WINA's weight-informed score, its gates, and their ties.

A layer y = W x with W [n_out, n_in] reads only some of its inputs x. What stays is told by a score
of each input, token by token; nothing is trained.

Source: WINA, arXiv 2505.19427, equation 4; TEAL, arXiv 2408.14690, is the same with norms of 1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def column_norm(weight: Tensor) -> Tensor:
    """c [n_in]: the 2-norm of each column of W [n_out, n_in], reckoned in float64."""
    return weight.double().norm(dim=0).to(weight.dtype)


def input_score(x: Tensor, norm: Tensor | None) -> Tensor:
    """|x| c [..., n_in], how much each input can change the result; |x| where `norm` is None.

    Args:
        x: [..., n_in].
        norm: [n_in], see `column_norm`, or None for the plain rule of TEAL.
    """
    size = x.abs()
    return size if norm is None else size * norm


def kept_inputs(inputs: int, keep: float) -> int:
    """K, how many of n inputs stay: keep * n rounded down, at least 1.

    Source: WINA, equation 4: K = int(n (1 - s)).
    """
    return max(1, int(inputs * keep + 1e-6))


def top_inputs(score: Tensor, count: int) -> Tensor:
    """Indices [..., K] int64 of the K inputs of the largest score; ties go to the lower index.

    Ascending, so that the same set always comes out the same way. This is the reference: fast
    kernels may break ties at the boundary differently, and say so.
    """
    order = score.sort(dim=-1, descending=True, stable=True).indices
    return order[..., :count].sort(dim=-1).values


def top_mask(score: Tensor, count: int) -> Tensor:
    """Mask [..., n_in] bool of exactly K inputs, those of `top_inputs`, without a whole sort."""
    least = score.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, level = score > least, score == least
    room = count - above.sum(-1, keepdim=True)
    return above | (level & (level.cumsum(-1) <= room))


def threshold_of(scores: Tensor, keep: float) -> float:
    """The threshold above which a share `keep` of calibration scores lies.

    Args:
        scores: Scores of any shape, of calibration tokens.
        keep: Share in (0, 1]; 1 gives a threshold below every score.
    """
    if keep >= 1.0:
        return -1.0
    flat = scores.reshape(-1)
    rank = max(1, min(flat.numel(), round((1.0 - keep) * flat.numel())))
    return float(flat.kthvalue(rank).values)


def threshold_mask(score: Tensor, threshold: float) -> Tensor:
    """Mask [..., n_in] bool of the inputs whose score lies above a threshold, or is no number."""
    return ~(score <= threshold)


def masked_linear(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor) -> Tensor:
    """W (mask x) + b, the reference that every kernel is held against.

    Args:
        x: [..., n_in].
        weight: [n_out, n_in].
        bias: [n_out] or None.
        mask: [..., n_in] bool.
    """
    return torch.nn.functional.linear(x * mask.to(x.dtype), weight, bias)
