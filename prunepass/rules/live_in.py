"""Values made before a reduction that still have all tokens, brought down to those that stay."""

from __future__ import annotations

import torch
from torch import Tensor


def compose(earlier: Tensor, kept: Tensor) -> Tensor:
    """Positions of the kept tokens one stage further back: [B, K].

    Args:
        earlier: [B, T], where the tokens of this stage stood in an earlier one.
        kept: [B, K], positions in this stage.
    """
    return earlier.gather(1, kept)


def gather_live_in(
    x: Tensor, index: Tensor, *, axes: tuple[tuple[int, int], ...], rank: int
) -> Tensor:
    """`x` at the kept tokens, with a batch axis in front: `rank` axes, axis 0 of length B.

    Args:
        x: A table of positions, a mask or an activation; up to `rank` axes. Missing leading axes
            are added, as broadcasting would. Axis 0 is the batch (length 1 or B).
        index: [B, K] ascending positions on the token axes.
        axes: (axis of x, offset): that axis holds T + offset entries. With a negative offset the
            first `-offset` tokens, all of them prefix tokens, have no entry.
        rank: Axes of the operation that uses it.
    """
    lead = rank - x.dim()
    for axis, offset in axes:
        if offset > 0:
            raise ValueError(f"a live-in has {offset} more entries than tokens")
        if axis + lead == 0:
            raise ValueError("a token axis where the batch should be")
    x = x.reshape(*(1,) * lead, *x.shape)
    batch = index.shape[0]
    x = x.expand(batch, *x.shape[1:])
    for axis, offset in axes:
        at = axis + lead
        positions = index[:, -offset:] + offset if offset else index
        shape = [1] * rank
        shape[0], shape[at] = batch, positions.shape[1]
        target = list(x.shape)
        target[at] = positions.shape[1]
        x = torch.gather(x, at, positions.reshape(shape).expand(target))
    return x
