"""What keeps a program exact when tokens stand for several: attention and means by token size.

Source: Bolya et al., Token Merging (ICLR 2023), section 3, "proportional attention".
"""

from __future__ import annotations

import torch
from torch import Tensor


def size_bias(size: Tensor, *, offset: int, rank: int) -> Tensor:
    """log(size), to be added to attention scores: [B, 1, ..., T + offset] with `rank` axes.

    Args:
        size: [B, T], how many original tokens each token stands for.
        offset: Keys minus tokens. With more keys than tokens the extra ones come first and count
            one each; with fewer, the first tokens are not among the keys.
        rank: Number of axes of the scores.
    """
    if offset < 0:
        size = size[:, -offset:]
    bias = size.log()
    if offset > 0:
        bias = torch.nn.functional.pad(bias, (offset, 0))
    for _ in range(rank - 2):
        bias = bias.unsqueeze(1)
    return bias


def biased_mask(mask: Tensor | None, size: Tensor, *, offset: int, rank: int) -> Tensor:
    """An attention mask with the size bias in it, broadcastable to [B, H, Q, K].

    Args:
        mask: None, an additive mask, or a boolean one (True attends).
        size: [B, T].
        offset: Keys minus tokens, see `size_bias`.
        rank: Number of axes of the scores.
    """
    bias = size_bias(size, offset=offset, rank=rank)
    if mask is None:
        return bias
    if mask.dtype is torch.bool:
        return torch.where(mask, bias, float("-inf"))
    return mask + bias


def biased_scores(scores: Tensor, size: Tensor, *, offset: int, heads: int = 1) -> Tensor:
    """Attention scores with the size bias added.

    Args:
        scores: [B * heads, ..., K], the heads of each image together.
        size: [B, T].
        offset: Keys minus tokens, see `size_bias`.
        heads: Heads that share axis 0 with the batch.
    """
    bias = size_bias(size, offset=offset, rank=scores.dim())
    return scores + (bias.repeat_interleave(heads, dim=0) if heads > 1 else bias)


def weighted_mean(x: Tensor, size: Tensor, *, offset: int, keepdim: bool) -> Tensor:
    """The mean of tokens, each counted as often as it stands for tokens: [B, C] or [B, 1, C].

    Args:
        x: [B, T + offset, C].
        size: [B, T].
        offset: Tokens of `x` minus sizes; negative where prefix tokens were sliced off.
        keepdim: Whether the token axis stays, with one entry.
    """
    weight = size[:, -offset:] if offset < 0 else size
    weight = weight / weight.sum(dim=1, keepdim=True)
    mean = torch.bmm(weight[:, None, :], x)
    return mean if keepdim else mean.squeeze(1)
