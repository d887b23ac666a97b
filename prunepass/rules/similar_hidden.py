"""Near-duplicates among hidden states go first: the S-stage of Zero-TPrune without attention."""

from __future__ import annotations

from torch import Tensor

from prunepass.rules.similarity import cosine


def similar_hidden(hidden: Tensor) -> Tensor:
    """[B, T], float32: low for every second token that is like one of the others.

    Tokens at odd places are compared with those at even places; the more alike, the lower. Those
    at even places come last, ranked the same way.

    Args:
        hidden: [B, T, C].

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), S-stage, with an alternating split since
    there is no attention to rank by.
    """
    x = hidden.float()
    alike = cosine(x[:, 1::2], x[:, ::2])
    odd, even = -alike.amax(2), 3.0 - alike.amax(1)
    count = even.shape[1]
    if odd.shape[1] < count:  # one more even place than odd ones
        last = even[:, -1:]
        return _alternating(even[:, :-1], odd, last)
    return _alternating(even, odd, even[:, :0])


def _alternating(even: Tensor, odd: Tensor, last: Tensor) -> Tensor:
    import torch

    pairs = torch.stack([even, odd], dim=2).flatten(1)
    return torch.cat([pairs, last], dim=1)
