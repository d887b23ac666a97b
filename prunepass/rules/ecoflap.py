"""Importance of weights by the slope of a loss, from forward passes alone or from gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

EPSILON = 1e-3
"""How far weights are moved, times a standard normal direction."""


def direction(weight: Tensor, *, seed: int) -> Tensor:
    """A standard normal direction of the shape and dtype of a weight; a seed gives it again."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    return drawn.to(dtype=weight.dtype, device=weight.device)


@torch.no_grad()
def zeroth_order_slope(
    loss: Callable[[], float], weight: Tensor, *, seed: int, epsilon: float = EPSILON
) -> float:
    """The slope of a loss along a random direction of one matrix: (L+ - L-) / (2 epsilon).

    The weight is changed in place, and bit-identical afterwards, also where the loss fails.

    Args:
        loss: The loss at the weights as they are.
        weight: One matrix that the loss depends on.
        seed: Of the direction.
        epsilon: How far to go each way.

    Source: ECoFLaP (ICLR 2024, arXiv 2310.02998), zeroth-order gradients; one matrix at a time. A
    copy restores the weight, since going back and forth leaves rounding behind.
    """
    kept = weight.clone()
    try:
        weight.add_(direction(weight, seed=seed), alpha=epsilon)
        above = loss()
        weight.copy_(kept).sub_(direction(weight, seed=seed), alpha=epsilon)
        below = loss()
    finally:
        weight.copy_(kept)
    return (above - below) / (2 * epsilon)


def first_order_importance(weight: Tensor, mean_gradient: Tensor) -> float:
    """Sum over a matrix of |W| times the mean over batches of |gradient|.

    Args:
        weight: [O, I].
        mean_gradient: [O, I], mean of the absolute gradients of a loss.

    Source: ECoFLaP, its first-order variant.
    """
    return float((weight.detach().abs().double() * mean_gradient.double()).sum())
