"""Where tokens stand that are left of a sequence, and how much is missing between them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from prunepass.rules.merge import gather_tokens
from prunepass.rules.precision import like, widen
from prunepass.rules.select import smallest_ascending

ALIGNMENTS = ("decay0", "decay", "hold")
CONVOLUTIONS = ("compact", "scatter")


def ranks(positions: Tensor, order: Sequence[int] | None) -> Tensor:
    """[B, K] int64: at which places of an order tokens stand, ascending.

    Args:
        positions: [B, K] int64, numbers of the tokens, ascending.
        order: Which token stands at each place of the whole sequence; None for 0, 1, 2 ..
    """
    if order is None:
        return positions
    return smallest_ascending(_places(positions, order).float(), count=positions.shape[1])


def way(positions: Tensor, before: Sequence[int] | None, after: Sequence[int] | None) -> Tensor:
    """[B, K] int64: where each token of one order stands in another, among those that are left.

    Args:
        positions: [B, K] int64, numbers of the tokens that are left, ascending.
        before: The order that values have, None for ascending numbers.
        after: The order that is wanted.
    """
    count = positions.shape[1]
    found = _sorting(positions, after)
    if before is None:
        return found
    there = _sorting(positions, before)
    # Where a token stands in the first order: the inverse of the sorting.
    steps = torch.arange(count, device=positions.device).expand_as(there)
    standing = torch.zeros_like(there).scatter(1, there, steps)
    return standing.gather(1, found)


def missing(positions: Tensor, order: Sequence[int] | None) -> Tensor:
    """[B, K] float32: how many tokens are missing in front of each, 0 for the first.

    Args:
        positions: [B, K] int64, numbers of the tokens that are left, ascending.
        order: As in `ranks`; entries of the result are in this order.
    """
    place = ranks(positions, order)
    between = (place[:, 1:] - place[:, :-1] - 1).float()
    return functional.pad(between, (1, 0))


def passed(widths: Tensor, positions: Tensor, order: Sequence[int] | None) -> Tensor:
    """[B, K]: what the tokens missing in front of each one amount to, 0 for the first.

    Args:
        widths: [B, T], what each token amounts to if it is missing, 0 for those that are left.
        positions: [B, K] int64, as in `missing`.
        order: As in `missing`.
    """
    if order is not None:
        widths = widths.index_select(1, torch.tensor(order, device=widths.device))
    total = widths.cumsum(1).gather(1, ranks(positions, order))
    return functional.pad(total[:, 1:] - total[:, :-1], (1, 0))


def step_width(delta: Tensor, bias: Tensor) -> Tensor:
    """[B, K]: how far each token steps, in steps of a token of zeros, on average over channels.

    Args:
        delta: [B, K, C], the steps.
        bias: [C], softplus of which is the step of a token of zeros.
    """
    return delta.mean(2) / functional.softplus(bias).mean()


def note_widths(widths: Tensor, here: Tensor, kept: Tensor, width: Tensor) -> Tensor:
    """[B, T]: what each token of a whole sequence amounts to if it is missing.

    Args:
        widths: [B, T], the same before this reduction.
        here: [B, K] int64, numbers of the tokens that arrive.
        kept: [B, K'] int64, numbers of those that stay.
        width: [B, K], what each of those that arrive amounts to.
    """
    wide = widen(width)
    return like(widths, wide).scatter(1, here, wide).scatter(1, kept, 0.0)


def slowed(decay: Tensor, extra: Tensor, bias: Tensor) -> Tensor:
    """[B, K, C]: how long states decay, with what is missing stepped as a token of zeros would be.

    Args:
        decay: [B, K, C], the steps of the tokens themselves.
        extra: [B, K], tokens missing in front of each.
        bias: [C], softplus of which is the step of a token of zeros.

    Source: hidden-state alignment of ToP-ViM (NeurIPS 2024, arXiv 2409.18962), our reading of it.
    """
    return decay + extra.to(decay.dtype).unsqueeze(2) * functional.softplus(bias)


def spread(x: Tensor, places: Tensor, *, tokens: int) -> Tensor:
    """[B, T, C]: tokens [B, K, C] at their places [B, K] of a whole sequence, zeros elsewhere."""
    whole = x.new_zeros(x.shape[0], tokens, x.shape[2])
    return whole.scatter(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]), x)


def put_back(whole: Tensor, x: Tensor, places: Tensor) -> Tensor:
    """[B, T, C]: `whole` with the tokens `x` [B, K, C] at their places [B, K]."""
    return whole.scatter(1, places.unsqueeze(2).expand(-1, -1, x.shape[2]), x)


def token_at(x: Tensor, positions: Tensor, number: int) -> Tensor:
    """[B, C]: the token called `number` of `x` [B, K, C], whose tokens are `positions` [B, K]."""
    place = (positions < number).sum(1, keepdim=True)
    return gather_tokens(x, place).squeeze(1)


def among(positions: Tensor, numbers: Sequence[int]) -> Tensor:
    """[B, K] bool: which tokens are among those of these numbers."""
    wanted = torch.tensor(list(numbers), device=positions.device)
    return (positions.unsqueeze(2) == wanted).any(2)


def _places(positions: Tensor, order: Sequence[int]) -> Tensor:
    """[B, K]: where each token stands in a whole order."""
    place = torch.zeros(len(order), dtype=torch.int64)
    place[torch.tensor(order)] = torch.arange(len(order))
    return place.to(positions.device)[positions]


def _sorting(positions: Tensor, order: Sequence[int] | None) -> Tensor:
    """[B, K]: which of the tokens that are left comes 0th, 1st, .. in an order."""
    count = positions.shape[1]
    if order is None:
        return torch.arange(count, device=positions.device).expand_as(positions)
    place = _places(positions, order).float()
    return torch.topk(place, count, dim=1, largest=False, sorted=True).indices
