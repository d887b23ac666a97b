"""Which weights of a matrix go: Wanda's metric, row by row."""

from __future__ import annotations

import torch
from torch import Tensor


def wanda_metric(weight: Tensor, squares: Tensor) -> Tensor:
    """|W| times the root of the mean square sum of its inputs: [O, I].

    Args:
        weight: [O, I].
        squares: [I], sum over tokens of x^2, divided by the number of samples.

    Source: Wanda (ICLR 2024, arXiv 2306.11695); second stage of ECoFLaP.
    """
    return weight.abs() * squares.to(weight.dtype).clamp_min(0).sqrt()


def wanda_kept(weight: Tensor, squares: Tensor, *, sparsity: float) -> Tensor:
    """Which weights stay, [O, I] bool: in every row the int(I * sparsity) smallest go.

    Among equal ones the first go.

    Args:
        weight: [O, I].
        squares: [I], see `wanda_metric`.
        sparsity: Share of each row that goes, in [0, 1].
    """
    gone = int(weight.shape[1] * sparsity)
    order = wanda_metric(weight, squares).argsort(dim=1, stable=True)
    kept = torch.ones_like(weight, dtype=torch.bool)
    return kept.scatter_(1, order[:, :gone], False)
