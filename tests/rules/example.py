"""Random inputs for the tests of the rules, from fixed generators."""

from __future__ import annotations

import torch
from torch import Tensor


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers of the given shape."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def attention(
    batch: int, heads: int, tokens: int, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> Tensor:
    """Attention probabilities [batch, heads, tokens, tokens]: each row sums to 1."""
    return (1.5 * numbers(batch, heads, tokens, tokens, seed=seed)).softmax(-1).to(dtype)


def roles(
    batch: int,
    *,
    tokens: int = 13,
    heads: int = 2,
    channels: int = 5,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> dict[str, Tensor]:
    """One tensor for every role a rule may need; all sizes differ from each other."""
    per_head = (batch, heads, tokens, channels)
    return {
        "attention": attention(batch, heads, tokens, seed=seed, dtype=dtype),
        "query": numbers(*per_head, seed=seed + 1, dtype=dtype),
        "key": numbers(*per_head, seed=seed + 2, dtype=dtype),
        "value": numbers(*per_head, seed=seed + 3, dtype=dtype),
        "hidden": numbers(batch, tokens, heads * channels, seed=seed + 4, dtype=dtype),
        "size": torch.ones(batch, tokens, dtype=dtype),
        "scan_output": numbers(batch, tokens, 3 * channels, seed=seed + 5, dtype=dtype),
    }


def permute_tokens(given: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The same inputs with token i standing where order[i] stood."""
    return {
        "attention": given["attention"][:, :, order][:, :, :, order],
        "query": given["query"][:, :, order],
        "key": given["key"][:, :, order],
        "value": given["value"][:, :, order],
        "hidden": given["hidden"][:, order],
        "size": given["size"][:, order],
        "scan_output": given["scan_output"][:, order],
    }


def shuffled(tokens: list[int], *, seed: int = 0) -> list[int]:
    """The tokens in a random order."""
    order = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed))
    return [tokens[i] for i in order.tolist()]


def proportional_attention(x: Tensor, size: Tensor) -> Tensor:
    """One attention layer on x [B, T, C] with log(size) added to the logits of the keys."""
    channels = x.shape[-1]
    query, key, value = (x @ numbers(channels, channels, seed=7 + i) for i in range(3))
    logits = query @ key.transpose(1, 2) / channels**0.5 + size.log().unsqueeze(1)
    out: Tensor = logits.softmax(-1) @ value
    return out
