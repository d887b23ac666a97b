"""The one place that decides in which precision statistics are taken."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """`x` in float32 if it is float16 or bfloat16, otherwise `x` itself.

    Squares and small fractions of half-precision numbers overflow or vanish (65504 is the largest
    float16; 1/T of one vote is near the smallest). float64 is never narrowed.
    """
    return x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x


def like(x: Tensor, other: Tensor) -> Tensor:
    """`x` in the dtype of `other`; `x` itself where it has it, so that no cast enters a graph."""
    return x if x.dtype == other.dtype else x.to(other.dtype)
