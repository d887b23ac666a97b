"""Random scores: the baseline every other rule has to beat."""

from __future__ import annotations

import random as standard_random

import torch
from torch import Tensor


def random(hidden: Tensor, *, seed: int = 0) -> Tensor:
    """Random numbers, the same for every image: [B, T] float32, 0 <= score < 1, all T distinct.

    They come from Python's own generator and are a constant of the graph, so that every backend
    keeps the same tokens.

    Args:
        hidden: [B, T, C]; only its shape and device are used.
        seed: Of the generator.

    Source: the random-drop baseline of the token pruning papers, with one draw for all images.
    """
    tokens = hidden.shape[1]
    order = standard_random.Random(seed).sample(range(tokens), tokens)
    score = torch.tensor([rank / tokens for rank in order], dtype=torch.float32)
    return score.to(hidden.device).expand(hidden.shape[0], tokens)
