"""The low-rank part of a weight that all inputs go through, beside the part that few do."""

from __future__ import annotations

import torch
from torch import Tensor


def low_rank_part(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """([r, n_in], [n_out, r]): the best factors of rank r of W [n_out, n_in], in its dtype.

    R-Sparse sends what a gate drops through them: W (m x) + A ((1 - m) x). With A x taken whole
    that is (W - A)(m x) + A x, so the gated weight becomes W - A and nothing else changes.

    Source: R-Sparse, ICLR 2025, arXiv 2504.19449; singular values shared by square roots.
    """
    left, values, right = torch.linalg.svd(weight.double(), full_matrices=False)
    root = values[:rank].sqrt()
    down = (root[:, None] * right[:rank]).to(weight.dtype)
    up = (left[:, :rank] * root).to(weight.dtype)
    return down, up
