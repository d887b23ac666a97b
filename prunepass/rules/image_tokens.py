"""Image tokens inside a sequence of text: scoring them, and which entries of the sequence stay."""

from __future__ import annotations

import torch
from torch import Tensor

from prunepass.rules.merge import gather_tokens
from prunepass.rules.precision import widen


def at_positions(x: Tensor, positions: Tensor) -> Tensor:
    """The rows of `x` [B, T, C] at `positions` [B, ...] int64: [B, N, C], N their number."""
    return gather_tokens(x, positions.reshape(positions.shape[0], -1))


def kept_number(tokens: int, share: tuple[int, int]) -> int:
    """How many of `tokens` (a number or a symbol) a share (part, whole) keeps, rounded down; >= 1.

    Whole-number arithmetic, so that it means the same inside a graph of dynamic sizes.
    """
    part, whole = share
    kept = tokens * part // whole
    return max(1, kept) if isinstance(kept, int) else kept


def best_of_each_image(score: Tensor, keep: int) -> Tensor:
    """The `keep` best tokens of each image, ascending: [B, I, K] int64, positions 0..N-1.

    Args:
        score: [B, I, N], larger is more worth keeping.
        keep: K, 1..N: a quota for each image.
    """
    flat = score.reshape(-1, score.shape[2])
    chosen = torch.topk(flat, keep, dim=1).indices.to(torch.float32)
    ascending = torch.topk(chosen, keep, dim=1, largest=False, sorted=True).values
    return ascending.to(torch.int64).reshape(score.shape[0], -1, keep)


def without_other_image_tokens(
    tokens: Tensor, image: Tensor, chosen: Tensor, asking: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What stays of a sequence when only the chosen image tokens and all text do.

    Args:
        tokens: [B, T, C]; only its sizes are used.
        image: [B, I, N] int64, where the image tokens stand, ascending.
        chosen: [B, I, K] int64, ascending positions 0..N-1 into it.
        asking: [B, R] int64, positions of text tokens.

    Returns:
        Positions of what stays [B, T - I (N - K)], ascending; then, among those, the positions of
        the chosen image tokens [B, I, K] and of the asking ones [B, R].
    """
    batch, length = tokens.shape[:2]
    images, count, keep = image.shape[1], image.shape[2], chosen.shape[2]
    stays = torch.zeros_like(image, dtype=torch.int64).scatter(2, chosen, 1)
    every = torch.ones_like(tokens[:, :, 0], dtype=torch.int64)
    flag = every.scatter(1, image.reshape(batch, -1), stays.reshape(batch, -1))
    place = flag.cumsum(1) - 1
    left = length - images * (count - keep)
    # What goes is written behind the end: one more entry, which is cut off.
    target = torch.where(flag > 0, place, left)
    numbers = every.cumsum(1) - 1
    kept = torch.zeros_like(torch.cat([numbers[:, :left], numbers[:, :1]], dim=1))
    kept = kept.scatter(1, target, numbers)[:, :left]
    picked = image.gather(2, chosen)
    new_image = place.gather(1, picked.reshape(batch, -1)).reshape(batch, -1, keep)
    return kept, new_image, place.gather(1, asking)


def carry(transition: Tensor, image: Tensor, chosen: Tensor) -> Tensor:
    """[B, I K]: what was summed up over layers [B, I N], of the tokens `chosen` [B, I, K]."""
    by_image = transition.reshape(image.shape)
    return by_image.gather(2, chosen).reshape(image.shape[0], -1)


def text_raters(hidden: Tensor, image: Tensor, asking: Tensor, votes: Tensor) -> Tensor:
    """Votes [B, R] >= 0 left to the text tokens that the image is most like.

    Each image token spreads a softmax over the asking text tokens; those that get more than the
    mean keep their vote.

    Args:
        hidden: [B, T, C], the embeddings that enter the language model.
        image: [B, I, N] int64 positions.
        asking: [B, R] int64 positions.
        votes: [B, R], >= 0.

    Source: SparseVLM (ICML 2025), relevant text token selection.
    """
    pictures, words = (widen(at_positions(hidden, p)) for p in (image, asking))
    alike = torch.bmm(pictures, words.transpose(1, 2))
    alike = alike.masked_fill((votes <= 0)[:, None], float("-inf"))
    share = alike.softmax(dim=2).mean(dim=1)
    voters = (votes > 0).to(share.dtype).sum(dim=1, keepdim=True)
    # Shares sum to 1 over the voters, so their mean is known.
    return votes * (share * voters >= 1.0 - 1e-6).to(votes.dtype)
