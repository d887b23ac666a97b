"""Importance of tokens by weighted PageRank on the attention graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunepass.rules.merge import gather_tokens
from prunepass.rules.precision import widen

_VARIANCE_SCALES = ("mean1", "ss", "none")


def _first_and_rest(attention: Tensor, first: float, *, ones: int, zeros: int) -> Tensor:
    """The row vector (first, 0 x `zeros`, 1 x `ones`): [1, T], in the dtype of `attention`."""
    parts = [attention.new_full((1,), first), attention.new_zeros(zeros), attention.new_ones(ones)]
    return torch.cat(parts).unsqueeze(0)


def page_rank(
    attention: Tensor,
    *,
    iterations: int,
    prefix_boost: bool,
    start: Tensor | None = None,
    kept: Tensor | None = None,
    renormalise: bool = True,
    silent: int = 0,
) -> Tensor:
    """Score of each token in each head, [B, H, T] (or [B, H, K] with `kept`); >= 0, sums to 1.

    A vote runs from query j to key i with weight A[j, i] and carries j's score: s' = A^T s. With
    softmax attention the limit does not depend on the start; few rounds do.

    Args:
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1. float16 and bfloat16
            are voted in as they are, and the scores come out in float32.
        iterations: Rounds of voting, >= 0. Enough: 30-50 in the first three layers, 5-10 in the
            middle, 1 in the last three.
        prefix_boost: Token 0 (a class token) starts at sqrt(T) times the score of another.
        start: [T], [B, 1, T] or [B, H, T], sums to 1: the first scores, instead of the above. Not
            together with `kept`.
        kept: [B, K] int64: only these tokens take part (K replaces T above). The attention among
            them is masked out of the whole rather than gathered, which gives the same scores.
        renormalise: With `kept`, rows of the remaining attention are made to sum to 1 again.
        silent: Tokens 1..silent-1 (registers) receive votes and cast none.

    Raises:
        ValueError: `iterations` is negative.

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), the I-stage. The algorithm's A^T s; the
    printed equation's A s / N would map the uniform vector to itself. The attention left over by
    the S-stage, and the silence of registers, are our readings.
    """
    if iterations < 0:
        raise ValueError(
            f"cannot vote {iterations} times\n  found: iterations={iterations}\n"
            f"  try:   1 in late layers, 5 in the middle, 30 in the first ones"
        )
    tokens = attention.shape[-1]
    count = tokens if kept is None else kept.shape[1]
    # Scores are held at a mean of 1, not a sum of 1: at 1/T float16 has few digits left.
    if start is not None:
        score = (start * tokens).unsqueeze(-2).to(attention.dtype)
    else:
        first = count**0.5 if prefix_boost else 1.0
        score = _first_and_rest(attention, first, ones=tokens - 1, zeros=0)
        score = score * (count / (count - 1 + first))
    voice = None
    if silent > 1:
        voice = _first_and_rest(attention, 1.0, ones=tokens - silent, zeros=silent - 1)
    alive = None
    if kept is not None:
        alive = torch.zeros_like(attention[:, 0, 0]).scatter(
            1, kept, torch.ones_like(kept, dtype=attention.dtype)
        )
        alive = alive[:, None, None, :]
        score = score * alive
        if renormalise:
            remaining = (attention @ alive.transpose(-2, -1)).transpose(-2, -1)
            # The floor keeps 1 / remaining finite in the dtype of the votes.
            floor = 1e-30 if widen(attention) is attention else 2.0**-7
            voice = (1.0 if voice is None else voice) / remaining.clamp_min(floor)
    loses_votes = silent > 1 or (kept is not None and not renormalise)
    for _ in range(iterations):
        score = (score if voice is None else score * voice) @ attention
        if alive is not None:
            score = score * alive
        if loses_votes:
            score = score * (count / widen(score).sum(dim=-1, keepdim=True)).to(score.dtype)
    score = score.squeeze(-2).expand(attention.shape[:-1])
    if kept is not None:
        score = gather_tokens(score.transpose(1, 2), kept).transpose(1, 2)
    return widen(score) / count


def heads_within(
    score: Tensor, *, variance_range: Sequence[float], variance_scale: str = "mean1"
) -> Tensor:
    """Which heads' scores are neither too flat nor too peaked: [B, H] bool.

    Args:
        score: [B, H, N], >= 0, each row sums to 1.
        variance_range: (least, most), both inclusive.
        variance_scale: "mean1": the variance of score * N (the squared coefficient of variation);
            "ss": the sum of squared deviations of the score itself (0..1).

    Source: Zero-TPrune (CVPR 2024), VHF with 0.01..0.7. The paper's scale is not known: on scores
    that sum to 1 the plain variance is below 1/N, and 0.01..0.7 would reject every head.
    """
    low, high = variance_range
    wide = widen(score)
    if variance_scale == "mean1":
        wide = wide * score.shape[-1]
    deviation = wide - wide.mean(dim=-1, keepdim=True)
    squares = deviation * deviation
    spread = squares.sum(dim=-1) if variance_scale == "ss" else squares.mean(dim=-1)
    return (spread >= low) & (spread <= high)


def combine_heads(
    score: Tensor,
    *,
    root_mean_square: bool = True,
    variance_range: Sequence[float] | None = (0.01, 0.7),
    variance_scale: str = "mean1",
) -> Tensor:
    """One score a token out of one a head: [B, N], >= 0.

    Args:
        score: [B, H, N], >= 0, each row sums to 1.
        root_mean_square: Join heads by the root of their mean square (EIR), so that a token strong
            in one head beats one that is mediocre in all; otherwise by the mean.
        variance_range: (least, most) variance of a head that counts (VHF), or None for no filter.
            Where no head of an image is within, all of that image count.
        variance_scale: "mean1", "ss" (see `heads_within`), or "none" for no filter.

    Raises:
        ValueError: `variance_scale` is unknown.

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), EIR and VHF; the fallback is ours.
    """
    if variance_scale not in _VARIANCE_SCALES:
        raise ValueError(
            f"cannot filter heads by variance\n  found: variance_scale={variance_scale!r}\n"
            f"  try:   one of {', '.join(_VARIANCE_SCALES)}"
        )
    wide = widen(score)
    strength = wide * wide if root_mean_square else wide
    if variance_range is None or variance_scale == "none":
        joined = strength.mean(dim=1)
    else:
        within = heads_within(score, variance_range=variance_range, variance_scale=variance_scale)
        counts = (within | ~within.any(dim=1, keepdim=True)).to(wide.dtype)
        joined = (strength * counts.unsqueeze(-1)).sum(dim=1) / counts.sum(dim=1, keepdim=True)
    return joined.sqrt() if root_mean_square else joined


def page_rank_score(
    attention: Tensor,
    *,
    prefix: int,
    iterations: int,
    prefix_boost: bool = True,
    silence_prefix: bool = False,
    root_mean_square: bool = True,
    variance_range: Sequence[float] | None = (0.01, 0.7),
    variance_scale: str = "mean1",
    kept: Tensor | None = None,
    renormalise: bool = True,
) -> Tensor:
    """Importance of each token, [B, T] (or [B, K] with `kept`): larger is more worth keeping.

    Args:
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1.
        prefix: How many prefix tokens there are; without any there is no boost.
        iterations: Rounds of voting, >= 0.
        prefix_boost: Token 0 starts at sqrt(T) times the score of another.
        silence_prefix: Prefix tokens but the first (registers) cast no votes.
        root_mean_square, variance_range, variance_scale: See `combine_heads`.
        kept, renormalise: See `page_rank`.

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), weighted PageRank with EIR and VHF.
    """
    score = page_rank(
        attention,
        iterations=iterations,
        prefix_boost=prefix_boost and prefix > 0,
        kept=kept,
        renormalise=renormalise,
        silent=prefix if silence_prefix else 0,
    )
    return combine_heads(
        score,
        root_mean_square=root_mean_square,
        variance_range=variance_range,
        variance_scale=variance_scale,
    )
