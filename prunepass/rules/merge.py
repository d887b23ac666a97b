"""Taking tokens out of a tensor: gathering the kept ones, merging the dropped ones into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunepass.rules.precision import SMALLEST_SQUARE, like, square_sum, widen

if TYPE_CHECKING:  # select.py builds on gather_tokens; the name is needed here for types only
    from prunepass.rules.select import Selection


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


def add_rows(x: Tensor, row: Tensor, addition: Tensor) -> Tensor:
    """`x` [B, K, C] with `addition` [B, R, C] added at rows `row` [B, R]; equal rows add up.

    The only scatter of token rows: a backend that lowers it otherwise changes this. Half precision
    is summed in float32, since ONNX Runtime's CPU kernel has no other.
    """
    summed = widen(x).flatten(0, 1).index_put((row,), widen(addition), accumulate=True)
    return like(summed, x).unflatten(0, (x.shape[0], x.shape[1]))


def merge_tokens(x: Tensor, size: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """(x' [B, K, C], size' [B, K]): dropped tokens averaged into their targets.

    The mean is formed as target + sum of share * (dropped - target), share = weight / joint weight:
    a kept token that nothing joins comes out unchanged to the bit, and float16 does not overflow.
    Nothing dropped returns the inputs themselves.

    Where the selection brings weights, tokens count by these and not by size, and a merged token
    gets the mean norm of its parts back: averaging alone makes it shorter the less they agree.

    Args:
        x: [B, T, C].
        size: [B, T], > 0: how many original tokens each token stands for; sizes always add up.
        selection: What is kept and dropped, and each dropped token's target.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), merging with the tokens' sizes; weights and norm are
    ours. The kept tokens keep their order here, where ToMe puts unmerged A before B.
    """
    kept, dropped, target, weight = selection
    if dropped.shape[1] == 0:
        return x, size
    wide = widen(size)
    joint = wide.gather(1, kept).scatter_add(1, target, wide.gather(1, dropped))
    if weight is None:
        share = wide.gather(1, dropped) / joint.gather(1, target)
    else:
        heavy = weight.gather(1, kept).scatter_add(1, target, weight.gather(1, dropped))
        share = weight.gather(1, dropped) / heavy.gather(1, target)
    x_kept = gather_tokens(x, kept)
    at = rows(target, tokens=kept.shape[1])
    difference = gather_tokens(x, dropped) - take(x_kept, at)
    merged = add_rows(x_kept, at, difference * like(share.unsqueeze(-1), x))
    if weight is not None:
        merged = _with_mean_norm(merged, norm(x), share, selection)
    return merged, like(joint, size)


def _with_mean_norm(merged: Tensor, norms: Tensor, share: Tensor, selection: Selection) -> Tensor:
    """`merged` [B, K, C] with rows as long as their parts were on average.

    Args:
        merged: The means.
        norms: [B, T], the norms before.
        share: [B, R], what each dropped token contributed.
        selection: What went where.
    """
    kept, dropped, target, _ = selection
    of_kept = norms.gather(1, kept)
    change = share * (norms.gather(1, dropped) - of_kept.gather(1, target))
    wanted = of_kept.scatter_add(1, target, change)
    factor = wanted / norm(merged)
    return merged * like(factor.unsqueeze(-1), merged)


def norm(x: Tensor) -> Tensor:
    """Euclidean norm of each row of `x` [B, T, C], in float32 or wider: [B, T], > 0."""
    return (square_sum(widen(x)) + SMALLEST_SQUARE).sqrt().squeeze(-1)
