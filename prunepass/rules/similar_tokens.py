"""The S-stage: finding tokens that a more important one already stands for."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from prunepass.rules.merge import gather_tokens
from prunepass.rules.similarity import similarity

PARTITIONS = ("seq-u", "seq-i", "alternate", "random", "full")


def most_similar(candidates: int, *, partition: str) -> int:
    """How many of `candidates` tokens the S-stage can delete at most: the size of group A."""
    return max(candidates - 1, 0) if partition == "full" else candidates // 2


def _split(count: int, *, partition: str, seed: int) -> tuple[list[int], list[int]]:
    """(ranks in A, ranks in B) out of ranks 0..count-1, 0 the most important; A has the floor."""
    ranks, half = list(range(count)), count // 2
    if partition == "seq-u":
        return ranks[count - half :], ranks[: count - half]
    if partition == "seq-i":
        return ranks[:half], ranks[half:]
    if partition == "alternate":
        return ranks[1::2], ranks[0::2]
    if partition == "random":
        random.Random(seed).shuffle(ranks)
        return sorted(ranks[:half]), sorted(ranks[half:])
    if partition == "full":
        return ranks, ranks
    raise ValueError(
        f"cannot split tokens for the S-stage\n  found: partition={partition!r}\n"
        f"  try:   one of {', '.join(PARTITIONS)}"
    )


def similar_tokens(
    importance: Tensor,
    features: Tensor,
    *,
    similar: int,
    prefix: int,
    partition: str = "seq-u",
    metric: str = "cosine",
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """(dropped [B, similar], partner [B, similar]), int64: the tokens of A most alike one of B.

    Args:
        importance: [B, T]; candidates are ranked by it and split by rank.
        features: [B, T, F], compared by `metric`.
        similar: How many are dropped, 0..size of A.
        prefix: The first `prefix` tokens are neither in A nor in B.
        partition: "seq-u": A, from which tokens are dropped, is the less important half; "seq-i":
            the more important half; "alternate": every second rank; "random": random ranks, the
            same in every image; "full": every token is compared with all more important ones (so
            that of two equal tokens one remains). An odd count puts the smaller half in A.
        metric: One of `similarity.METRICS`.
        seed: Of the random partition.

    Raises:
        ValueError: Unknown partition or metric, or `similar` is out of range.

    Source: Zero-TPrune (CVPR 2024, arXiv 2305.17328), the S-stage; Seq-U is the paper's choice. The
    meaning of Seq-I, the odd count and the order within Full are our readings.
    """
    count = importance.shape[1] - prefix
    a_ranks, b_ranks = _split(count, partition=partition, seed=seed)
    most = most_similar(count, partition=partition)
    if not 0 <= similar <= most:
        raise ValueError(
            f"cannot drop {similar} similar tokens\n"
            f"  found: similar={similar}, {count} candidates, partition={partition!r}\n"
            f"  try:   0..{most}"
        )
    order = torch.topk(importance[:, prefix:], count, dim=1).indices + prefix
    in_a, in_b = (
        order.index_select(1, torch.tensor(ranks, dtype=torch.int64, device=order.device))
        for ranks in (a_ranks, b_ranks)
    )
    alike = similarity(gather_tokens(features, in_a), gather_tokens(features, in_b), metric=metric)
    if partition == "full":
        rank = torch.arange(count, device=order.device)
        alike = alike.masked_fill(rank.unsqueeze(1) <= rank, float("-inf"))
    best, partner = alike.max(dim=2)
    chosen = torch.topk(best, similar, dim=1).indices
    return in_a.gather(1, chosen), in_b.gather(1, partner.gather(1, chosen))
