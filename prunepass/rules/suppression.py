"""Importance of residual branches by what a loss does while a random half of them is damped."""

from __future__ import annotations

import torch
from torch import Tensor

SCALE = 0.25
"""What a suppressed branch is multiplied by."""
RIDGE = 1e-3
"""Weight of the penalty, relative to the mean square of a column, that makes the fit unique."""


def suppressed_half(branches: int, *, seed: int) -> Tensor:
    """Which branches a round suppresses: [L] bool, half of them (rounded down, at least one)."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(branches, generator=generator)
    chosen = torch.zeros(branches, dtype=torch.bool)
    chosen[order[: max(1, branches // 2)]] = True
    return chosen


def suppression_effects(products: Tensor, answers: Tensor) -> Tensor:
    """By how much each branch raises the loss when it is suppressed: [L] float64.

    A ridge regression of the rise of the loss on who was suppressed. Higher is more important.

    Args:
        products: [L, L], sum over rounds of s s^T, s in {0, 1} telling who was suppressed.
        answers: [L], sum over rounds of s times the loss over that of the whole model.

    Source: the idea of IST (EMNLP 2024 Findings, arXiv 2410.11772) without its training: branches
    of the model itself are damped, not adapters; a fit of all rounds takes the place of REINFORCE.
    """
    a = products.double()
    penalty = RIDGE * a.diagonal().mean().clamp_min(1e-12)
    return torch.linalg.solve(a + penalty * torch.eye(len(a), dtype=a.dtype), answers.double())
