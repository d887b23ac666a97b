"""Dominant tokens as they are, and a few contextual ones that stand for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.merge import gather_tokens
from prunepass.rules.precision import like, widen
from prunepass.rules.select import complement, sort_ascending
from prunepass.rules.similarity import cosine, head_rows


def vision_zip(
    hidden: Tensor, attention: Tensor, key: Tensor, *, keep: int, contextual: int
) -> Tensor:
    """The class token, dominant and contextual tokens of an encoder: [B, 1 + keep, C].

    Dominant are those that the class token attends to most, in their order. Of the others every
    n-th becomes a contextual token: itself plus the mean of those that are most like it.

    Args:
        hidden: [B, 1 + N, C], the class token first.
        attention: [B, H, 1 + N, 1 + N], probabilities.
        key: [B, H, 1 + N, D].
        keep: Tokens that come out besides the class token, contextual ones included.
        contextual: How many of them are contextual, 0..keep-1.

    Source: VisionZip (CVPR 2025). As its code does, the mean of the assigned is added, not averaged
    in. The paper's settings are 54 dominant with 10 contextual ones, and 191 with 30.
    """
    tokens = hidden.shape[1]
    seen = widen(attention[:, :, 0, 1:]).sum(dim=1)
    dominant = sort_ascending(torch.topk(seen, keep - contextual, dim=1).indices + 1)
    first = torch.zeros_like(dominant[:, :1])
    kept = gather_tokens(hidden, torch.cat([first, dominant], dim=1))
    if contextual == 0:
        return kept
    rest = complement(torch.cat([first, dominant], dim=1), tokens=tokens)
    step = max(1, rest.shape[1] // contextual)
    places = list(range(0, step * contextual, step))
    others = [i for i in range(rest.shape[1]) if i not in set(places)]
    targets, joining = rest[:, places], rest[:, others]
    rows = head_rows(key, heads="mean")
    alike = cosine(gather_tokens(rows, joining), gather_tokens(rows, targets))
    own = torch.nn.functional.one_hot(alike.argmax(dim=2), contextual).to(widen(hidden).dtype)
    counts = own.sum(dim=1).clamp_min(1.0)
    sums = torch.bmm(own.transpose(1, 2), widen(gather_tokens(hidden, joining)))
    made = widen(gather_tokens(hidden, targets)) + sums / counts.unsqueeze(2)
    return torch.cat([kept, like(made, hidden)], dim=1)
