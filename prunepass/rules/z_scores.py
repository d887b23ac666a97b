"""Importance of a layer by how its weights are spread: ZD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

TOLERANCE = 1e-6
"""A z-score this little above 1 counts as 1: rounding must not decide."""


def z_score_share(weights: Sequence[Tensor]) -> float:
    """ZD: share of weights more than one standard deviation above their mean, 0..1.

    Smaller is more important. The weights of a layer are pooled. Weights that are all equal give 0.

    Args:
        weights: Matrices of one layer, any shapes.

    Source: Layer-Wise Quantization (arXiv 2406.17415), the z-score distribution; one-sided.
    """
    if not weights:
        return 0.0
    pooled = torch.cat([weight.detach().double().reshape(-1) for weight in weights])
    spread = pooled.std(correction=0)
    if not float(spread) > 1e-12 * float(pooled.abs().max()):
        return 0.0
    z = (pooled - pooled.mean()) / spread
    return float((z > 1.0 + TOLERANCE).double().mean())
