"""Keys and values of what was said so far, in buffers that stay where they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Cache:
    """Buffers of one batch of prompts, a pair for each layer.

    New entries are written behind the others; engines read the buffers in place and are told which
    entries hold a token. Layers behind a pruning hold fewer.

    Args:
        first_layers: The first layer of each stage.
        layers: Keys and values [B, G, T, D] of each layer in turn, as prefill gives them.
        valid: [B, T], for each stage: nonzero where the cache holds a token.
        dropped: For each stage by how many tokens it is shorter than the prompt.
        next_position: [B] int64, the position of what comes next.
        room: Entries to leave free.
        device: Where keys and values shall lie, None for where they are.
    """

    def __init__(
        self,
        first_layers: Sequence[int],
        layers: Sequence[Tensor],
        valid: Sequence[Tensor],
        dropped: Sequence[int],
        next_position: Tensor,
        *,
        room: int,
        device: torch.device | None = None,
    ) -> None:
        count = len(layers) // 2
        self.stage_of = [sum(i >= first for first in first_layers) - 1 for i in range(count)]
        self.dropped = torch.tensor(list(dropped), dtype=torch.int64)
        self.next_position = next_position
        self.filled = [v.shape[1] for v in valid]
        self.valid = [_with_room(v, 1, room, device) for v in valid]
        self.layers = [_with_room(x, 2, room, device) for x in layers]

    @property
    def batch(self) -> int:
        """Prompts in the batch."""
        return len(self.next_position)

    @property
    def lengths(self) -> list[int]:
        """Entries in the cache of each layer, padding included."""
        return [self.filled[stage] for stage in self.stage_of]

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take, without what is left free."""
        return sum(
            x[:, :, : self.filled[self.stage_of[i // 2]]].numel() * x.element_size()
            for i, x in enumerate(self.layers)
        )

    def make_room(self, tokens: int) -> None:
        """Leaves at least so many entries free; buffers that are too short become longer ones."""
        for stage, filled in enumerate(self.filled):
            lacking = filled + tokens - self.valid[stage].shape[1]
            if lacking <= 0:
                continue
            room = max(lacking, 64)
            self.valid[stage] = _with_room(self.valid[stage], 1, room)
            for i, x in enumerate(self.layers):
                if self.stage_of[i // 2] == stage:
                    self.layers[i] = _with_room(x, 2, room)

    def append(self, layers: Sequence[Tensor], valid: Tensor, steps: Tensor) -> None:
        """Writes new entries behind the others.

        Args:
            layers: Keys and values [B, G, S, D] of each layer in turn.
            valid: [B, S], nonzero for new tokens that are no padding.
            steps: [B], by how much positions move on.
        """
        new = valid.shape[1]
        for i, x in enumerate(layers):
            at = self.filled[self.stage_of[i // 2]]
            self.layers[i][:, :, at : at + new] = x
        for stage, at in enumerate(self.filled):
            self.valid[stage][:, at : at + new] = valid
            self.filled[stage] = at + new
        self.next_position = self.next_position + steps


def _with_room(x: Tensor, axis: int, room: int, device: torch.device | None = None) -> Tensor:
    """A copy of `x` with `room` zeros behind its entries on an axis."""
    shape = list(x.shape)
    shape[axis] += room
    made = x.new_zeros(shape, device=x.device if device is None else device)
    made.narrow(axis, 0, x.shape[axis]).copy_(x)
    return made
