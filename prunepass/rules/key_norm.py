"""Importance of tokens by the length of their keys."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.precision import widen


def key_norm(key: Tensor, *, largest: bool = False) -> Tensor:
    """Negative Euclidean length of each token's key, averaged over heads: [B, T], <= 0.

    Larger is more worth keeping: tokens with SHORT keys stay, unless `largest`, which turns the
    sign.

    Args:
        key: [B, H, T, D]. float16 and bfloat16 give float32 scores.
        largest: Keep the tokens with long keys instead.

    Source: Devoto et al. (EMNLP 2024, arXiv 2406.11430), who found in decoder-only language models
    that keys of small norm draw much attention and kept those in the KV cache. That this holds in
    vision encoders is not established: measure it beside random before using it there.
    """
    length: Tensor = torch.linalg.vector_norm(widen(key), dim=-1).mean(dim=1)
    return length if largest else -length
