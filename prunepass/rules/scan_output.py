"""What a state-space layer says of a token: how much of it comes out."""

from __future__ import annotations

import torch
from torch import Tensor

CLIPS = ("positive", "l1", "l2", "none")


def scan_output(scan_output: Tensor, *, clip: str = "positive") -> Tensor:
    """[B, T], float32: the sum over channels of what is positive in a layer's output.

    Args:
        scan_output: [B, T, C], what the scans of a layer found, all directions added in the order
            of the tokens, gated: what its last linear layer reads.
        clip: `positive` counts positive entries only; `l1` and `l2` take the norm, `none` the sum
            of all entries.

    Raises:
        ValueError: `clip` is none of these.

    Source: ToP-ViM (NeurIPS 2024, arXiv 2409.18962), token importance; the published code scores
    by one direction, in its own order, and without the clip.
    """
    y = scan_output.float()
    if clip == "positive":
        return y.clamp(min=0).sum(2)
    if clip == "l1":
        return y.abs().sum(2)
    if clip == "l2":
        return torch.linalg.vector_norm(y, dim=2)
    if clip == "none":
        return y.sum(2)
    raise ValueError(
        f"cannot clip by {clip!r}\n  found: clip={clip!r}\n  try:   one of {', '.join(CLIPS)}"
    )
