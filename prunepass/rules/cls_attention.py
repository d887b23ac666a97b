"""Importance of tokens by how much the class token looks at them."""

from __future__ import annotations

from torch import Tensor


def cls_attention(attention: Tensor, *, prefix: int) -> Tensor:
    """Attention that token 0 pays to each token, averaged over heads: [B, T], 0..1, sums to 1.

    Args:
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1.
        prefix: How many prefix tokens there are, >= 1; the first is the class token.

    Raises:
        ValueError: There is no prefix token.

    Source: EViT (ICLR 2022, arXiv 2202.07800), attentiveness, without its fused token; VisionZip
    (CVPR 2025) takes its dominant tokens so.
    """
    if prefix < 1:
        raise ValueError(
            f"cannot score by class attention: the model has no class token\n"
            f"  found: prefix={prefix}\n"
            f"  try:   received-attention or page-rank, which need none"
        )
    return attention[:, :, 0].mean(dim=1)
