"""Taking tokens out of a tensor: gathering the kept ones, merging the dropped ones into them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prunepass.rules.precision import widen

if TYPE_CHECKING:  # select.py builds on gather_tokens; the name is needed here for types only
    from prunepass.rules.select import Selection


def _image(index: Tensor) -> Tensor:
    """The batch number of each row of `index` [B, K]: [B, 1] int64."""
    return torch.arange(index.shape[0], device=index.device).unsqueeze(1)


# Indexing with (image, token) pairs becomes GatherND and ScatterND, which move whole rows. ONNX
# Runtime 2 threads, batch 8, 197 x 384, 16 dropped: gather 0.10 ms (index_select on flattened rows
# 0.16, torch.gather 0.63-1.0), whole merge 0.36-0.41 ms (index_add on flattened rows 0.39-0.51,
# scatter_add 0.66-0.86, one-hot matmul 1.05, with torch.gather as well 1.68).
def gather_tokens(x: Tensor, index: Tensor) -> Tensor:
    """The tokens of `x` [B, T, ...] at `index` [B, K] int64, 0..T-1: [B, K, ...]."""
    return x[_image(index), index]


def add_tokens(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
    """`x` [B, K, ...] with `rows` [B, R, ...] added at `index` [B, R]; equal indices add up.

    The only scatter of the rules that sums: a backend that lowers it otherwise changes this. Half
    precision is summed in float32, because many rows may meet and because ONNX Runtime's CPU kernel
    (ScatterND, reduction "add") has no float16.
    """
    total = widen(x).index_put((_image(index), index), widen(rows), accumulate=True)
    return total.to(x.dtype)


def merge_tokens(x: Tensor, size: Tensor, selection: Selection) -> tuple[Tensor, Tensor]:
    """(x' [B, K, C], size' [B, K]): dropped tokens averaged into their targets, weighted by size.

    A kept token that nothing joins comes out unchanged to the bit; nothing dropped returns the
    inputs themselves. The shares (size / joint size) are formed before they meet `x`, so that
    float16 does not overflow where x * size would.

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
    size_kept = gather_tokens(size, kept)
    size_dropped = gather_tokens(size, dropped)
    joint = add_tokens(size_kept, target, size_dropped)
    share_kept = (size_kept / joint).to(x.dtype).unsqueeze(-1)
    share_dropped = (size_dropped / gather_tokens(joint, target)).to(x.dtype).unsqueeze(-1)
    merged = add_tokens(
        gather_tokens(x, kept) * share_kept,
        target,
        gather_tokens(x, dropped) * share_dropped,
    )
    return merged, joint
