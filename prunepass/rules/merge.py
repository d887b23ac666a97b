"""Taking tokens out of a tensor: gathering the kept ones, merging the dropped ones into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunepass.rules.precision import like, widen

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
    """(x' [B, K, C], size' [B, K]): dropped tokens averaged into their targets, weighted by size.

    The mean is formed as target + sum of share * (dropped - target), share = size / joint size: a
    kept token that nothing joins comes out unchanged to the bit, and float16 does not overflow.
    Nothing dropped returns the inputs themselves.

    Args:
        x: [B, T, C].
        size: [B, T], > 0: how many original tokens each token stands for.
        selection: What is kept and dropped, and each dropped token's target.

    Source: ToMe (ICLR 2023, arXiv 2210.09461), merging with the tokens' sizes. The kept tokens keep
    their order here, where ToMe puts unmerged A before B.
    """
    kept, dropped, target = selection
    if dropped.shape[1] == 0:
        return x, size
    wide = widen(size)
    size_dropped = wide.gather(1, dropped)
    joint = wide.gather(1, kept).scatter_add(1, target, size_dropped)
    share = (size_dropped / joint.gather(1, target)).unsqueeze(-1)
    x_kept = gather_tokens(x, kept)
    at = rows(target, tokens=kept.shape[1])
    difference = gather_tokens(x, dropped) - take(x_kept, at)
    return add_rows(x_kept, at, difference * like(share, x)), like(joint, size)
