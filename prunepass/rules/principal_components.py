"""Importance of a layer by how many directions its hidden state takes: W-PCA."""

from __future__ import annotations

import torch
from torch import Tensor

SHARE = 0.99
"""Of the variance, that the counted components explain."""


def moments(hidden: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Second moments [M, M], sum [M] and number of tokens: they add over batches; float64.

    Args:
        hidden: [B, T, M], the hidden state.
        valid: [B, T], nonzero for tokens that count, None for all.
    """
    rows = hidden.reshape(-1, hidden.shape[-1])
    if valid is not None:
        rows = rows[valid.reshape(-1) != 0]
    # The products are what takes the time; the precision of the hidden state is enough for them.
    second = (rows.T @ rows).double()
    return second, rows.double().sum(dim=0), torch.tensor(float(len(rows)), dtype=torch.float64)


def principal_components(
    second: Tensor, total: Tensor, count: Tensor, *, share: float = SHARE
) -> int:
    """The smallest number of principal components that explain a share of the variance.

    Args:
        second: [M, M], sum of x x^T.
        total: [M], sum of x.
        count: Number of tokens.
        share: In (0, 1].

    Source: W-PCA (ICLR 2025), the dimension of the hidden state of feed-forward layers.
    """
    mean = total.double() / count.clamp_min(1.0)
    covariance = second.double() / count.clamp_min(1.0) - mean[:, None] * mean[None, :]
    spectrum = torch.linalg.eigvalsh(covariance).flip(0).clamp_min(0.0)
    whole = spectrum.sum()
    if not float(whole) > 0:
        return 0
    reached = spectrum.cumsum(0) / whole
    return int((reached < share - 1e-9).sum()) + 1
