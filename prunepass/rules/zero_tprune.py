"""Zero-TPrune: delete near-duplicates, then the least important tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from prunepass.rules.merge import gather_tokens
from prunepass.rules.page_rank import page_rank_score
from prunepass.rules.select import (
    check_keep,
    complement,
    keep_everything,
    nearest_kept,
    top_tokens,
)
from prunepass.rules.selection import Selection
from prunepass.rules.similar_tokens import most_similar, similar_tokens
from prunepass.rules.similarity import head_rows

ORDERS = ("i'-s-i", "i", "i-s")
_PAPER_SIMILAR = 10  # tokens one S-stage deletes in the paper's DeiT-S setting


def _similar_count(
    similar: int | None, *, tokens: int, keep: int, prefix: int, partition: str, order: str
) -> int:
    """How many tokens the S-stage deletes, checked against what can go.

    Raises:
        ValueError: Unknown order, or `similar` is more than the partition or `keep` allows.
    """
    if order not in ORDERS:
        raise ValueError(
            f"cannot run the stages of zero-tprune\n  found: order={order!r}\n"
            f"  try:   one of {', '.join(ORDERS)}"
        )
    if order == "i":
        return 0
    most = tokens - keep
    if order == "i'-s-i":
        most = min(most, most_similar(tokens - prefix, partition=partition))
    elif partition != "full":
        # The I-stage leaves keep + similar tokens to S; half of the candidates must hold `similar`.
        most = min(most, keep - prefix)
    if similar is None:
        return min(_PAPER_SIMILAR, most)
    if not 0 <= similar <= most:
        raise ValueError(
            f"cannot delete {similar} similar tokens of {tokens}\n"
            f"  found: similar={similar}, keep={keep}, prefix={prefix}, tokens={tokens}\n"
            f"  try:   similar=0..{most}"
        )
    return similar


def _follow(tokens: int, links: Sequence[tuple[Tensor, Tensor]], *, longest: int) -> Tensor:
    """Where each of `tokens` tokens ends when links (from [B, R], to [B, R]) are followed: [B, T].

    Args:
        longest: The most links in a row.
    """
    source = links[0][0]
    step = torch.arange(tokens, device=source.device).expand(source.shape[0], tokens)
    for start, end in links:
        step = step.scatter(1, start, end)
    for _ in range(math.ceil(math.log2(longest))):  # each round doubles the steps taken
        step = step.gather(1, step)
    return step


def zero_tprune(
    attention: Tensor,
    key: Tensor,
    *,
    keep: int,
    prefix: int,
    iterations: int,
    similar: int | None = None,
    partition: str = "seq-u",
    metric: str = "cosine",
    mean_heads: bool = False,
    renormalise: bool = True,
    order: str = "i'-s-i",
    prefix_boost: bool = True,
    silence_prefix: bool = False,
    root_mean_square: bool = True,
    variance_range: Sequence[float] | None = (0.01, 0.7),
    variance_scale: str = "mean1",
    seed: int = 0,
) -> Selection:
    """The selection after a quick ranking (I'), deletion of similar tokens (S) and ranking (I).

    Targets, for merging instead of deleting: a token of the S-stage joins its partner, or where the
    partner went in the I-stage; a token of the I-stage joins the kept one most alike by key.

    Args:
        attention: [B, H, T, T], probabilities; every row (a query) sums to 1.
        key: [B, H, T, D].
        keep: How many tokens stay, prefix tokens included; prefix < keep <= T.
        prefix: The first `prefix` tokens always stay; they vote, and are no candidates.
        iterations: Rounds of voting in the I-stage (the I'-stage has one).
        similar: How many tokens the S-stage deletes; 0 skips it, T - keep skips the I-stage, None
            is the paper's 10 or as many as can go.
        partition, metric, seed: See `similar_tokens`.
        mean_heads: Compare keys averaged over the heads, otherwise laid side by side.
        renormalise: See `page_rank`.
        order: "i'-s-i"; "i" has no S-stage whatever `similar` says; "i-s" ranks and deletes the
            unimportant first and uses that ranking in the S-stage.
        prefix_boost, silence_prefix, root_mean_square, variance_range, variance_scale: See
            `page_rank_score`.

    Raises:
        ValueError: `keep` or `similar` is out of range, or an option has an unknown name.

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), I'-S-I. No code was published; the head
    handling of keys, the attention after the S-stage and the targets are ours.
    """
    tokens = attention.shape[-1]
    check_keep(tokens=tokens, keep=keep, prefix=prefix)
    count = _similar_count(
        similar, tokens=tokens, keep=keep, prefix=prefix, partition=partition, order=order
    )
    features = head_rows(key, heads="mean" if mean_heads else "concat")
    if keep == tokens:
        return keep_everything(features)
    rank = partial(
        page_rank_score,
        attention,
        prefix=prefix,
        prefix_boost=prefix_boost,
        silence_prefix=silence_prefix,
        root_mean_square=root_mean_square,
        variance_range=variance_range,
        variance_scale=variance_scale,
    )
    find_similar = partial(
        similar_tokens, similar=count, prefix=prefix, partition=partition, metric=metric, seed=seed
    )
    links: list[tuple[Tensor, Tensor]] = []  # (deleted by S, its partner), then (by I, nearest)
    unimportant: Tensor | None = None
    if count == 0:
        kept, unimportant = top_tokens(rank(iterations=iterations), keep=keep, prefix=prefix)
    elif order == "i-s":
        importance = rank(iterations=iterations)
        first, unimportant = top_tokens(importance, keep=keep + count, prefix=prefix)
        gone, partner = find_similar(importance.gather(1, first), gather_tokens(features, first))
        kept = first.gather(1, complement(gone, tokens=keep + count))
        links.append((first.gather(1, gone), first.gather(1, partner)))
    else:
        gone, partner = find_similar(rank(iterations=1), features)
        kept = complement(gone, tokens=tokens)
        links.append((gone, partner))
        if keep < tokens - count:
            importance = rank(iterations=iterations, kept=kept, renormalise=renormalise)
            stay, leave = top_tokens(importance, keep=keep, prefix=prefix)
            kept, unimportant = kept.gather(1, stay), kept.gather(1, leave)
    if unimportant is not None and unimportant.shape[1] > 0:
        nearest = nearest_kept(features, kept=kept, dropped=unimportant, prefix=prefix)
        links.append((unimportant, kept.gather(1, nearest)))
    dropped = torch.cat([source for source, _ in links], dim=1)
    longest = (count if partition == "full" else min(count, 1)) + 1
    end = _follow(tokens, links, longest=longest).gather(1, dropped)
    return Selection(kept, dropped, end)
