"""Token transition variation: how much a module changes each token, in size and in direction."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.precision import norm, widen


def transition_variation(
    before: Tensor, after: Tensor, *, among: Tensor | None = None, absolute: bool = True
) -> Tensor:
    """softmax(1 - |cos(u, v)|) * |v| / |u| for each token: [B, T], >= 0.

    Args:
        before: u [B, T, C], what goes into the module, after its norm.
        after: v [B, T, C], what comes out of it, before the residual addition.
        among: [B, T] bool, the tokens that the softmax runs over; the others get 0. None: all.
        absolute: False takes 1 - cos instead, as the published code does.

    Source: TransPrune (arXiv 2507.20630), equations 1 and 2. The published code sums the softmax
    over text tokens and over the whole batch; here it is the image tokens of each prompt, as in
    the paper, if those are what is given or told by `among`.
    """
    u, v = widen(before), widen(after)
    length, longer = norm(u), norm(v)
    cosine = ((u * v).sum(dim=-1, keepdim=True) / (length * longer)).squeeze(-1)
    turn = 1.0 - (cosine.abs() if absolute else cosine)
    if among is not None:
        turn = turn.masked_fill(~among, float("-inf"))
    return turn.softmax(dim=-1) * (longer / length).squeeze(-1)


def transition_and_instruction(
    transition: Tensor, instruction: Tensor, *, alpha: float = 0.5
) -> Tensor:
    """alpha * a + (1 - alpha) * b with a and b brought to a sum of 1 over the tokens: [B, T].

    Args:
        transition: [B, T], >= 0, transition variation summed over layers.
        instruction: [B, T], >= 0, attention that the text pays to each token.
        alpha: In [0, 1]; 1 is the transition alone, 0 the instruction alone.

    Source: TransPrune (arXiv 2507.20630), section 3.3. Both terms are normalised as in its code:
    without that their scales are unrelated and alpha means nothing.
    """
    shares = [
        wide / (wide.sum(dim=-1, keepdim=True) + 1e-8)
        for wide in (widen(transition), widen(instruction))
    ]
    return torch.lerp(shares[1], shares[0], alpha)
