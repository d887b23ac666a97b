"""Taking tokens out of a tensor: gathering the kept ones, merging the dropped ones into them."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.precision import like, norm, widen
from prunepass.rules.selection import Selection


# Rows of all images lie in one table [B * T, C], and row numbers pick from it: one ONNX Gather that
# moves whole rows (torch.gather moves single numbers and takes six times as long), with no index
# pairs to build as x[image, token] needs. Row b * T + t belongs to image b: items never mix.
def rows(index: Tensor, *, tokens: int) -> Tensor:
    """Row numbers of tokens `index` [B, K] in a table of B * tokens rows: [B, K] int64."""
    images = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
    return index + images * tokens


def take(x: Tensor, row: Tensor) -> Tensor:
    """The rows `row` [B, K] of `x` [B, T, C], numbered through the batch: [B, K, C]."""
    return torch.nn.functional.embedding(row, x.flatten(0, 1))


def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of `x` [B, T, ...] at `index` [B, K] int64, 0..T-1: [B, K, ...]."""
    if x.dim() == 2:
        return x.gather(1, index)
    taken = take(x.flatten(2) if x.dim() > 3 else x, rows(index, tokens=x.shape[1]))
    return taken.unflatten(2, x.shape[2:]) if x.dim() > 3 else taken


def joining(kept: Tensor, target: Tensor, *, dtype: torch.dtype) -> Tensor:
    """Who joins whom: [B, K, R], 1 where the dropped token r joins the kept token k, else 0.

    Args:
        kept: [B, K] int64, token indices.
        target: [B, R] int64, token indices out of `kept`.
        dtype: Of the result.
    """
    return (kept.unsqueeze(2) == target.unsqueeze(1)).to(dtype)


def merge_tokens(x: Tensor, size: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """(x' [B, K, C], size' [B, K]): dropped tokens averaged into their targets.

    Tokens count by size, or by the weights that the selection brings; with weights a merged token
    also gets the mean norm of its parts back, since averaging alone makes it the shorter the less
    they agree. Sizes always add up. Nothing dropped returns the inputs themselves.

    The sums are one product with the small matrix of `joining`, K * R * C multiply-accumulates: no
    scatter, which backends lower badly or wrongly. They are formed in float32 or wider.

    Args:
        x: [B, T, C].
        size: [B, T], > 0: how many original tokens each token stands for.
        selection: What is kept and dropped, and each dropped token's target.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), merging with the tokens' sizes; weights and norm are
    ours. The kept tokens keep their order here, where ToMe puts unmerged A before B.
    """
    kept, dropped, target, weight = selection
    if dropped.shape[1] == 0:
        return x, size
    wide, channels = widen(x), x.shape[2]
    counted = like(size, wide).unsqueeze(2)
    if weight is None:
        payload = torch.cat([wide * counted, counted], dim=2)
    else:
        share = like(weight, wide).unsqueeze(2)
        payload = torch.cat([wide * share, share, share * norm(wide), counted], dim=2)
    who = joining(kept, target, dtype=payload.dtype)
    joined = torch.bmm(who, gather_tokens(payload, dropped))
    summed = gather_tokens(payload, kept) + joined
    if weight is None:
        direction, size_sum = summed.split([channels, 1], dim=2)
        merged = direction / size_sum
    else:
        direction, share_sum, norm_sum, size_sum = summed.split([channels, 1, 1, 1], dim=2)
        merged = direction * (norm_sum / (share_sum * norm(direction)))
    return like(merged, x), like(size_sum.squeeze(2), size)
